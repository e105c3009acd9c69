"""check, prepare and bench, and that prepared data is what it was prepared from."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.table import Table

from tests.data.pictures import CLASSES, encoded, picture, write_class_folder
from tokzoo.cli.data import read_needs
from tokzoo.data import (
  DataConfig,
  Needs,
  bench,
  check,
  evaluation_batches,
  open_source,
  prepare,
)
from tokzoo.data import prepare as prepare_module
from tokzoo.errors import TokzooError
from tokzoo.files import sha256_of


def test_check_counts(tmp_path):
  root = write_class_folder(tmp_path / "set", 12)
  (root / "bee" / "99.png").write_bytes(encoded(picture(0, 30, 31)))
  report = check(str(root))
  assert report.source == f"folder:{root}"
  assert (report.records, report.read) == (13, 13)
  assert report.shapes == {(20, 24, 3): 12, (30, 31, 3): 1}
  assert report.classes == {"ant": 4, "bee": 5, "cat": 4}
  assert report.bad == {} and report.dtype == "uint8"
  images = [picture(number) for number in range(12)] + [picture(0, 30, 31)]
  assert report.lowest == min(image.min() for image in images)
  assert report.highest == max(image.max() for image in images)


def test_check_names_bad_files(tmp_path):
  root = write_class_folder(tmp_path / "set", 6)
  (root / "ant" / "00.png").write_bytes(b"broken")
  report = check(f"folder:{root}")
  assert list(report.bad) == [str(root / "ant" / "00.png")]
  assert "not an image" in report.bad[str(root / "ant" / "00.png")]
  assert report.classes["ant"] == 1 and report.read == 6
  for file in root.rglob("*.png"):
    file.write_bytes(b"")
  report = check(f"folder:{root}")
  assert len(report.bad) == 6 and report.lowest is None and report.rows()


def test_check_spreads_its_reads():
  report = check("digits", records=100)
  assert report.read == 100 and report.records == 1442
  assert sum(report.classes.values()) == 100 and min(report.classes.values()) > 0
  assert check("digits", split="test", records=10**6).read == 355
  with pytest.raises(TokzooError, match="0 records were asked for"):
    check("digits", records=0)


@pytest.mark.parametrize(
  "report",
  [
    lambda folder: check("photos", split="test"),
    lambda folder: prepare("digits", folder / "out"),
    lambda folder: bench(DataConfig(source="digits"), 8, seconds=0.05),
  ],
)
def test_reports_are_tables_and_json(tmp_path, report):
  report = report(tmp_path)
  table = Table()
  for name, value in report.rows():
    table.add_row(name, value)
  assert table.row_count == len(report.rows()) > 4
  fields = json.loads(json.dumps(report.as_dict()))
  assert set(fields) == set(vars(report))


def same_records(found, wanted):
  assert len(found) == len(wanted) > 0
  for index in range(len(wanted)):
    one, other = found[index], wanted[index]
    assert one.keys() == other.keys()
    np.testing.assert_array_equal(one.pop("image"), other.pop("image"))
    assert one == other


@pytest.mark.parametrize("name", ["photos", "digits"])
def test_prepared_is_what_it_was(tmp_path, name):
  report = prepare(name, tmp_path / "out")
  for split in ("train", "test"):
    prepared = open_source(
      DataConfig(source=f"arrayrecord:{tmp_path}/out", split=split)
    )
    source = open_source(DataConfig(source=name, split=split))
    same_records(prepared, source)
    assert prepared.info.classes == source.info.classes
    assert prepared.info.licence == source.info.licence
    # Files are copied, not encoded again.
    assert prepared.encoded(0).data == source.encoded(0).data
  manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
  assert manifest == report.manifest
  assert manifest["source"] == name and "scikit-learn 1." in manifest["source_version"]
  for part in manifest["splits"].values():
    assert part["records"] == sum(file["records"] for file in part["files"])
    for file in part["files"]:
      assert sha256_of(tmp_path / "out" / file["name"]) == file["sha256"]
  if name == "digits":
    train = manifest["splits"]["train"]["class_counts"]
    assert sum(train.values()) == 1442 and set(train) == set("0123456789")


def test_several_files_and_progress(tmp_path, monkeypatch):
  root = write_class_folder(tmp_path / "set", 10)
  module = sys.modules[prepare_module.__module__]
  monkeypatch.setattr(module, "_RECORDS_PER_FILE", 4)
  told = []
  prepare(str(root), tmp_path / "out", progress=lambda *step: told.append(step))
  assert told == [(done, 10) for done in range(1, 11)]
  files = sorted(path.name for path in (tmp_path / "out").glob("*.arrayrecord"))
  assert files == [f"train-0000{i}-of-00003.arrayrecord" for i in range(3)]
  config = DataConfig(source=f"arrayrecord:{tmp_path}/out")
  same_records(open_source(config), open_source(DataConfig(source=f"folder:{root}")))
  assert open_source(config).info.classes == CLASSES


def test_a_failed_prepare_leaves_nothing(tmp_path):
  root = write_class_folder(tmp_path / "set", 6)
  (root / "cat" / "05.png").write_bytes(b"broken")
  with pytest.raises(TokzooError, match=r"cat/05\.png"):
    prepare(str(root), tmp_path / "out")
  assert os.listdir(tmp_path) == ["set"]
  with pytest.warns(UserWarning, match="left out 1 of 6"):
    prepare(str(root), tmp_path / "out", skip_bad=True)
  assert len(open_source(DataConfig(source=f"arrayrecord:{tmp_path}/out"))) == 5


def test_prepare_does_not_overwrite(tmp_path):
  (tmp_path / "mine.txt").write_text("keep")
  with pytest.raises(TokzooError, match="exists already"):
    prepare("digits", tmp_path)
  with pytest.raises(TokzooError, match="exists already"):
    prepare("digits", tmp_path / "mine.txt")
  with pytest.raises(TokzooError, match=r"cannot write .*/out: (File|Not a)"):
    prepare("digits", tmp_path / "mine.txt" / "out")
  (tmp_path / "empty").mkdir()
  prepare("digits", tmp_path / "empty", splits=["test"])
  with pytest.raises(TokzooError, match=r"no split 'train': set data.split to test"):
    open_source(DataConfig(source=f"arrayrecord:{tmp_path}/empty"))


def test_a_killed_prepare_leaves_nothing_that_looks_whole(tmp_path):
  program = """
import sys, time
from tokzoo.data import prepare
def slow(done, total):
  if done == 900:
    print("halfway", flush=True)
    time.sleep(60)
prepare("digits", sys.argv[1], progress=slow)
"""
  out = tmp_path / "out"
  process = subprocess.Popen(
    [sys.executable, "-c", program, str(out)], stdout=subprocess.PIPE, text=True
  )
  try:
    assert process.stdout is not None
    assert process.stdout.readline() == "halfway\n"
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert not out.exists()
  (left,) = tmp_path.iterdir()
  assert left.name.startswith(".out.") and left.name.endswith(".incomplete")
  with pytest.raises(TokzooError, match=r"no manifest\.json"):
    open_source(DataConfig(source=f"arrayrecord:{left}"))
  assert len(prepare("digits", out).manifest["splits"]) == 2


def test_a_full_disk(tmp_path):
  """Files may grow to 100 kB, the digits need four times that."""
  program = """
import resource, signal, sys
from tokzoo.data import prepare
from tokzoo.errors import TokzooError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
  prepare("digits", sys.argv[1])
except TokzooError as error:
  print(error)
"""
  result = subprocess.run(
    [sys.executable, "-c", program, str(tmp_path / "out")],
    capture_output=True,
    text=True,
    check=True,
  )
  assert "cannot write" in result.stdout and "free some space" in result.stdout
  assert not list(tmp_path.iterdir())


def test_damaged_prepared_data(tmp_path):
  root = write_class_folder(tmp_path / "set", 6)
  out = tmp_path / "out"
  prepare(str(root), out)
  name = f"arrayrecord:{out}"
  (file,) = out.glob("*.arrayrecord")
  data = file.read_bytes()
  place = data.find(b"IDAT") + 20
  file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
  report = check(name, digests=True)
  assert sorted(report.bad) == sorted([str(file), f"{out}/train/0"])
  with pytest.raises(TokzooError, match=r"out/train/0: .*hash mismatch"):
    list(evaluation_batches(DataConfig(source=name), 6))
  file.write_bytes(data[:-10])
  with pytest.raises(TokzooError, match="bytes but the manifest says"):
    check(name)
  file.unlink()
  with pytest.raises(TokzooError, match="is missing but the manifest says"):
    check(name)
  manifest = out / "manifest.json"
  fields = json.loads(manifest.read_text())
  manifest.write_text(json.dumps(fields | {"format_version": 99}))
  with pytest.raises(TokzooError, match="format tokzoo-arrayrecord 99"):
    check(name)
  manifest.write_text("{")
  with pytest.raises(TokzooError, match=r"manifest\.json is damaged"):
    check(name)
  with pytest.raises(TokzooError, match="no digests to compare"):
    check("digits", digests=True)


def test_bench_counts():
  begin = time.perf_counter()
  report = bench(DataConfig(source="digits", channels=1, threads=1), 32, seconds=0.2)
  spent = time.perf_counter() - begin
  assert report.shape == (8, 8, 1) and 0.2 <= report.seconds < spent
  rate = report.batches * 32 / report.seconds
  assert report.records_per_second == pytest.approx(rate)
  assert report.megabytes_per_second == pytest.approx(rate * 8 * 8 * 4 / 1e6)
  assert report.bytes_per_second == pytest.approx(rate * (8 * 8 * 4 + 4))
  assert report.headroom is None and "keeps_up" not in report.as_dict()
  with pytest.raises(TokzooError, match="0 seconds"):
    bench(DataConfig(source="digits"), 8, seconds=0)


@pytest.mark.parametrize("text, unit", [("10ex", "records"), ("0.5kB/s", "bytes")])
def test_bench_says_whether_the_input_keeps_up(text, unit):
  needs = read_needs(text)
  assert needs.unit == unit
  report = bench(DataConfig(source="digits", threads=0), 32, 0.05, needs)
  assert report.headroom is not None and report.headroom > 1
  assert dict(report.rows())["keeps up"].startswith("yes")
  slow = dataclasses.replace(report, needs=Needs(needs.per_second * 1e9, unit))
  assert slow.headroom == pytest.approx(report.headroom / 1e9)
  assert dict(slow.rows())["keeps up"].startswith("no, 0% of what is needed")
  assert slow.as_dict()["keeps_up"] is False


def test_needs():
  assert read_needs("3.2e9") == Needs(3.2e9, "bytes")
  assert read_needs("3.2GB") == read_needs("3.2GB/s") == Needs(3.2e9, "bytes")
  for wrong in ("fast", "0", "-3", "1..2", "3 furlongs", "ex"):
    with pytest.raises(TokzooError, match="neither bytes a second"):
      read_needs(wrong)
