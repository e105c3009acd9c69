"""A run as a file, the file as a run again, and runs that start from it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import tokzoo
from tests.cli.test_commands import EXPERIMENT
from tests.models import AR, TOKENIZER, save
from tokzoo.train import load_run
from tokzoo.train.checkpoint import Checkpoints
from tokzoo.weights import flatten

TOKENIZER_RECIPE = ("train", "tiny.py", "--recipe", "tokenizer", "--out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  made = tmp_path_factory.mktemp("exporting")
  (made / "tiny.py").write_text(EXPERIMENT)
  return made


@pytest.fixture
def run(command, folder, monkeypatch):
  """Runs a command in the folder; it must succeed."""
  monkeypatch.chdir(folder)

  def call(*words: object):
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out) if "--json" in words else outcome

  return call


@pytest.fixture
def file(run, folder) -> Path:
  """Three steps of a tokenizer, exported."""
  if not (folder / "a.safetensors").exists():
    run(*TOKENIZER_RECIPE, "run", "--steps", 3, "--optimizers.model.warmup-steps", 2)
    run("export", "run", "--out", "a.safetensors")
  return folder / "a.safetensors"


def arrays_of(run: Path) -> tuple[dict, dict]:
  checkpoints = Checkpoints(run / "checkpoints", read_only=True)
  try:
    return checkpoints.load(lambda names: names)
  finally:
    checkpoints.close()


def test_there_and_back(run, folder, file):
  outcome = run("export", file, "--out", "again")
  assert "a run after step 3, whose optimizer begins anew" in outcome.err
  ours, theirs = (load_run(folder / name) for name in ("again", "run"))
  assert ours[2] == theirs[2] == 3 and ours[0] == theirs[0]
  for path, leaf in flatten(theirs[1]).items():
    np.testing.assert_array_equal(flatten(ours[1])[path], leaf, err_msg=path)
  assert tokzoo.load(folder / "again").fingerprint == tokzoo.load(file).fingerprint
  # Same place in the data and in the schedule; only the moments are as at the beginning.
  found, about = arrays_of(folder / "again")
  wanted, about_wanted = arrays_of(folder / "run")
  assert found.keys() == wanted.keys()
  assert about["data"] == about_wanted["data"]
  differing = {name for name in wanted if not np.array_equal(found[name], wanted[name])}
  assert differing and all(
    "/mu/" in n or "/nu/" in n or "count" in n for n in differing
  )
  counts = {name: int(array) for name, array in found.items() if "count" in name}
  assert sorted(counts.values()) == [0, 3]


def test_such_a_run_goes_on(run, folder, file):
  run("export", file, "--out", "on")
  words = (*TOKENIZER_RECIPE, "on", "--optimizers.model.warmup-steps", 2, "--json")
  told = run(*words, "--steps", 5)
  assert told["step"] == 5 and load_run(folder / "on")[2] == 5
  first = json.loads((folder / "on" / "log.jsonl").read_text().splitlines()[0])
  assert first["step"] > 3


def test_a_run_starts_from_a_file(run, folder, file):
  """At a rate of 0 a step changes nothing: the new run has the file's weights."""
  still = ("--optimizers.model.peak-lr", 0, "--steps", 1)
  run(*TOKENIZER_RECIPE, "from", "--init-from", file, *still)
  assert tokzoo.load(folder / "from").fingerprint == tokzoo.load(file).fingerprint


def test_what_cannot_be_made_a_run(command, run, folder, file):
  said = command("export", file, "--out", "run")
  assert said.code == 2 and "holds files: name a new folder" in said.err
  save(folder / "bare.safetensors", AR, tokenizer="x")
  said = command("export", "bare.safetensors", "--out", "new")
  assert said.code == 2 and "does not say how it was trained" in said.err
  assert "--init-from bare.safetensors" in said.err and not (folder / "new").exists()
  said = command("export", "run", "--out", "a.pt")
  assert said.code == 2 and "ends in .safetensors" in said.err
  said = command(*TOKENIZER_RECIPE, "gs://bucket/run")
  assert said.code == 2 and "is remote, but a run is kept in a folder" in said.err


def test_a_run_refuses_the_tokens_of_another_tokenizer(command, run, folder, file):
  save(folder / "other.safetensors", TOKENIZER, seed=1)
  for model, out in (("a.safetensors", "ours"), ("other.safetensors", "theirs")):
    words = ("--tokenizer", model, "--data", "digits", "--split", "test", "--out", out)
    run("tokenize-dataset", *words)
  generator = (
    "train",
    "tiny.py",
    "--recipe",
    "generator",
    "--steps",
    2,
    "--out",
    "gen",
  )
  split = ("--data.split", "test", "--evaluators.held_out.data.split", "test")
  source = lambda name: (  # noqa: E731
    *("--data.source", f"tokens:{name}", *split),
    *("--evaluators.held_out.data.source", f"tokens:{name}"),
  )
  said = command(*generator, "--tokenizer", "a.safetensors", *source("theirs"))
  assert said.code == 2 and "theirs holds the tokens of instella-t2i@" in said.err
  run(*generator, "--tokenizer", "None", *source("ours"))
  origin = str(tokzoo.load(folder / "a.safetensors").origin)
  assert (folder / "gen" / "tokenizer.txt").read_text().strip() == origin
  said = command(*generator, "--tokenizer", "None", *source("theirs"))
  assert said.code == 2 and f"holds a run on the tokens of {origin}" in said.err
  model = tokzoo.load(folder / "gen", tokenizer=folder / "a.safetensors")
  assert model.sample(np.arange(2), seed=0).batch == 2
  assert jax.tree.leaves(model.variables)
