"""Token records of a data set: killed, continued, by several hosts, and who may read them."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tokzoo
from tests.models import TOKENIZER, save
from tests.train.test_killed import ROOT, environment
from tokzoo.cli.tokenizing import encode_dataset
from tokzoo.data import DataConfig, open_source
from tokzoo.data.sources.tokens import TokenSource, read_manifest
from tokzoo.errors import TokzooError

RECORDS = 2 * 355
PER_SHARD = 64
SHARDS = -(-RECORDS // PER_SHARD)
DIGITS = DataConfig(
  source="digits", split="test", channels=1, size=8, crop="random", repeat=2, threads=1
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
  return save(tmp_path_factory.mktemp("model") / "tokenizer.safetensors", TOKENIZER)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tokenizer) -> Path:
  """Encoded in one go, by this process on its eight devices."""
  out = tmp_path_factory.mktemp("straight") / "records"
  told = []
  done = encode_dataset(
    DIGITS, tokzoo.load(tokenizer), out, 50, PER_SHARD, lambda *step: told.append(step)
  )
  assert (done.records, done.shards, done.made) == (RECORDS, SHARDS, RECORDS)
  assert told[-1] == (RECORDS, RECORDS) and told == sorted(told)
  return out


def words(tokenizer: Path, out: Path, *more: object) -> list[str]:
  """The command that makes what `straight` has."""
  said = ("--tokenizer", tokenizer, "--data", "digits", "--split", "test", "--out", out)
  crops = ("--views", 2, "--crop", "random", "--threads", 1, "--batch-size", 32)
  size = ("--records-per-shard", PER_SHARD, "--json")
  return ["tokenize-dataset", *map(str, (*said, *crops, *size, *more))]


KILLED = """
import sys, time
import tokzoo
from tests.cli.test_tokenize_dataset import DIGITS, PER_SHARD
from tokzoo.cli.tokenizing import encode_dataset

def slow(done, total):
  if done >= int(sys.argv[3]):
    print("in shard", done // PER_SHARD, flush=True)
    time.sleep(60)

encode_dataset(DIGITS, tokzoo.load(sys.argv[1]), sys.argv[2], 32, PER_SHARD, slow)
"""


def start(*arguments: str, devices: int = 2) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=environment(devices),
  )


def digests(folder: Path) -> dict[str, str]:
  """What lies in a folder, hidden files too."""
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.iterdir())
    if path.name != "manifest.json"
  }


def assert_same(found: Path, wanted: Path) -> None:
  assert digests(found) == digests(wanted)
  assert read_manifest(found)["files"] == read_manifest(wanted)["files"]


def test_records_are_the_tokens_of_every_view_in_order(straight, tokenizer):
  source = TokenSource(str(straight), "test")
  assert len(source) == RECORDS
  pictures = open_source(DIGITS)
  model = tokzoo.load(tokenizer)
  records = [source[index] for index in range(RECORDS)]
  images = np.stack([pictures[index % 355]["image"] for index in range(RECORDS)])
  wanted = np.asarray(model.encode(images).packed)
  np.testing.assert_array_equal(np.stack([r["packed"] for r in records]), wanted)
  labels = [int(pictures[index % 355]["label"]) for index in range(RECORDS)]
  assert [int(record["label"]) for record in records] == labels
  assert len(np.unique(wanted.reshape(RECORDS, -1), axis=0)) > 100


def test_the_header_says_what_it_is(straight, tokenizer):
  manifest = read_manifest(straight)
  model = tokzoo.load(tokenizer)
  origin = {"system": model.origin.system, "weights": model.origin.weights}
  assert manifest["origin"] == origin and manifest["records"] == RECORDS
  assert manifest["data"]["repeat"] == 2 and manifest["data"]["crop"] == "random"
  assert manifest["classes"] == [*"0123456789"]
  assert manifest["layout"]["bits"] == 40 and manifest["layout"]["grid"] == [2]
  assert manifest["layout"]["arrays"] == {
    "packed": {"dtype": "uint32", "shape": [2, 2]},
    "label": {"dtype": "int32", "shape": []},
  }
  files = manifest["files"]
  assert len(files) == SHARDS and sum(file["records"] for file in files) == RECORDS
  for file in files:
    data = (straight / file["name"]).read_bytes()
    assert len(data) == file["bytes"]
    assert hashlib.sha256(data).hexdigest() == file["sha256"]
  assert {path.name for path in straight.iterdir()} == {
    "manifest.json",
    *(file["name"] for file in files),
  }


def test_killed_and_continued_has_neither_holes_nor_duplicates(
  straight, tokenizer, tmp_path, command
):
  out, made = tmp_path / "records", 4 * PER_SHARD
  process = start("-c", KILLED, str(tokenizer), str(out), str(made + PER_SHARD // 2))
  assert process.stdout is not None and process.stdout.readline() == "in shard 4\n"
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  process.communicate()
  receipts = sorted(path.name for path in out.glob("tokens-*.json"))
  assert receipts == [f"tokens-{shard:05d}-of-{SHARDS:05d}.json" for shard in range(4)]
  assert len(list(out.glob(".tokens-00004-*.unfinished"))) == 1
  with pytest.raises(TokzooError, match=r"has no manifest\.json"):
    TokenSource(str(out), "test")
  # What a kill between a shard and its receipt leaves, and a disk that lost a shard's end.
  (out / f"tokens-00010-of-{SHARDS:05d}.arrayrecord").write_bytes(b"no receipt")
  cut = out / f"tokens-00002-of-{SHARDS:05d}.arrayrecord"
  cut.write_bytes(cut.read_bytes()[:-9])
  outcome = command(*words(tokenizer, out))
  assert outcome.code == 0, outcome.err
  told = json.loads(outcome.out)
  assert told["made_here"] == RECORDS - 3 * PER_SHARD
  assert "records, " in outcome.err and " left" in outcome.err
  assert_same(out, straight)
  # Once whole, nothing is made again.
  again = json.loads(command(*words(tokenizer, out)).out)
  assert again["made_here"] == 0 and again["records"] == RECORDS


def test_two_hosts_make_what_one_makes(straight, tokenizer, tmp_path):
  out = tmp_path / "records"
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]

  def host(index: int) -> subprocess.Popen:
    told = ("--hosts.coordinator", f"localhost:{port}", "--hosts.num-processes", 2)
    more = ("--distributed", *told, "--hosts.process-id", index)
    return start("-m", "tokzoo", *words(tokenizer, out, *more))

  hosts = [host(0), host(1)]
  try:
    said = [process.communicate(timeout=120) for process in hosts]
  finally:
    for process in hosts:
      process.kill()
  assert [process.returncode for process in hosts] == [0, 0], said
  first, second = (json.loads(out) for out, _ in said)
  assert (first["process"], second["process"]) == ("0 of 2", "1 of 2")
  assert first["made_here"] == 6 * PER_SHARD and second["made_here"] == RECORDS - 384
  assert_same(out, straight)


def test_a_damaged_shard_is_seen(straight, tokenizer, tmp_path):
  out = tmp_path / "records"
  encode_dataset(DIGITS, tokzoo.load(tokenizer), out, 64, 400)
  shard = out / "tokens-00001-of-00002.arrayrecord"
  shard.write_bytes(shard.read_bytes()[:-9])
  with pytest.raises(TokzooError, match=r"00001-of-00002.* bytes but its manifest"):
    TokenSource(str(out), "test")
  shard.unlink()
  with pytest.raises(TokzooError, match=r"00001-of-00002.arrayrecord is missing"):
    TokenSource(str(out), "test")


def test_a_folder_of_something_else_is_refused(straight, tokenizer, tmp_path, command):
  other = save(tmp_path / "other.safetensors", TOKENIZER, seed=1)
  said = command(*words(other, straight))
  assert said.code == 2 and "whose origin.weights is" in said.err
  said = command(*words(tokenizer, straight, "--flip"))
  assert said.code == 2 and "whose data.flip is False, not True" in said.err
  said = command(*words(tokenizer, tmp_path / "x", "--records-per-shard", 0))
  assert said.code == 2 and "records_per_shard is 0" in said.err


def test_old_folders_are_read(straight, tmp_path):
  """Version 1: one file, no SHA-256."""
  old = tmp_path / "old"
  old.mkdir()
  manifest = read_manifest(straight)
  (file, *_) = manifest.pop("files")
  os.link(straight / file["name"], old / "tokens.arrayrecord")
  manifest |= {"format_version": 1, "records": PER_SHARD, "bytes": file["bytes"]}
  (old / "manifest.json").write_text(json.dumps(manifest))
  source, new = TokenSource(str(old), "test"), TokenSource(str(straight), "test")
  assert len(source) == PER_SHARD
  for index in (0, PER_SHARD - 1):
    np.testing.assert_array_equal(source[index]["packed"], new[index]["packed"])


def test_waiting_for_hosts_that_do_not_come_ends(tokenizer, tmp_path):
  from tokzoo.data.token_shards import Header, TokenShards

  model = tokzoo.load(tokenizer)
  header = Header(model.origin, "t", DIGITS, (), RECORDS, PER_SHARD, "now")
  shards = TokenShards(tmp_path / "records", header)
  assert shards.missing(1, 4) == [1, 5, 9]
  begin = time.monotonic()
  with pytest.raises(TokzooError, match=r"12 are missing \(the first is 0\)"):
    shards.wait(patience_s=0.2, every_s=0.05)
  assert time.monotonic() - begin < 5
