"""`tokzoo.load`: by catalog name, file, run, authors' file and repository, or not at all."""

import dataclasses
import json
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import tokzoo
from tests.models import AR, TOKENIZER, random_variables, save, save_both
from tokzoo.data import DataConfig
from tokzoo.errors import TokzooError
from tokzoo.files import sha256_of
from tokzoo.generators.instella_t2i import ARConfig
from tokzoo.hub import (
  PretrainedCodec,
  PretrainedGenerator,
  PretrainedTokenizer,
  catalog,
)
from tokzoo.tokenizers.image import instella_t2i as bae
from tokzoo.train import Optimizer, Recipe, to_json, train
from tokzoo.train.tasks import Reconstruction
from tokzoo.weights import fingerprint, write_safetensors
from tokzoo.weights.checkpoint import write_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LICENCES = 'code_licence = "Apache-2.0"\nweights_licence = "Apache-2.0"\n'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
  """A cache of converted weights of its own."""
  monkeypatch.setenv("TOKZOO_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache" / "converted"


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
  """A folder in place of the packaged checkpoints, with an empty catalog."""
  folder = tmp_path / "checkpoints"
  folder.mkdir()
  (folder / "catalog.toml").write_text("checkpoint = []")
  for module in ("tokzoo.hub.catalog", "tokzoo.hub.loading"):
    monkeypatch.setattr(sys.modules[module], "bundled", lambda _: folder)
  catalog.cache_clear()
  yield folder
  catalog.cache_clear()


def enter(shelf: Path, beside: bool = False, **fields) -> None:
  """Writes a catalog of one entry, or one more entry."""
  fields = {"system": "instella-t2i", "part": "tokenizer", **fields}
  lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
  text = "[[checkpoint]]\n" + "\n".join(lines) + "\n" + LICENCES
  before = (shelf / "catalog.toml").read_text() if beside else ""
  (shelf / "catalog.toml").write_text(before + text)
  catalog.cache_clear()


@pytest.fixture
def authors_file(tmp_path, monkeypatch) -> Path:
  """A tokenizer in its authors' layout, made with the published config "tiny"."""
  monkeypatch.setitem(bae.PRESETS, "tiny", TOKENIZER)
  path = tmp_path / "authors.safetensors"
  write_safetensors(path, bae.WEIGHTS.to_authors(random_variables(TOKENIZER)))
  return path


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
  """huggingface_hub's own cache with one repository in it, and no network."""
  import huggingface_hub.constants

  cache = tmp_path / "hub"
  snapshot = cache / "models--them--bae" / "snapshots" / COMMIT
  snapshot.mkdir(parents=True)
  refs = cache / "models--them--bae" / "refs"
  refs.mkdir()
  (refs / "main").write_text(COMMIT)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
  return snapshot


def is_tiny(model: PretrainedTokenizer) -> bool:
  return model.fingerprint == fingerprint(random_variables(TOKENIZER))


def test_by_catalog_name(shelf):
  save(shelf / "m.safetensors", TOKENIZER)
  enter(shelf, name="tiny-photos", file="m.safetensors", tile=True)
  model = tokzoo.load("tiny-photos")
  assert is_tiny(model) and model.card.tile and model.card.name == "tiny-photos"
  assert model.num_parameters == sum(
    leaf.size for leaf in jax.tree.leaves(random_variables(TOKENIZER)["params"])
  )


def test_the_catalogs_hash_is_checked(shelf):
  path = save(shelf / "m.safetensors", TOKENIZER)
  enter(shelf, name="tiny", file="m.safetensors", sha256=sha256_of(path))
  assert is_tiny(tokzoo.load("tiny"))
  save(path, TOKENIZER, seed=1)  # whole, but not what was recorded
  with pytest.raises(
    TokzooError, match=r"has not the SHA-256 that the catalog records"
  ):
    tokzoo.load("tiny")


def test_a_catalog_that_is_not_sound(shelf):
  enter(shelf, name="a", file="m.safetensors", colour="red")
  with pytest.raises(TokzooError, match=r"not sound .*colour"):
    catalog()
  enter(shelf, name="a")
  with pytest.raises(TokzooError, match="'a' needs one of `file`, `hub` and `url`"):
    catalog()


def test_by_exported_file(tmp_path):
  path = save(tmp_path / "m.safetensors", TOKENIZER)
  model = tokzoo.load(path)
  assert is_tiny(model) and repr(model).startswith(f"<{path}: instella-t2i tokenizer")


def test_by_run_directory(tmp_path):
  recipe = Recipe(
    system="instella-t2i",
    name="nano",
    task=Reconstruction(model=TOKENIZER, distance="l2"),
    data=DataConfig(source="digits", channels=1, size=8, threads=0),
    batch_size=8,
    steps=1,
    optimizers={"model": Optimizer()},
  )
  train(recipe, tmp_path / "run")
  model = tokzoo.load(tmp_path / "run")
  assert isinstance(model, PretrainedTokenizer) and model.config == TOKENIZER
  tokens = model.encode(np.zeros((2, 8, 8, 1), np.uint8))
  assert model.decode(tokens).shape == (2, 8, 8, 1)


def test_by_authors_file(authors_file, tmp_path):
  model = tokzoo.load(authors_file, preset="tiny")
  assert is_tiny(model) and model.config == TOKENIZER
  with pytest.raises(TokzooError, match=r"name the published config as well \(preset"):
    tokzoo.load(authors_file)
  with pytest.raises(TokzooError, match="unknown preset 'tinny': did you mean 'tiny'"):
    tokzoo.load(authors_file, preset="tinny")
  with pytest.raises(TokzooError, match=r"of shape .* expects .*choose the preset"):
    tokzoo.load(authors_file, preset="instella-bae-512")
  (tmp_path / "w.pt").write_bytes(b"")
  with pytest.raises(TokzooError, match="in their authors' layout: name the published"):
    tokzoo.load(tmp_path / "w.pt")


def test_converted_once(authors_file, cache, monkeypatch):
  assert is_tiny(tokzoo.load(authors_file, preset="tiny"))
  (kept,) = cache.iterdir()
  loading = sys.modules["tokzoo.hub.loading"]
  read, reads = loading.read_state, []
  monkeypatch.setattr(
    loading, "read_state", lambda *words: reads.append(words) or read(*words)
  )
  assert is_tiny(tokzoo.load(authors_file, preset="tiny")) and not reads
  # A damaged copy is replaced, and a changed file is another one.
  kept.write_bytes(kept.read_bytes()[:-1])
  with pytest.warns(UserWarning, match="converted anew"):
    assert is_tiny(tokzoo.load(authors_file, preset="tiny"))
  assert len(reads) == 1
  assert is_tiny(tokzoo.load(authors_file, preset="tiny")) and len(reads) == 1
  other = bae.WEIGHTS.to_authors(random_variables(TOKENIZER, 1))
  write_safetensors(authors_file, other)
  assert not is_tiny(tokzoo.load(authors_file, preset="tiny"))


def test_a_cache_that_cannot_be_written_is_no_error(authors_file, cache):
  cache.parent.mkdir()
  cache.write_text("a file where the folder should be")
  with pytest.warns(UserWarning, match="the converted weights are not kept"):
    assert is_tiny(tokzoo.load(authors_file, preset="tiny"))


def test_a_grid_of_tokens_says_the_size_of_its_picture():
  model = tokzoo.load("llamagen-digits-nano")
  picture = np.random.default_rng(0).integers(0, 256, (12, 8, 1), np.uint8)
  tokens = model.encode(picture)
  assert tokens.grid == (6, 4) and model.decode(tokens).shape == (1, 12, 8, 1)
  np.testing.assert_array_equal(model.decode(tokens), model.reconstruct(picture))


def test_by_repository(hub, authors_file):
  authors_file.rename(hub / "model.safetensors")
  assert is_tiny(tokzoo.load("them/bae/model.safetensors", preset="tiny"))
  at_commit = tokzoo.load("them/bae/model.safetensors", preset="tiny", revision=COMMIT)
  assert is_tiny(at_commit)
  with pytest.raises(TokzooError, match=r"catalog does not know 'them/bae/model"):
    tokzoo.load("them/bae/model.safetensors")
  with pytest.raises(TokzooError, match="name the file in them/bae too"):
    tokzoo.load("them/bae", preset="tiny")


def test_by_a_repository_that_the_catalog_knows(hub, shelf, authors_file):
  authors_file.rename(hub / "model.safetensors")
  entry = {"name": "theirs", "hub": "them/bae", "path": "model.safetensors"}
  entry |= {"preset": "tiny", "sha256": sha256_of(hub / "model.safetensors")}
  enter(shelf, **entry)
  for name in ("theirs", "them/bae", "them/bae/model.safetensors"):
    assert is_tiny(tokzoo.load(name))
  enter(shelf, **{**entry, "sha256": "0" * 64})
  with pytest.raises(TokzooError, match=r"has SHA-256 .*, expected 000000000000…"):
    tokzoo.load("theirs")
  # The recorded hash is of the recorded revision alone.
  assert is_tiny(tokzoo.load("them/bae", revision=COMMIT))


def test_the_weights_themselves_beside_their_averages(
  hub, shelf, authors_file, monkeypatch
):
  averages = {
    f"ema.{key.replace('.', '')}": array
    for key, array in bae.WEIGHTS.to_authors(random_variables(TOKENIZER, 1)).items()
  }
  table = dataclasses.replace(bae.WEIGHTS, averages="ema.")
  monkeypatch.setattr(bae, "WEIGHTS", table)
  both = table.to_authors(random_variables(TOKENIZER)) | averages
  write_safetensors(hub / "model.safetensors", both)
  entry = {"hub": "them/bae", "path": "model.safetensors", "preset": "tiny"}
  enter(shelf, name="averaged", **entry)
  enter(shelf, True, name="raw", averaged=False, **entry)
  assert is_tiny(tokzoo.load("raw")) and is_tiny(tokzoo.load("raw"))
  # By its repository a file gives its averages.
  for name in ("averaged", "them/bae", "them/bae/model.safetensors"):
    other = tokzoo.load(name).fingerprint
    assert other == fingerprint(random_variables(TOKENIZER, 1))


def test_without_network_the_sentence_says_what_to_do(hub):
  with pytest.raises(TokzooError, match=r"not in the cache and the hub cannot be reac"):
    tokzoo.load("them/bae/other.safetensors", preset="instella-bae-1024")
  with pytest.raises(
    TokzooError, match=r"amd/Instella-T2I/bae/model.safetensors is not"
  ):
    tokzoo.load("instella-bae")


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(TokzooError, match=r'pip install "tokzoo\[hub\]"'):
    tokzoo.load("instella-bae")


def test_repository_errors_are_sentences(monkeypatch):
  import huggingface_hub
  from huggingface_hub import errors

  response = types.SimpleNamespace(headers={}, request=None)
  cases = [
    (errors.GatedRepoError("no", response=response), "asks you to accept its terms"),
    (errors.RepositoryNotFoundError("no", response=response), "there is no hub repos"),
    (errors.RevisionNotFoundError("no", response=response), "has no revision 'v9'"),
    (errors.EntryNotFoundError("no"), "holds no file 'w.safetensors'"),
    (OSError(28, "No space left on device"), "could not be fetched"),
  ]
  for error, message in cases:

    def fail(*_, error=error, **__):
      raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(TokzooError, match=message):
      tokzoo.load("them/bae/w.safetensors", preset="instella-bae-512", revision="v9")


def test_a_generator_and_its_tokenizer(tmp_path):
  tokenizer, generator = save_both(tmp_path)
  model = tokzoo.load(generator)
  assert isinstance(model, PretrainedGenerator) and is_tiny(model.tokenizer)
  assert model.sample(np.array([0, 2])).origin == tokzoo.load(tokenizer).origin


def test_a_generator_refuses_another_tokenizer(tmp_path):
  _, generator = save_both(tmp_path)
  other = save(tmp_path / "other.safetensors", TOKENIZER, seed=1)
  with pytest.raises(TokzooError, match="was trained on the tokens of instella-t2i@"):
    tokzoo.load(generator, tokenizer=other)
  with pytest.raises(TokzooError, match="is not a tokenizer: name the one"):
    tokzoo.load(generator, tokenizer=generator)
  lonely = save(tmp_path / "lonely.safetensors", AR)
  with pytest.raises(TokzooError, match="nothing says whose tokens it makes"):
    tokzoo.load(lonely)


def test_weights_of_another_config_are_refused(tmp_path):
  path = tmp_path / "m.safetensors"
  wider = ARConfig(**{**AR.__dict__, "width": 24})
  header = {"system": "instella-t2i", "part": "ar", "config": to_json(wider)}
  write_checkpoint(path, random_variables(AR), header)
  with pytest.raises(TokzooError, match=r"holds float32\[.* where its config asks for"):
    tokzoo.load(path, tokenizer=save(tmp_path / "t.safetensors", TOKENIZER))


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("instella-ba", "unknown checkpoint 'instella-ba': did you mean 'instella-bae'"),
    ("runs/missing/model.safetensors", "catalog does not know"),
    ("./missing", r"there is nothing at \./missing: name a file"),
    ("missing.safetensors", "there is nothing at missing.safetensors"),
  ],
)
def test_names_that_lead_nowhere(name, message):
  with pytest.raises(TokzooError, match=message):
    tokzoo.load(name)


def test_an_empty_folder_is_no_run(tmp_path):
  with pytest.raises(TokzooError, match="is no run directory"):
    tokzoo.load(tmp_path)


@pytest.mark.parametrize("name", [e.name for e in catalog().values() if e.packaged])
def test_every_packaged_checkpoint_works(name):
  entry = catalog()[name]
  model = tokzoo.load(name)  # which compares the hash
  assert entry.sha256 is not None and entry.metrics and entry.recipe
  if isinstance(model, PretrainedCodec):
    made = model.reconstruct(np.zeros(800, np.float32))
    assert made.shape == (1, 800, 1) and np.abs(made).max() < 0.1
  elif isinstance(model, PretrainedTokenizer):
    side, channels = model.config.image_size, model.config.channels
    image = np.random.default_rng(0).integers(0, 256, (2, side, side, channels))
    made = model.reconstruct(image.astype(np.uint8))
    assert made.shape == image.shape and np.isfinite(made).all()
  else:
    made = model.generate(np.arange(model.config.num_classes))
    assert len(made) == model.config.num_classes and made.std() > 0.1
