"""A trained Flow-Omni: loaded by its run, sampled from Python and by `tokzoo generate`."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

import tokzoo
from tests.generators.test_flow_omni import TINY
from tests.models import TOKENIZER, save
from tokzoo.cli.experiments import load_experiment
from tokzoo.data.packaged import sound_crops
from tokzoo.errors import TokzooError
from tokzoo.hub import PretrainedSpeaker
from tokzoo.tokens import load_tokens
from tokzoo.train import train
from tokzoo.train.tasks import Generation

MODEL = dataclasses.replace(TINY, sample_rate_hz=2_000)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The nano recipe on a tiny model, two steps."""
  nano = load_experiment("flow-omni").RECIPES["nano"]()
  recipe = dataclasses.replace(
    nano,
    task=Generation(model=MODEL),
    data=sound_crops("train", 2_000, 0.1),
    batch_size=8,
    steps=2,
    optimizers={"model": dataclasses.replace(nano.optimizers["model"], warmup_steps=0)},
    evaluators={},
  )
  out = tmp_path_factory.mktemp("runs") / "flow-omni"
  train(recipe, out)
  return out


@pytest.fixture(scope="module")
def speaker(run):
  return tokzoo.load(run)


def test_a_run_is_loaded_and_speaks(speaker, run):
  assert isinstance(speaker, PretrainedSpeaker) and speaker.config == MODEL
  tokens = speaker.sample(3, seed=1, frames=9, steps=2)
  assert tokens.values.shape == (3, 9, 6) and tokens.origin == speaker.origin
  again = speaker.sample(3, seed=1, frames=9, steps=2)
  np.testing.assert_array_equal(tokens.values, again.values)
  other = speaker.sample(3, seed=2, frames=9, steps=2)
  assert not np.allclose(tokens.values, other.values)
  waves = speaker.decode(tokens)
  spoken = np.asarray(tokens.mask).sum(1)
  assert [wave.shape for wave in waves] == [(32 * n, 1) for n in spoken]
  assert all(np.isfinite(wave).all() and np.abs(wave).max() <= 1 for wave in waves)
  whole = tokens.replace(mask=None)
  assert speaker.decode(whole)[0].shape == (9 * 32, 1)


def test_it_speaks_the_given_text_and_features(speaker):
  draw = np.random.default_rng(0)
  condition = {"text": np.full((2, 3), 4), "features": draw.normal(size=(2, 5, 5))}
  tokens = speaker.sample(condition, frames=4, steps=1)
  assert tokens.values.shape == (2, 4, 6)
  plain = speaker.sample({"text": np.full((2, 3), 4)}, frames=4, steps=1)
  assert not np.allclose(tokens.values, plain.values)


@pytest.mark.parametrize(
  ("condition", "words"),
  [
    (0, "make at least 1"),
    ({}, "the condition has nothing"),
    ({"label": np.zeros(2, int)}, "the condition has label"),
    ({"text": np.zeros((2, 3))}, r"text is int\[B, T\]; this is float64"),
    ({"text": np.full((2, 3), 11)}, "text tokens are 0 to 10"),
    ({"features": np.zeros((2, 3, 4))}, r"features are float\[B, F, 5\]"),
    ({"features": np.full((2, 3, 5), np.nan)}, "hold NaN"),
    (
      {"text": np.zeros((2, 3), int), "features": np.zeros((1, 3, 5))},
      "differ in their number of rows",
    ),
  ],
)
def test_conditions_that_do_not_fit(speaker, condition, words):
  with pytest.raises(TokzooError, match=words):
    speaker.sample(condition)


def test_what_else_is_refused(speaker, run, tmp_path):
  with pytest.raises(TokzooError, match="it has frames, steps and guidance"):
    speaker.sample(1, temperature=0.5)
  tokens = speaker.sample(1, frames=3, steps=1)
  stranger = dataclasses.replace(tokens.origin, weights="0" * 64)
  with pytest.raises(TokzooError, match="were made by"):
    speaker.decode(tokens.replace(origin=stranger))
  pictures = save(tmp_path / "pictures.safetensors", TOKENIZER)
  with pytest.raises(TokzooError, match="makes its own tokens"):
    tokzoo.load(run, tokenizer=pictures)


def test_generate_writes_sounds(command, speaker, run, tmp_path):
  out = tmp_path / "said"
  asked = ("--num", 2, "--seed", 3, "--steps", 2, "--tokens", 9)
  done = command("generate", run, *asked, "--out", out, "--json")
  assert done.code == 0, done.err
  told = json.loads(done.out)
  assert told["settings"] == {"steps": 2, "frames": 9} and len(told["seconds"]) == 2
  tokens, _ = load_tokens(out / "frames.tok", speaker.origin)
  drawn = speaker.sample(2, seed=3, steps=2, frames=9)
  kept = np.asarray(drawn.mask)
  np.testing.assert_array_equal(np.asarray(tokens.values)[kept], drawn.values[kept])
  for index, seconds in enumerate(told["seconds"]):
    wave, rate = soundfile.read(out / f"{index:04d}.wav")
    assert rate == 2_000 and len(wave) == round(seconds * rate) > 0
  assert (out / "sheet.png").stat().st_size > 100
  assert json.loads((out / "samples.json").read_text()) == told


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (("generate", "RUN", "--label", "3"), "--label came"),
    (("generate", "RUN", "--temperature", "0.5"), "--temperature came"),
    (("generate", "RUN", "--num", "0"), "at least 1 is made"),
    (("encode", "digits", "--model", "RUN", "--out", "x"), "makes sound of its own"),
    (("evaluate", "RUN", "--data", "digits"), "makes sound of its own"),
  ],
)
def test_commands_for_pictures_refuse_it(command, run, words, message):
  done = command(*(run if word == "RUN" else word for word in words))
  assert done.code == 2 and message in done.err and done.err.count("\n") == 1
