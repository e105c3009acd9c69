"""Object stores, played by fsspec's memory file system: data, tokens, weight files."""

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

import tokzoo
from tests.data.pictures import CLASSES, picture, write_class_folder
from tests.models import TOKENIZER, save
from tokzoo import remote
from tokzoo.cli.tokenizing import encode_dataset
from tokzoo.data import DataConfig, check, guess_source, loader, open_source, prepare
from tokzoo.data.sources.base import BadRecord
from tokzoo.errors import TokzooError
from tokzoo.files import read_safetensors, sha256_of, write_atomic


class Store(MemoryFileSystem):
  """A bucket in memory, instead of Amazon's."""

  protocol = ("s3",)
  store = {}  # noqa: RUF012
  pseudo_dirs = [""]  # noqa: RUF012
  broken: str | None = None

  @classmethod
  def _strip_protocol(cls, path):
    return MemoryFileSystem._strip_protocol(str(path).replace("s3://", "memory://"))

  def put_file(self, lpath, rpath, **more):
    if Store.broken:
      raise ValueError(Store.broken)
    return super().put_file(lpath, rpath, **more)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  """An empty bucket, and an empty cache."""
  for scheme in ("s3", "gs"):
    monkeypatch.setitem(_registry, scheme, Store)
  monkeypatch.setenv("TOKZOO_CACHE", str(tmp_path / "cache"))
  Store.store.clear()
  yield "s3://bucket"
  Store.store.clear()


def upload(folder, to: str) -> None:
  for path in folder.rglob("*"):
    if path.is_file():
      remote.put_file(path, f"{to}/{path.relative_to(folder)}")


def test_pictures_in_a_bucket(bucket, tmp_path):
  upload(write_class_folder(tmp_path / "set"), f"{bucket}/set/train")
  remote.put(f"{bucket}/set/train/ant/.hidden.png", b"x")
  remote.put(f"{bucket}/set/train/notes.txt", b"x")
  name = guess_source(f"{bucket}/set")
  assert name == f"folder:{bucket}/set"
  source = open_source(DataConfig(source=name))
  assert len(source) == 12 and source.info.classes == CLASSES
  assert "1 other files" in source.info.description
  for index in range(12):
    record = source[index]
    number = int(record["key"][-6:-4])
    assert record["key"].startswith("s3://bucket/set/train/")
    np.testing.assert_array_equal(record["image"], picture(number))
    assert record["label"] == number % 3
  batch = next(loader(DataConfig(source=name, size=8, crop="random"), 4, seed=0))
  assert batch["image"].shape == (4, 8, 8, 3)
  Store.store.pop("/bucket/set/train/ant/00.png")
  with pytest.raises(BadRecord, match=r"ant/00\.png"):
    [source[index] for index in range(12)]
  with pytest.raises(TokzooError, match="no such file or folder: s3://bucket/nix"):
    open_source(DataConfig(source=f"folder:{bucket}/nix"))


def test_prepared_data_in_a_bucket(bucket, tmp_path):
  prepare("digits", tmp_path / "out", splits=["test"])
  upload(tmp_path / "out", f"{bucket}/digits")
  name = guess_source(f"{bucket}/digits")
  assert name == f"arrayrecord:{bucket}/digits"
  config = DataConfig(source=name, split="test")
  source, ours = (
    open_source(config),
    open_source(DataConfig(source=f"arrayrecord:{tmp_path}/out", split="test")),
  )
  assert len(source) == 355
  for index in (0, 200, 354):
    np.testing.assert_array_equal(source[index]["image"], ours[index]["image"])
  assert check(name, "test", digests=True).bad == {}
  # The copy is kept: the bucket is not read again.
  (copy,) = (tmp_path / "cache" / "remote").iterdir()
  copied = copy.stat().st_mtime_ns
  open_source(config)
  assert copy.stat().st_mtime_ns == copied and copy.stem == sha256_of(copy)
  # One that is not what the manifest says never gets into the cache.
  copy.unlink()
  (stored,) = [path for path in Store.store if path.endswith(".arrayrecord")]
  data = Store.store[stored].getvalue()
  remote.put(f"s3:/{stored}", data[:-1] + bytes([data[-1] ^ 1]))
  with pytest.raises(TokzooError, match="its SHA-256 differs"):
    open_source(config)
  assert list((tmp_path / "cache" / "remote").iterdir()) == []
  remote.put(f"s3:/{stored}", data[:-1])
  with pytest.raises(TokzooError, match="but the manifest says"):
    open_source(config)


def test_tokens_in_a_bucket(bucket, tmp_path, monkeypatch):
  model = tokzoo.load(save(tmp_path / "tokenizer.safetensors", TOKENIZER))
  data = DataConfig(source="digits", split="test", channels=1, threads=0)
  encode_dataset(data, model, tmp_path / "here", 64, 100)
  place = f"{bucket}/tokens"
  # A store that breaks off in the middle, and the same command again.
  uploads = []

  def breaking(done: int, total: int) -> None:
    uploads.append(done)
    Store.broken = "out of quota" if done > 150 else None

  with pytest.raises(TokzooError, match=r"cannot write s3://bucket/tokens.*quota"):
    encode_dataset(data, model, place, 50, 100, breaking)
  monkeypatch.setattr(Store, "broken", None)
  there = sorted(path.rsplit("/")[-1] for path in Store.store)
  assert there == ["encoding.json"] + [
    f"tokens-00000-of-00004.{kind}" for kind in ("arrayrecord", "json")
  ]
  done = encode_dataset(data, model, place, 50, 100)
  assert (done.records, done.made, done.shards) == (355, 255, 4)
  names = {path.rsplit("/")[-1] for path in Store.store}
  assert names == {path.name for path in (tmp_path / "here").iterdir()}
  for name in names - {"manifest.json"}:
    there = Store.store[f"/bucket/tokens/{name}"].getvalue()
    assert there == (tmp_path / "here" / name).read_bytes()
  ours, theirs = (
    open_source(DataConfig(source=f"tokens:{folder}", split="test"))
    for folder in (tmp_path / "here", place)
  )
  for index in (0, 120, 354):
    np.testing.assert_array_equal(ours[index]["packed"], theirs[index]["packed"])


def test_weight_files_in_a_bucket(bucket, tmp_path):
  path = save(tmp_path / "tokenizer.safetensors", TOKENIZER)
  write_atomic(f"{bucket}/models/a.safetensors", path.read_bytes())
  model = tokzoo.load(f"{bucket}/models/a.safetensors")
  assert model.fingerprint == tokzoo.load(path).fingerprint
  assert model.card.name == "s3://bucket/models/a.safetensors"
  with pytest.raises(TokzooError, match=r"no file at s3://bucket/models/b.safetensors"):
    tokzoo.load(f"{bucket}/models/b.safetensors")
  remote.put(f"{bucket}/models/c.safetensors", path.read_bytes()[:-9])
  with pytest.raises(TokzooError, match=r"s3://.*c.safetensors is not a whole"):
    read_safetensors(f"{bucket}/models/c.safetensors", "checkpoint")


def test_what_cannot_be_remote_says_so(bucket, tmp_path):
  with pytest.raises(TokzooError, match="prepared on this machine"):
    prepare("digits", f"{bucket}/out")
  remote.put(f"{bucket}/tars/a.tar", b"")
  with pytest.raises(TokzooError, match="tar files are read on this machine only"):
    open_source(DataConfig(source=f"webdataset:{bucket}/tars"))
  with pytest.raises(TokzooError, match=r"'ftp://': .*known: az://, gs://, s3://"):
    remote.located("ftp://host/file")


def test_a_package_that_is_not_installed(monkeypatch):
  def absent(scheme):
    raise ImportError(f"install what reads {scheme}")

  monkeypatch.setattr(remote.fsspec, "get_filesystem_class", absent)
  with pytest.raises(TokzooError, match=r"needs the package 'gcsfs'.*tokzoo\[remote\]"):
    open_source(DataConfig(source="folder:gs://bucket/pictures"))
