"""`tokzoo data check`, `prepare` and `bench`: a data set before it is trained on."""

import re
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress

from tokzoo.cli.console import emit, facts, parse
from tokzoo.data import (
  BenchReport,
  CheckReport,
  DataConfig,
  Needs,
  PrepareReport,
  guess_source,
)
from tokzoo.data import bench as run_bench
from tokzoo.data import check as run_check
from tokzoo.data import prepare as run_prepare
from tokzoo.data.config import Crop
from tokzoo.errors import TokzooError, unknown

_HELP = """usage: tokzoo data COMMAND ...

  tokzoo data check PATH               Read some records: shapes, ranges, classes, bad files.
  tokzoo data prepare NAME --out DIR   Copy a data set to ArrayRecord files with a manifest.
  tokzoo data bench PATH --size N      How many records come a second, and whether that does
                                       (--needs 3.2GB or 4096ex, see tokzoo plan).

PATH or NAME: photos, digits, fashion-mnist[:PATH], folder:PATH, arrayrecord:PATH, tfds:NAME,
webdataset:PATH, of sound tones[:HZ], speech-prompts[:FILE.deb], audio:PATH, or a path alone. tokzoo data COMMAND --help says more."""


def run_data(arguments: Sequence[str]) -> int:
  commands = {"check": check, "prepare": prepare, "bench": bench}
  if not arguments or arguments[0] in ("-h", "--help"):
    print(_HELP)
    return 0
  name, *rest = arguments
  if name not in commands:
    raise unknown("data command", name, commands)
  return int(parse(commands[name], f"data {name}", rest) or 0)


def check(
  path: Annotated[str, tyro.conf.Positional],
  /,
  split: str = "train",
  records: int = 100,
  digests: bool = False,
  json: bool = False,
) -> int:
  """Reads records spread over a split: shapes, ranges, classes, and bad files by name.

  The exit code is 1 if a record is bad.

  Args:
    path: a source, or a path alone.
    split: the part to read.
    records: how many to read.
    digests: also compare the SHA-256 of every file of prepared data with its manifest.
    json: print JSON instead of a table.
  """
  report = run_check(path, split, records, digests)
  _print(f"data set {path}", report, json)
  return 1 if report.bad else 0


def prepare(
  name: Annotated[str, tyro.conf.Positional],
  /,
  out: str | None = None,
  splits: tuple[str, ...] = (),
  skip_bad: bool = False,
  json: bool = False,
) -> None:
  """Copies a data set to ArrayRecord files with a manifest, whole or not at all.

  Args:
    name: a source, or a path alone; speech-prompts is fetched with apt, or taken from a .deb.
    out: a new folder; train from it as arrayrecord:OUT. Of speech-prompts by default where
      recipes look for them.
    splits: the parts to copy; all by default.
    skip_bad: leave out files that cannot be decoded, naming them.
    json: print JSON instead of a table.
  """
  # A bar is for eyes only: a log or a pipe stays clean.
  console = Console(stderr=True)
  with Progress(console=console, disable=not console.is_terminal) as progress:
    bar = progress.add_task(f"preparing {name}")

    def step(done: int, total: int) -> None:
      progress.update(bar, completed=done, total=total)

    report = run_prepare(name, out, splits or None, skip_bad, step)
  _print(f"prepared {name}", report, json)


def bench(
  path: Annotated[str, tyro.conf.Positional],
  /,
  split: str = "train",
  size: int | None = None,
  crop: Crop = "random",
  resize: int | None = None,
  batch_size: int = 64,
  threads: int = 4,
  seconds: float = 5.0,
  needs: str | None = None,
  json: bool = False,
) -> int:
  """Measures how fast batches come, without a model.

  With --needs the exit code is 1 if the input does not keep up.

  Args:
    path: a source, or a path alone.
    split: the part to read.
    size: side of the square crop in pixels; the whole pictures by default.
    crop: where the square is cut from.
    resize: pixels that the shorter side is resized to before.
    batch_size: pictures per batch.
    threads: that read and decode.
    seconds: how long to measure after the first batch.
    needs: what one host must deliver a second: bytes as  tokzoo plan  prints them (3.2e9,
      3.2GB) or examples (4096ex).
    json: print JSON instead of a table.
  """
  config = DataConfig(
    source=path if path.startswith("tokens:") else guess_source(path),
    split=split,
    resize=resize,
    crop=crop if size is not None else "none",
    size=size,
    threads=threads,
  )
  asked = None if needs is None else read_needs(needs)
  report = run_bench(config, batch_size, seconds, asked)
  _print(f"reading {path}", report, json)
  return 1 if report.headroom is not None and report.headroom < 1 else 0


def read_needs(text: str) -> Needs:
  """What is needed a second: "3.2e9", "3.2GB" or "4096ex".

  Raises:
    TokzooError: something else.
  """
  found = re.fullmatch(r"([0-9.]+(?:e\+?[0-9]+)?) ?(ex|B|kB|MB|GB)?(?:/s)?", text)
  try:
    number = float(found[1]) if found else 0.0
  except ValueError:
    number = 0.0
  if found is None or number <= 0:
    raise TokzooError(
      f"--needs {text!r} is neither bytes a second (3.2e9, 3.2GB) nor examples a second "
      "(4096ex): write one of these."
    )
  if found[2] == "ex":
    return Needs(number, "records")
  return Needs(number * {"kB": 1e3, "MB": 1e6, "GB": 1e9}.get(found[2], 1.0), "bytes")


def _print(
  title: str, report: CheckReport | PrepareReport | BenchReport, json: bool
) -> None:
  rows = dict(report.rows())
  emit(report.as_dict(), json, lambda console: console.print(facts(title, rows)))
