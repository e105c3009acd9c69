"""Every source against files that the test writes, and what it says of bad ones."""

import gzip
import io
import json
import struct
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import CLASSES, encoded, picture, write_class_folder
from tokzoo.data import DataConfig, guess_source, open_source
from tokzoo.data.sources import fashion_mnist
from tokzoo.data.sources.arrayrecord import pack, unpack
from tokzoo.data.sources.base import BadRecord, Encoded
from tokzoo.errors import TokzooError


def opened(source: str, split: str = "train", **fields):
  return open_source(DataConfig(source=source, split=split, **fields))


# Packaged pictures.


def test_photos_are_split_by_scene():
  train, test = opened("photos"), opened("photos", "test")
  names = {
    split: {source[i]["key"].rsplit("/")[-1] for i in range(len(source))}
    for split, source in (("train", train), ("test", test))
  }
  assert names["test"] == {"chelsea.png", "coffee.png", "china.jpg"}
  assert len(names["train"]) == 8 and not names["train"] & names["test"]
  assert {"motorcycle_left.png", "motorcycle_right.png"} <= names["train"]
  for source in (train, test):
    for index in range(len(source)):
      image = source[index]["image"]
      assert image.dtype == np.uint8 and image.shape[2] == 3
      # Colour, and a photograph rather than a drawing with a few flat tones.
      assert np.ptp(image.astype(int), axis=-1).max() > 50
      tones = image[::3, ::3].astype(int) @ np.array([65536, 256, 1])
      assert len(np.unique(tones)) > 3000
    assert "label" not in source[0] and source.info.classes == ()


def test_digits_scale_and_split():
  from sklearn.datasets import load_digits

  levels, labels = load_digits(return_X_y=True)
  train, test = opened("digits"), opened("digits", "test")
  assert len(train) + len(test) == 1797
  place = {"train": 0, "test": 0}
  seen = np.zeros(10, int)
  for level, label in zip(levels.astype(int), labels):
    seen[label] += 1
    split, source = ("test", test) if seen[label] % 5 == 0 else ("train", train)
    record = source[place[split]]
    place[split] += 1
    assert record["label"] == label and record["label"].dtype == np.int32
    wanted = np.floor(level * 255 / 16 + 0.5).reshape(8, 8, 1)
    np.testing.assert_array_equal(record["image"], wanted)
  assert record["image"].dtype == np.uint8 and train.info.classes[3] == "3"


# Folders.


def test_folder_with_classes(tmp_path):
  root = write_class_folder(tmp_path / "set")
  (root / "ant" / "notes.txt").write_text("not a picture")
  (root / ".DS_Store").write_text("hidden")
  source = opened(f"folder:{root}")
  assert source.info.classes == CLASSES and len(source) == 12
  assert "1 other files" in source.info.description
  for index in range(12):
    record = source[index]
    number = int(record["key"][-6:-4])
    assert record["label"] == number % 3
    np.testing.assert_array_equal(record["image"], picture(number))


def test_folder_without_classes(tmp_path):
  for number in range(3):
    (tmp_path / f"{number}.PNG").write_bytes(encoded(picture(number)))
  (tmp_path / "notes").mkdir()
  (tmp_path / "notes" / "a.txt").write_text("")
  source = opened(f"folder:{tmp_path}")
  assert len(source) == 3 and source.info.classes == () and "label" not in source[0]


def test_labels_mean_the_same_in_every_split(tmp_path):
  write_class_folder(tmp_path / "train")
  (tmp_path / "test" / "cat").mkdir(parents=True)
  (tmp_path / "test" / "cat" / "a.png").write_bytes(encoded(picture(1)))
  test = opened(f"folder:{tmp_path}", "test")
  assert test.info.classes == CLASSES and test[0]["label"] == 2
  assert test.info.splits == ("test", "train")
  (tmp_path / "test" / "cat").rename(tmp_path / "test" / "dog")
  with pytest.raises(TokzooError, match=r"class 'dog', which .*train lacks"):
    opened(f"folder:{tmp_path}", "test")


def test_a_link_back_up_ends(tmp_path):
  root = write_class_folder(tmp_path / "set", 3)
  (root / "ant" / "up").symlink_to(root)
  (root / "dog").symlink_to(write_class_folder(tmp_path / "other", 1))
  assert opened(f"folder:{root}").info.classes == (*CLASSES, "dog")


def test_folder_mistakes(tmp_path):
  with pytest.raises(TokzooError, match="no such file or folder"):
    opened(f"folder:{tmp_path / 'nix'}")
  with pytest.raises(TokzooError, match="holds nothing, no pictures"):
    opened(f"folder:{tmp_path}")
  (tmp_path / "a.txt").write_text("")
  with pytest.raises(TokzooError, match="only 1 other files, no pictures"):
    opened(f"folder:{tmp_path}")
  with pytest.raises(TokzooError, match=r"a\.txt is a file"):
    opened(f"folder:{tmp_path / 'a.txt'}")
  write_class_folder(tmp_path, 3)
  (tmp_path / "loose.png").write_bytes(encoded(picture(0)))
  with pytest.raises(TokzooError, match=r"beside folders \(loose.png\)"):
    opened(f"folder:{tmp_path}")
  with pytest.raises(TokzooError, match="no split 'test', only train"):
    opened(f"folder:{tmp_path}", "test")


def test_bad_files_are_errors_or_named(tmp_path):
  root = write_class_folder(tmp_path / "set", 9)
  (root / "ant" / "00.png").write_bytes(b"broken")
  cut = root / "bee" / "04.png"
  cut.write_bytes(cut.read_bytes()[:-40])
  source = opened(f"folder:{root}")
  assert len(source) == 9
  with pytest.raises(BadRecord, match=r"ant/00\.png.*not an image"):
    source[0]
  with pytest.warns(
    UserWarning, match=r"left out 2 of 9 .*00\.png.*04\.png.*truncated"
  ):
    good = opened(f"folder:{root}", skip_bad=True)
  keys = [good[i]["key"][-6:] for i in range(len(good))]
  assert keys == ["03.png", "06.png", "01.png", "07.png", "02.png", "05.png", "08.png"]
  for file in root.rglob("*.png"):
    file.write_bytes(b"broken")
  with pytest.raises(TokzooError, match="none of the 9 records"):
    opened(f"folder:{root}", skip_bad=True)


# Fashion-MNIST.


def write_idx(path, array: np.ndarray, packed: bool) -> None:
  head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape)
  data = head + array.astype(np.uint8).tobytes()
  if packed:
    path = path.with_name(path.name + ".gz")
    data = gzip.compress(data)
  path.write_bytes(data)


def write_fashion(folder, packed: bool = True) -> dict[str, np.ndarray]:
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  images = {"train": rng.integers(0, 256, (20, 28, 28))}
  images["test"] = rng.integers(0, 256, (10, 28, 28))
  for split, prefix in (("train", "train"), ("test", "t10k")):
    write_idx(folder / f"{prefix}-images-idx3-ubyte", images[split], packed)
    labels = np.arange(len(images[split])) % 10
    write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels, packed)
  return images


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_from_a_folder(tmp_path, packed):
  images = write_fashion(tmp_path, packed)
  for split in ("train", "test"):
    source = opened(f"fashion-mnist:{tmp_path}", split)
    assert len(source) == len(images[split])
    for index, image in enumerate(images[split]):
      np.testing.assert_array_equal(source[index]["image"][..., 0], image)
      assert source[index]["label"] == index % 10
    assert source.info.classes[9] == "Ankle boot"


def test_fashion_mnist_of_debian(tmp_path, monkeypatch):
  write_fashion(tmp_path)
  monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path)
  assert len(opened("fashion-mnist")) == 20


def test_fashion_mnist_nowhere(tmp_path, monkeypatch):
  monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nix")
  from tokzoo.data.sources import tfds

  monkeypatch.setattr(tfds.tfds, "builder", _not_found)
  words = "Debian's package dataset-fashion-mnist, or .*fashion-mnist:PATH, or .*TFDS"
  with pytest.raises(TokzooError, match=words):
    opened("fashion-mnist")


def _not_found(name):
  import tensorflow_datasets

  raise tensorflow_datasets.core.DatasetNotFoundError(name)


def test_fashion_mnist_damaged(tmp_path):
  write_fashion(tmp_path, packed=False)
  images = tmp_path / "train-images-idx3-ubyte"
  whole = images.read_bytes()
  images.write_bytes(whole[:-1])
  with pytest.raises(
    TokzooError, match=r"15679 bytes where its header .* promises 15680"
  ):
    opened(f"fashion-mnist:{tmp_path}")
  images.write_bytes(b"\0\0\x0d\x03" + whole[4:])
  with pytest.raises(TokzooError, match="not an IDX file of bytes with 3 axes"):
    opened(f"fashion-mnist:{tmp_path}")
  images.unlink()
  with pytest.raises(TokzooError, match=r"no file .*train-images"):
    opened(f"fashion-mnist:{tmp_path}")
  images.with_name(images.name + ".gz").write_bytes(gzip.compress(whole)[:-30])
  with pytest.raises(TokzooError, match=r"cannot read .*\.gz"):
    opened(f"fashion-mnist:{tmp_path}")


# webdataset.


def write_tar(path, members: dict[str, bytes]) -> None:
  with tarfile.open(path, "w") as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


def test_webdataset(tmp_path):
  write_tar(
    tmp_path / "b-1.tar",
    {
      "x/7.extra.json": b"{}",
      "x/2.jpg": encoded(picture(2), "JPEG"),
      "x/2.json": json.dumps({"label": 1}).encode(),
    },
  )
  write_tar(
    tmp_path / "a-0.tar",
    {
      "0.png": encoded(picture(0)),
      "0.cls": b"4\n",
      "0.txt": "eine Katze: schön".encode(),
      "1.cls": b"0",
      "1.WEBP": encoded(picture(1), "WEBP"),
    },
  )
  source = opened(f"webdataset:{tmp_path}")
  assert len(source) == 3 and len(source.info.classes) == 5
  records = [source[i] for i in range(3)]
  assert [int(record["label"]) for record in records] == [4, 0, 1]
  np.testing.assert_array_equal(records[0]["image"], picture(0))
  assert records[0]["text"] == "eine Katze: schön" and "text" not in records[1]
  jpeg = Image.open(io.BytesIO(encoded(picture(2), "JPEG")))
  np.testing.assert_array_equal(records[2]["image"], np.asarray(jpeg))
  assert records[2]["key"].endswith("b-1.tar/x/2")
  assert len(opened(f"webdataset:{tmp_path}/a-*.tar")) == 2
  assert len(opened(f"webdataset:{tmp_path}/a-0.tar")) == 2


def test_webdataset_mistakes(tmp_path):
  file = tmp_path / "a.tar"
  for members, words in (
    ({"0.cls": b"1"}, r"a\.tar/0 has no picture, only cls"),
    ({"0.png": encoded(picture(0)), "0.cls": b"one"}, "cannot read the class of"),
    ({"0.png": encoded(picture(0)), "0.cls": b"-1"}, "the class of .* is -1"),
    ({"0.png": encoded(picture(0)), "0.json": b'{"label": "x"}'}, "is 'x'"),
    ({"README": b"nothing"}, "holds no samples"),
    (
      {"0.png": encoded(picture(0)), "0.cls": b"1", "1.png": encoded(picture(1))},
      r"1 of 2 samples have no class .*a\.tar/1",
    ),
  ):
    write_tar(file, members)
    with pytest.raises(TokzooError, match=words):
      opened(f"webdataset:{file}")
  write_tar(file, {"0.png": encoded(picture(0))})
  file.write_bytes(gzip.compress(file.read_bytes()))
  with pytest.raises(TokzooError, match="uncompressed tar"):
    opened(f"webdataset:{file}")
  write_tar(file, {"0.png": encoded(picture(0)), "1.png": encoded(picture(1))})
  file.write_bytes(file.read_bytes()[:2600])
  with pytest.raises(TokzooError, match=r"cannot read .*a\.tar"):
    opened(f"webdataset:{file}")
  file.unlink()
  with pytest.raises(TokzooError, match="no tar files"):
    opened(f"webdataset:{tmp_path}")
  write_tar(file, {"0.png": b"broken"})
  with pytest.raises(BadRecord, match=r"a\.tar/0"):
    opened(f"webdataset:{file}")[0]


# TFDS.


class WithoutTensorFlow:
  """A finder of modules that does not find TensorFlow, even where it is installed."""

  def __init__(self, finder):
    self._finder = finder

  def find_spec(self, name, *place):
    is_tensorflow = name.partition(".")[0] == "tensorflow"
    return None if is_tensorflow else self._finder.find_spec(name, *place)

  def __getattr__(self, name):
    return getattr(self._finder, name)


@pytest.fixture
def without_tensorflow(monkeypatch):
  finders = [WithoutTensorFlow(finder) for finder in sys.meta_path]
  monkeypatch.setattr(sys, "meta_path", finders)


def prepare_with_tfds(folder, name, images, classes):
  """Lets TFDS itself prepare a data set of 7 + 2 pictures; returns its folder."""
  import tensorflow_datasets as tfds

  channels = 1 if images[0].ndim == 2 else 3

  class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("3.0.1")
    # TFDS would look for them with a package that it does not install.
    url_infos = {}  # noqa: RUF012

    def _info(self):
      features = tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, channels)),
          "label": tfds.features.ClassLabel(names=classes),
        }
      )
      return tfds.core.DatasetInfo(builder=self, features=features, license="CC0")

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(7), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
      for number in range(count):
        yield number, {"image": encoded(images[number]), "label": number % len(classes)}

  Pictures.name = name
  tfds.disable_progress_bar()
  builder = Pictures(data_dir=str(folder), file_format="array_record")
  builder.download_and_prepare()
  return builder.data_path


@pytest.fixture
def tfds_folder(tmp_path, without_tensorflow):
  images = [picture(number) for number in range(7)]
  return prepare_with_tfds(tmp_path, "tiny_pictures", images, CLASSES)


def test_tfds_without_tensorflow(tfds_folder):
  source = opened(f"tfds:{tfds_folder}")
  assert len(source) == 7 and source.info.classes == CLASSES
  assert source.info.splits == ("train", "test") and source.info.licence == "CC0"
  # TFDS shuffles when it prepares: find each picture again.
  left = set(range(7))
  for index in range(7):
    record = source[index]
    number = next(n for n in left if (record["image"] == picture(n)).all())
    assert record["label"] == number % 3
    left.remove(number)
  assert not left and "tensorflow" not in sys.modules


def test_fashion_mnist_of_tfds(tmp_path, without_tensorflow, monkeypatch):
  import tensorflow_datasets as tfds

  images = [picture(number, 28, 28)[..., 0] for number in range(7)]
  classes = fashion_mnist.CLASSES
  prepare_with_tfds(tmp_path, "fashion_mnist", images, classes)
  monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nix")
  by_name = tfds.builder
  monkeypatch.setattr(tfds, "builder", lambda name: by_name(name, data_dir=tmp_path))
  test = opened("fashion-mnist", "test")
  assert len(test) == 2 and test.info.classes == classes
  assert test[0]["image"].shape == (28, 28, 1)


def test_tfds_mistakes(tfds_folder, tmp_path):
  with pytest.raises(
    TokzooError, match=r"no split 'valid': set data.split to train or"
  ):
    opened(f"tfds:{tfds_folder}", "valid")
  with pytest.raises(TokzooError, match="knows no data set 'no_such_set'"):
    opened("tfds:no_such_set")
  record = next(iter(tfds_folder.glob("*train*")))
  data = bytearray(record.read_bytes())
  data[data.find(b"PNG") + 40] ^= 1
  record.write_bytes(data)
  source = opened(f"tfds:{tfds_folder}")
  with pytest.raises(BadRecord, match=r"tiny_pictures/3.0.1/train/"):
    [source[i] for i in range(7)]
  description = tfds_folder / "dataset_info.json"
  fields = json.loads(description.read_text()) | {"fileFormat": "tfrecord"}
  description.write_text(json.dumps(fields))
  with pytest.raises(TokzooError, match=r"prepared as .*tfrecord"):
    opened(f"tfds:{tfds_folder}")


# Names.


def test_names():
  with pytest.raises(TokzooError, match="did you mean 'digits'"):
    opened("digit")
  with pytest.raises(TokzooError, match="takes no path"):
    opened("photos:/tmp")
  for kind in ("folder", "arrayrecord", "webdataset", "tfds"):
    with pytest.raises(TokzooError, match=f"{kind}: lacks its"):
      opened(f"{kind}:")
  for kind in ("photos", "digits"):
    with pytest.raises(
      TokzooError, match=r"no split 'val': set data.split to train or"
    ):
      opened(kind, "val")


def test_guessing(tmp_path):
  assert guess_source("digits") == "digits"
  assert guess_source("webdataset:a/b.tar") == "webdataset:a/b.tar"
  write_class_folder(tmp_path / "set", 3)
  assert guess_source(f"{tmp_path}/set") == f"folder:{tmp_path}/set"
  write_fashion(tmp_path / "idx")
  assert guess_source(f"{tmp_path}/idx") == f"fashion-mnist:{tmp_path}/idx"
  (tmp_path / "tars").mkdir()
  write_tar(tmp_path / "tars" / "a.tar", {"0.png": b""})
  assert guess_source(f"{tmp_path}/tars") == f"webdataset:{tmp_path}/tars"
  assert guess_source(f"{tmp_path}/tars/a.tar") == f"webdataset:{tmp_path}/tars/a.tar"
  with pytest.raises(TokzooError, match="holds tokens: name a source of pictures"):
    guess_source("tokens:somewhere")
  with pytest.raises(TokzooError, match="neither a folder, a tar file nor a source"):
    guess_source("nix")


def test_packing_a_record():
  for item in (Encoded(b"\0bytes", "käse", 3, "a\nb"), Encoded(b"", "x")):
    assert unpack(pack(item)) == item
  with pytest.raises(ValueError, match="shorter than its header"):
    unpack(b"\xff\xff\0\0{}")
