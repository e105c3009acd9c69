"""Token records of sounds: killed, continued, in pieces, and a generator that learns them."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile

import tokzoo
from tests.cli.test_tokenize_dataset import assert_same, start
from tests.codecs import CAUSAL, STEREO, save_codec, sound
from tests.models import TOKENIZER, save
from tokzoo.cli.experiments import load_experiment
from tokzoo.cli.tokenizing import encode_dataset
from tokzoo.data import DataConfig, open_source
from tokzoo.data.sources.tokens import TokenSource, read_manifest
from tokzoo.errors import TokzooError
from tokzoo.generators.llamagen import Config as LlamaGen
from tokzoo.hub import PretrainedCodec
from tokzoo.hub import codec as codecs
from tokzoo.tokens import Tokens
from tokzoo.train.tasks import Generation

RATE = 2_000
CODEC = dataclasses.replace(CAUSAL, sample_rate_hz=RATE)
"""Hop 8: 250 frames a second of 4 bits, 1, 2 or 4 codebooks: 1, 2 and 4 kbps."""
CODEC = dataclasses.replace(CODEC, bandwidths_kbps=(1.0, 2.0, 4.0))
RECORDS, PER_SHARD = 32, 8
TONES = DataConfig(
  source=f"tones:{RATE}",
  split="test",
  channels=1,
  crop="random",
  sample_rate_hz=RATE,
  seconds=0.064,
  threads=1,
)
"""16 frames."""


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> Path:
  return save_codec(tmp_path_factory.mktemp("codec") / "codec.safetensors", CODEC)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, codec) -> Path:
  """Encoded in one go, with one codebook, by this process on its eight devices."""
  out = tmp_path_factory.mktemp("straight") / "records"
  done = encode_dataset(TONES, tokzoo.load(codec), out, 8, PER_SHARD, codebooks=1)
  assert (done.records, done.shards, done.made) == (RECORDS, 4, RECORDS)
  return out


def words(codec: Path, out: Path, *more: object) -> list[str]:
  """The command that makes what `straight` has."""
  said = ("--tokenizer", codec, "--data", "tones", "--split", "test", "--out", out)
  cut = ("--seconds", 0.064, "--crop", "random", "--kbps", 1, "--threads", 1)
  size = ("--batch-size", 4, "--records-per-shard", PER_SHARD, "--json")
  return ["tokenize-dataset", *map(str, (*said, *cut, *size, *more))]


KILLED = """
import sys, time
import tokzoo
from tests.cli.test_tokenize_sound import PER_SHARD, TONES
from tokzoo.cli.tokenizing import encode_dataset

def slow(done, total):
  if done >= 12:
    print("in shard", done // PER_SHARD, flush=True)
    time.sleep(60)

encode_dataset(TONES, tokzoo.load(sys.argv[1]), sys.argv[2], 4, PER_SHARD, slow, 1)
"""


def test_records_are_the_codecs_tokens(straight, codec):
  model, source = tokzoo.load(codec), TokenSource(str(straight), "test")
  assert len(source) == RECORDS
  whole = dataclasses.replace(TONES, crop="none", seconds=None)
  tones = open_source(whole)
  found = np.stack([source[index]["ids"] for index in range(RECORDS)])
  assert found.shape == (RECORDS, 16) and len(np.unique(found, axis=0)) > 20
  labels = [int(source[index]["label"]) for index in range(RECORDS)]
  assert labels == [int(tones[index]["label"]) for index in range(RECORDS)]
  # Crops are drawn from a fixed seed: what the pipeline gives is what was encoded.
  from tokzoo.data import evaluation_batches

  batch = next(evaluation_batches(TONES, RECORDS))
  wanted = model.encode(batch["audio"], 1).ids[..., 0]
  np.testing.assert_array_equal(found, wanted)


def test_the_header_says_what_it_is(straight, codec):
  manifest, model = read_manifest(straight), tokzoo.load(codec)
  origin = {"system": "encodec", "weights": model.origin.weights}
  assert manifest["origin"] == origin and manifest["codebooks"] == 1
  assert manifest["data"]["sample_rate_hz"] == RATE
  assert manifest["data"]["seconds"] == 0.064
  assert manifest["classes"] == ["low", "middle", "high"]
  layout = manifest["layout"]
  assert (layout["kind"], layout["vocab"], layout["grid"]) == ("ids", 16, [16])
  assert layout["arrays"]["ids"] == {"dtype": "int32", "shape": [16]}


def test_killed_and_continued_has_neither_holes_nor_duplicates(
  straight, codec, tmp_path, command
):
  out = tmp_path / "records"
  process = start("-c", KILLED, str(codec), str(out))
  assert process.stdout is not None and process.stdout.readline() == "in shard 1\n"
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  process.communicate()
  assert [path.name[7:12] for path in out.glob("tokens-*.json")] == ["00000"]
  with pytest.raises(TokzooError, match=r"has no manifest\.json"):
    TokenSource(str(out), "test")
  outcome = command(*words(codec, out))
  assert outcome.code == 0, outcome.err
  assert json.loads(outcome.out)["made_here"] == RECORDS - PER_SHARD
  assert_same(out, straight)


def test_another_rate_or_codec_is_refused(straight, codec, tmp_path, command):
  out = tmp_path / "records"
  shutil.copytree(straight, out)
  said = command(*words(codec, out, "--kbps", 2))
  assert said.code == 2 and "whose codebooks is 1, not 2" in said.err
  other = save_codec(tmp_path / "other.safetensors", CODEC, seed=1)
  said = command(*words(other, out))
  assert said.code == 2 and "whose origin.weights is" in said.err


def test_all_of_every_sound_in_pieces(codec, tmp_path, command):
  """Sounds of 1.2 and 0.3 s, one at another rate, are four pieces of half a second."""
  sounds, out = tmp_path / "sounds" / "train", tmp_path / "records"
  sounds.mkdir(parents=True)
  long = sound(1.5)[:2_400]
  soundfile.write(sounds / "a.wav", long, RATE)
  soundfile.write(sounds / "b.wav", sound(0.75, seed=1)[:1_200], 2 * RATE)
  said = ("--tokenizer", codec, "--data", sounds.parent, "--seconds", 0.5, "--json")
  done = command("tokenize-dataset", *said, "--out", out)
  assert done.code == 0, done.err
  source, model = TokenSource(str(out), "train"), tokzoo.load(codec)
  assert json.loads(done.out)["records"] == len(source) == 4
  stored = soundfile.read(sounds / "a.wav", dtype="float32")[0]
  padded = np.pad(stored, (0, 600)).reshape(3, 1_000, 1)
  found = [source[index]["ids"] for index in range(4)]
  np.testing.assert_array_equal(np.stack(found[:3]), model.encode(padded).ids)
  assert found[3].shape == (125, 4)


def test_long_records_are_coded_in_chunks_on_all_devices(codec, tmp_path, monkeypatch):
  data, model = dataclasses.replace(TONES, crop="none", seconds=0.5), tokzoo.load(codec)
  encode_dataset(data, model, tmp_path / "whole", codebooks=2)
  monkeypatch.setattr(codecs, "CHUNK_S", 0.1)
  encode_dataset(data, tokzoo.load(codec), tmp_path / "chunks", codebooks=2)
  whole, chunks = (
    TokenSource(str(tmp_path / name), "test") for name in ("whole", "chunks")
  )
  for index in range(4):
    np.testing.assert_array_equal(whole[index]["ids"], chunks[index]["ids"])


def test_scales_are_kept(tmp_path):
  stereo = dataclasses.replace(STEREO, sample_rate_hz=RATE)
  path = save_codec(tmp_path / "stereo.safetensors", stereo)
  data = dataclasses.replace(TONES, channels=2, crop="none", seconds=1.0)
  out, model = tmp_path / "records", tokzoo.load(path)
  encode_dataset(data, model, out)
  record = TokenSource(str(out), "test")[0]
  tones = open_source(data)[0]["audio"]
  wanted = model.encode(np.repeat(tones, 2, 1))
  np.testing.assert_array_equal(record["ids"], wanted.ids[0])
  np.testing.assert_allclose(record["scale"], wanted.scale[0], rtol=1e-6)


def test_flat_records_are_the_same_codes(codec, tmp_path):
  data, model = dataclasses.replace(TONES, seconds=0.032), tokzoo.load(codec)
  encode_dataset(data, model, tmp_path / "flat", codebooks=2, is_flat=True)
  encode_dataset(data, model, tmp_path / "levels", codebooks=2)
  flat, levels = (
    TokenSource(str(tmp_path / name), "test") for name in ("flat", "levels")
  )
  assert flat.layout["vocab"] == 32 and flat.layout["grid"] == [16]
  row, ids = flat[3]["ids"], levels[3]["ids"]
  assert ids.shape == (8, 2) and row.shape == (16,)
  np.testing.assert_array_equal(row[0::2], ids[:, 0])
  np.testing.assert_array_equal(row[1::2], 16 + ids[:, 1])
  rows = (
    Tokens.from_ids(row[None], 32, origin=model.origin),
    Tokens.from_ids(ids[None], 16, origin=model.origin),
  )
  np.testing.assert_array_equal(*(model.decode(each) for each in rows))
  with pytest.raises(TokzooError, match="3 ids of 32 are not whole frames"):
    model.decode(Tokens.from_ids(row[None, :3], 32, origin=model.origin))


@pytest.mark.parametrize("codebooks", [1, 2])
def test_a_generator_learns_them_and_sounds(codec, tmp_path, command, codebooks):
  """Sixteen frames of one code, or eight of two."""
  straight, run = tmp_path / "records", tmp_path / "run"
  data = dataclasses.replace(TONES, seconds=0.064 / codebooks)
  encode_dataset(data, tokzoo.load(codec), straight, codebooks=codebooks, is_flat=True)
  sizes = {"width": 16, "layers": 1, "heads": 2, "num_classes": 3, "multiple_of": 8}
  model = LlamaGen(grid=4, vocab=16 * codebooks, **sizes)
  nano = load_experiment("llamagen").RECIPES["nano"]()
  recipe = dataclasses.replace(
    nano,
    task=Generation(model=model),
    data=DataConfig(source=f"tokens:{straight}", split="test", threads=1),
    batch_size=8,
    steps=2,
    optimizers={
      "model": dataclasses.replace(
        nano.optimizers["model"], warmup_steps=0, schedule="constant"
      )
    },
    evaluators={},
    tokenizer=None,
    init_from=None,
    sampling={},
  )
  from tokzoo.cli.training import run_recipe

  run_recipe(recipe, run)
  assert (run / "tokenizer.txt").read_text().strip() == str(tokzoo.load(codec).origin)
  loaded = tokzoo.load(run, tokenizer=codec)
  assert isinstance(loaded.tokenizer, PretrainedCodec)
  tokens = loaded.sample(np.array([0, 2]), seed=1)
  assert tokens.ids.shape == (2, 16)
  assert loaded.tokenizer.decode(tokens).shape == (2, 128 // codebooks, 1)
  out = tmp_path / "said"
  said = ("--tokenizer", codec, "--label", 2, "--num", 2, "--out", out, "--json")
  done = command("generate", run, *said)
  assert done.code == 0, done.err
  assert json.loads(done.out)["seconds"] == 0.064 / codebooks
  wave, rate = soundfile.read(out / "class-2" / "0001.wav")
  assert (rate, len(wave)) == (RATE, 128 // codebooks)


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (("--size", 8), "--size came"),
    (("--flip",), "--flip came"),
    (("--kbps", 3), "choose one of 1, 2, 4"),
    (("--crop", "center"), "came without --seconds"),
    (("--data", "digits"), "takes sound, but the data has image"),
  ],
)
def test_what_does_not_go_together(codec, tmp_path, command, more, message):
  said = ("--tokenizer", codec, "--data", "tones", "--out", tmp_path / "x")
  done = command("tokenize-dataset", *said, *more)
  assert done.code == 2 and message in done.err and done.err.count("\n") == 1
  assert not (tmp_path / "x").exists()


def test_pictures_want_no_seconds(tmp_path, command):
  tokenizer = save(tmp_path / "pictures.safetensors", TOKENIZER)
  said = ("--tokenizer", tokenizer, "--out", tmp_path / "x")
  done = command("tokenize-dataset", *said, "--data", "digits", "--seconds", 1)
  assert done.code == 2 and "--seconds came" in done.err
  done = command("tokenize-dataset", *said, "--data", "digits", "--crop", "pieces")
  assert done.code == 2 and "digits has no sounds" in done.err
  done = command("tokenize-dataset", *said, "--data", "tones:2000")
  assert done.code == 2 and "takes pictures, but the data has audio" in done.err
