"""Every command at its smallest: trained, exported, encoded, sampled, measured, converted."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tokzoo
from tests.models import TOKENIZER
from tokzoo.cli.main import COMMANDS
from tokzoo.errors import TokzooError
from tokzoo.tokenizers.image import instella_t2i as bae
from tokzoo.weights import fingerprint

EXPERIMENT = '''
"""A tokenizer and a generator of digits, as small as can be."""

import dataclasses

from tests.models import AR, TOKENIZER
from tokzoo.data import DataConfig
from tokzoo.train import Evaluator, Optimizer, Recipe
from tokzoo.train.tasks import Generation, Reconstruction


def tokenizer():
  data = DataConfig(source="digits", channels=1, size=8, threads=0)
  return Recipe(
    system="instella-t2i",
    name="tokenizer",
    task=Reconstruction(model=TOKENIZER, distance="l2"),
    data=data,
    batch_size=64,
    steps=2,
    optimizers={"model": Optimizer()},
    evaluators={"held_out": Evaluator(dataclasses.replace(data, split="test"), batches=1)},
  )


def generator():
  return dataclasses.replace(
    tokenizer(),
    name="generator",
    task=Generation(model=dataclasses.replace(AR, num_classes=10)),
    tokenizer="tokenizer.safetensors",
    sampling={"guidance": 1.0, "temperature": 1.0},
  )


RECIPES = {"tokenizer": tokenizer, "generator": generator}
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  """Where the commands of this module run, one after the other."""
  made = tmp_path_factory.mktemp("commands")
  (made / "tiny.py").write_text(EXPERIMENT)
  return made


@pytest.fixture
def run(command, folder, monkeypatch):
  """Runs a command in the folder; it must succeed. With --json, returns what it printed."""
  monkeypatch.chdir(folder)

  def call(*words: object):
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out) if "--json" in words else outcome.out

  return call


@pytest.fixture
def tokenizer(run, folder) -> Path:
  """A trained and exported tokenizer."""
  path = folder / "tokenizer.safetensors"
  if not path.exists():
    told = run("train", "tiny.py", "--recipe", "tokenizer", "--out", "run", "--json")
    assert told["step"] == 2 and told["stopped_by"] is None
    assert set(told["evaluations"]) == {"held_out"}
    run("export", "run", "--out", path, "--weights-licence", "CC0-1.0")
  return path


@pytest.fixture
def generator(run, folder, tokenizer) -> Path:
  """A trained and exported generator of its tokens."""
  path = folder / "generator.safetensors"
  if not path.exists():
    run("train", "tiny.py", "--recipe", "generator", "--out", "gen", "--steps", 3)
    run("export", "gen", "--out", path)
  return path


def picture(path: Path, height: int = 8, width: int = 8, seed: int = 0) -> Path:
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
  Image.fromarray(pixels).save(path)
  return path


def test_list(run):
  systems = run("list", "--json")
  wanted = {"slug", "title", "kind", "modality", "recipes", "checkpoints"}
  assert systems and all(wanted <= set(system) for system in systems)
  ours = next(system for system in systems if system["slug"] == "instella-t2i")
  assert ours["recipes"][0] == "nano" and ours["recipes"][-1] == "diffusion-t2i"
  assert ours["modality"] == "image" and "instella-bae" in ours["checkpoints"]
  assert "instella-t2i" in run("list")


def test_the_last_recipe_is_the_largest():
  from tokzoo.cli.experiments import load_experiment
  from tokzoo.hub import abstract_variables
  from tokzoo.weights import flatten

  def size(make) -> int:
    shapes = flatten(abstract_variables(make().task.model)).values()
    return sum(leaf.size for leaf in shapes)

  sizes = [size(make) for make in load_experiment("instella-t2i").RECIPES.values()]
  assert sizes[-1] == max(sizes)


@pytest.mark.parametrize(
  ("name", "key"),
  [
    ("instella-t2i", "parts"),
    ("instella-t2i/nano", "optimizers"),
    ("instella-bae-1024", "width"),
    ("instella-bae", "weights_licence"),
  ],
)
def test_show(run, name, key):
  assert key in run("show", name, "--json")
  assert run("show", name).strip()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_every_command(command, name):
  outcome = command(name, "--help")
  assert outcome.code == 0 and f"tokzoo {name}" in outcome.out and outcome.err == ""


def test_help_and_version(command):
  for words in ((), ("--help",), ("help",)):
    said = command(*words).out
    assert all(name in said for name in COMMANDS)
  assert tokzoo.__version__ in command("--version").out


def test_help_of_a_recipe_lists_its_fields(command):
  said = command("train", "instella-t2i", "--recipe", "nano-digits", "--help").out
  assert "--model.width" in said and "--optimizers.model.peak-lr" in said
  assert all(
    word in command("data", "bench", "--help").out for word in ("--size", "STR")
  )


def test_a_run_is_continued_and_options_reach_the_recipe(run, folder, tokenizer):
  words = ("train", "tiny.py", "--recipe", "tokenizer", "--out", "run", "--json")
  assert run(*words, "--steps", 4)["step"] == 4
  assert tokzoo.load(folder / "run").config == TOKENIZER
  recipe = json.loads((folder / "run" / "recipe.json").read_text())
  assert recipe["steps"] == 4


def test_exports_say_where_they_come_from(folder, tokenizer, generator):
  model = tokzoo.load(generator)
  assert model.tokenizer.fingerprint == tokzoo.load(tokenizer).fingerprint
  assert model.card.header["tokenizer_origin"] == str(model.tokenizer.origin)
  assert model.card.sampling == {"guidance": 1.0, "temperature": 1.0}
  assert model.card.header["step"] == 3
  assert tokzoo.load(tokenizer).card.weights_licence == "CC0-1.0"
  # The run itself loads as well, and remembers its tokenizer.
  again = tokzoo.load(folder / "gen", tokenizer=tokenizer)
  assert again.fingerprint == model.fingerprint


def test_tokens_of_a_generators_run_are_not_silently_stale(
  command, run, folder, generator
):
  words = ("train", "tiny.py", "--recipe", "generator", "--out", "gen")
  said = command(*words, "--steps", 5, "--data.repeat", 2)
  assert said.code == 2 and "whose data.repeat is 1, not 2" in said.err


def test_encode_and_decode_a_picture(run, folder, tokenizer):
  words = ("--model", tokenizer, "--out")
  told = run("encode", picture(folder / "a.png"), *words, "a.tok", "--json")
  assert told["tokens"] == 2 and told["bits_per_pixel"] == 80 / 64
  assert told["bytes"] == 10
  run("decode", "a.tok", *words, "made.png")
  with Image.open(folder / "made.png") as made:
    assert made.size == (8, 8) and made.mode == "L"
  np.save(folder / "a.npy", np.asarray(Image.open(folder / "a.png"))[..., None])
  run("encode", "a.npy", *words, "b.tok")
  assert (folder / "a.tok").read_bytes() == (folder / "b.tok").read_bytes()


def test_encode_a_data_set_and_train_on_its_tokens(run, folder, tokenizer):
  words = ("--model", tokenizer, "--split", "test", "--out", "records", "--json")
  told = run("encode", "digits", *words)
  assert told["records"] > 300
  told = run(
    *("train", "tiny.py", "--recipe", "generator", "--out", "from-records", "--json"),
    *("--data.source", "tokens:records", "--data.split", "test", "--steps", 3),
  )
  kept = (folder / "from-records" / "tokenizer.txt").read_text().strip()
  assert kept == str(tokzoo.load(tokenizer).origin)


def test_reconstruct(run, folder, tokenizer):
  (folder / "pictures").mkdir(exist_ok=True)
  picture(folder / "pictures" / "a.png")
  picture(folder / "pictures" / "b.webp", 16, 8)
  words = ("reconstruct", "pictures", "--model", tokenizer, "--out", "made")
  told = run(*words, "--json")
  rows = told["pictures"]
  assert [row["picture"] for row in rows] == ["a.png", "b.webp"]
  assert json.loads((folder / "made" / "numbers.json").read_text()) == told
  # 16 x 8 pixels are filled up to two tiles only where a model cuts tiles.
  assert [row["bytes"] for row in rows] == [10, 10]
  assert all(row["jpeg_bytes"] > 10 and row["ssim"] is None for row in rows)
  mean = (rows[0]["psnr_db"] + rows[1]["psnr_db"]) / 2
  assert told["models"][0]["psnr_db"] == pytest.approx(mean)
  made = {path.name for path in (folder / "made").iterdir()}
  assert made == {"a.png", "b.png", "sheet.png", "numbers.json"}
  assert "a.png" in run(*words)


def test_reconstruct_with_several_models(run, command, folder, tokenizer):
  (folder / "photos").mkdir(exist_ok=True)
  for seed, name in enumerate(("a.png", "b.png")):
    picture(folder / "photos" / name, 40, 30, seed)
  models = f"{tokenizer},instella-digits-nano"
  words = ("reconstruct", "photos", "--model", models, "--size", 16, "--out", "both")
  told = run(*words, "--json")
  assert [m["model"] for m in told["models"]] == models.split(",")
  assert len(told["pictures"]) == 4 and all(r["ssim"] < 1 for r in told["pictures"])
  with Image.open(folder / "both/instella-digits-nano/b.png") as made:
    assert made.size == (16, 16)
  # A row of two pictures, a column of the originals and three for each model.
  with Image.open(folder / "both" / "sheet.png") as shown:
    assert shown.width == 7 * (192 + 4)
  said = command(
    "reconstruct", "photos", "--model", f"{tokenizer},instella-photos-nano"
  )
  assert said.code == 2 and "different numbers of channels (1, 3)" in said.err


def test_a_number_of_tokens_that_a_model_does_not_make(command, folder, tokenizer):
  words = ("encode", picture(folder / "a.png"), "--model", tokenizer, "--out", "k.tok")
  said = command(*words, "--tokens", 1)
  assert said.code == 2 and "tokens" in said.err and not (folder / "k.tok").exists()
  said = command("encode", "digits", "--tokens", 1, "--out", "records2")
  assert said.code == 2 and "--tokens 1 came with a data set" in said.err


def test_generate(run, folder, generator):
  words = ("generate", generator, "--classes", 1, 7, "--num", 3, "--json")
  told = run(*words, "--out", "samples")
  assert told["classes"] == [1, 7] and told["settings"]["guidance"] == 1.0
  files = sorted((folder / "samples").rglob("*.png"))
  assert len(files) == 7 and json.loads((folder / "samples/samples.json").read_text())
  with Image.open(folder / "samples/class-7/0002.png") as image:
    assert image.size == (8, 8)
  again = run(*words, "--out", "again")
  assert _bytes(folder / "again") == _bytes(folder / "samples") != {}
  # Each option alone changes what is drawn.
  for option, value in (("--seed", 1), ("--guidance", 9), ("--temperature", 0.01)):
    run(*words, "--out", "other", option, value)
    assert _bytes(folder / "other") != _bytes(folder / "samples"), option
  assert again["tokenizer"] == told["tokenizer"]
  assert "30 pictures" in run("generate", generator, "--num", 3, "--out", "all")
  said = run(
    "generate", "--model", generator, "--label", 4, "--num", 7, "--out", "g.png"
  )
  assert "7 pictures on the sheet g.png" in said
  with Image.open(folder / "g.png") as grid:
    assert grid.size == (3 * 68, 3 * 68)


def test_generate_refuses_a_setting_that_the_model_lacks(command, generator):
  said = command("generate", generator, "--steps", 5)
  assert said.code == 2 and "cannot be sampled with these settings" in said.err


def test_evaluate_a_tokenizer(run, tokenizer):
  told = run("evaluate", tokenizer, "--data", "digits", "--num", 70, "--json")
  assert told["pictures"] == 70 and told["split"] == "test" and told["data"] == "digits"
  assert told["metrics"]["bits_per_pixel"] == 80 / 64
  assert 0 <= told["metrics"]["bits/mean"] <= 1
  assert "ssim" not in told["metrics"]  # the digits are smaller than its window
  model = tokzoo.load(tokenizer)
  from tokzoo.data import DataConfig, open_source

  source = open_source(DataConfig(source="digits", split="test", channels=1))
  images = np.stack([source[i]["image"] for i in range(70)])
  made = np.round((model.reconstruct(images) + 1) * 127.5)
  errors = ((made - images) ** 2).mean((1, 2, 3))
  expected = np.mean(10 * np.log10(255**2 / errors))
  assert told["metrics"]["psnr/mean_db"] == pytest.approx(expected, abs=1e-3)


def test_evaluate_pictures_of_any_size_tile_by_tile(run, folder):
  from tests.models import save

  save(folder / "tiles.safetensors", TOKENIZER, tile=True)
  place = folder / "any-size" / "test"
  place.mkdir(parents=True)
  (folder / "any-size" / "train").mkdir()
  picture(place / "a.png", 24, 17)
  picture(place / "b.png", 12, 40)
  told = run("evaluate", "tiles.safetensors", "--data", "any-size", "--json")
  assert told["pictures"] == 2 and 0 < told["metrics"]["ssim"] < 1
  # 3 x 3 and 2 x 5 tiles of two tokens of 40 bits; the tiles reach over the edge.
  assert told["metrics"]["bits_per_pixel"] == pytest.approx(19 * 80 / (24 * 17 + 480))


def test_evaluate_a_generator(run, command, generator, monkeypatch):
  monkeypatch.setattr("tokzoo.cli.evaluating.find_network", lambda _: None)
  words = ("evaluate", generator, "--data", "digits", "--num", 100, "--json")
  told = run(*words)
  # Nats per bit; a tiny model after three steps knows little.
  assert 0.3 < told["metrics"]["loss"] < 1.2 and told["features"] is None
  assert run(*words) == told
  assert "no Frechet distance" in command(*words).err


def test_evaluate_with_a_feature_network(run, generator, tokenizer, monkeypatch):
  """The distance bears the name of its network; the network's own tests are elsewhere."""
  monkeypatch.setattr("tokzoo.cli.evaluating.find_network", lambda _: _network())
  words = ("--data", "digits", "--num", 40, "--json")
  generated = run("evaluate", generator, *words)
  assert generated["metrics"]["FD-means"] > 0
  assert generated["features"] == "means, as they come"
  rebuilt = run("evaluate", tokenizer, *words)
  assert rebuilt["metrics"]["rFD-means"] > 0 and "FID" not in str(rebuilt)


def test_convert_there_and_back(run, folder, tokenizer, monkeypatch):
  monkeypatch.setitem(bae.PRESETS, "tiny", TOKENIZER)
  words = ("convert", tokenizer, "--to", "authors", "--out", "authors.safetensors")
  report = run(*words, "--json")
  model = tokzoo.load(tokenizer)
  assert report["parameters"] == model.num_parameters
  assert {"key", "path", "shape", "transform"} == set(report["rows"][0])
  words = ("convert", "authors.safetensors", "--preset", "tiny", "--out")
  back = run(*words, "ours.safetensors", "--system", "instella-t2i", "--json")
  assert len(back["rows"]) == len(report["rows"])
  assert tokzoo.load(folder / "ours.safetensors").fingerprint == model.fingerprint
  assert fingerprint(model.variables) == model.fingerprint
  assert "38 arrays" in run(*words, "again.safetensors")
  again, ours = (folder / f"{name}.safetensors" for name in ("again", "ours"))
  assert again.read_bytes() == ours.read_bytes()


def test_data_check(run, command, folder):
  report = run("data", "check", "digits", "--records", 20, "--json")
  assert report["read"] == 20 and report["classes"] and not report["bad"]
  place = folder / "with-bad"
  place.mkdir()
  picture(place / "good.png")
  (place / "bad.png").write_bytes(b"no picture")
  outcome = command("data", "check", place, "--json")
  assert outcome.code == 1
  assert [Path(name).name for name in json.loads(outcome.out)["bad"]] == ["bad.png"]


def test_data_prepare_and_bench(run, folder):
  report = run("data", "prepare", "digits", "--out", "prepared", "--json")
  assert report["manifest"]["splits"]["train"]["records"] > 1000
  assert run("data", "check", "prepared", "--digests", "--json")["bad"] == {}
  speed = run("data", "bench", "prepared", "--seconds", 0.1, "--threads", 0, "--json")
  assert speed["records_per_second"] > 0 and speed["shape"] == [8, 8, 3]
  assert "records per second" in run("data", "bench", "digits", "--seconds", 0.1)
  assert "tokzoo data check" in run("data")


def test_every_name_in_the_table_of_commands_is_there():
  import importlib

  for name, (module, about) in COMMANDS.items():
    assert callable(
      getattr(
        importlib.import_module(f"tokzoo.cli.{module}"), f"run_{name.replace('-', '_')}"
      )
    )
    assert about.endswith(".")


def test_help_does_not_wait_for_jax():
  code = """
import sys
from tokzoo.cli.main import main
assert main(["--help"]) == 0 and "jax" not in sys.modules
import tokzoo
assert callable(tokzoo.load) and "jax" in sys.modules
"""
  subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_bug_still_looks_like_one(command, monkeypatch):
  """Only a user's mistake is a sentence; anything else keeps its traceback."""
  monkeypatch.setattr("tokzoo.cli.zoo.describe", lambda slug: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    command("list")

  def mistaken(slug):
    raise TokzooError("one sentence.")

  monkeypatch.setattr("tokzoo.cli.zoo.describe", mistaken)
  assert command("list") == (2, "", "tokzoo: one sentence.\n")


def _bytes(folder: Path) -> dict[str, bytes]:
  """The pictures under a folder."""
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}


def _network():
  """A feature network whose features are the mean colours."""
  import flax.linen as nn

  from tokzoo.metrics.features import FeatureNetwork, Features

  class Means(nn.Module):
    def __call__(self, images):
      means = images.mean((1, 2))
      return Features(means, means, means)

  return FeatureNetwork("means", "FD-means", "as they come", Means(), {})
