"""`tokzoo tokenize-dataset`: a data set to token records, on all devices of all hosts."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)

from tokzoo.cli.coding import load_tokenizer
from tokzoo.cli.console import emit, facts, note, read_arguments
from tokzoo.cli.tokenizing import encode_dataset
from tokzoo.data import DataConfig, guess_source
from tokzoo.data.config import Crop, Filter
from tokzoo.data.token_shards import RECORDS_PER_SHARD
from tokzoo.errors import TokzooError
from tokzoo.train.hosts import Hosts, joined

_EVERY = 30.0
"""Seconds between two lines of progress in a log."""


@dataclasses.dataclass(frozen=True)
class TokenizeDataset:
  """Encodes a data set once, for generators to train from as tokens:OUT.

  All devices of this machine work, and with --distributed those of all hosts. Killed and
  started again, on as many hosts as there are then, it makes what is missing.
  """

  tokenizer: str
  """Checkpoint name, run directory, file or repository."""
  data: str
  """digits, photos, folder:PATH, arrayrecord:PATH, ... or a path alone; one split of it."""
  out: str
  """A folder for each split, which all hosts see; it may be remote (gs://, s3://)."""
  split: str = "train"
  """Part of the data set."""
  views: int = 1
  """Of each picture: random crops and flips differ between them."""
  resize: int | None = None
  """Pixels that the shorter side is resized to before it is cut."""
  filter: Filter = "bicubic"
  """Of the resizing."""
  crop: Crop = "center"
  """Where the square is cut from; none: pictures are of one size already."""
  size: int | None = None
  """Side of the square in pixels; the tokenizer's own by default."""
  flip: bool = False
  """Mirror left to right with probability one half."""
  skip_bad: bool = False
  """Leave out files that cannot be decoded, naming them."""
  batch_size: int = 256
  """Pictures at a time, of one host."""
  records_per_shard: int = RECORDS_PER_SHARD
  """Records of a file: what at most is made again after a kill."""
  threads: int = 4
  """That read and decode."""
  preset: str | None = None
  """The published config of a tokenizer's file in its authors' layout."""
  distributed: bool = False
  """This process is one of several; jax finds the others (see tpu/README.md)."""
  hosts: Hosts = dataclasses.field(default_factory=Hosts)
  """Where --distributed finds them, on machines that do not say so themselves."""
  json: bool = False
  """Print the result as JSON."""


def run_tokenize_dataset(arguments: Sequence[str]) -> None:
  what = read_arguments(TokenizeDataset, "tokzoo tokenize-dataset", arguments)
  if what.distributed:
    with joined(what.hosts):
      tokenize_dataset(what)
  else:
    tokenize_dataset(what)


def tokenize_dataset(what: TokenizeDataset) -> None:
  """Encodes a data set and says what was made.

  Raises:
    TokzooError: a tokenizer, data or folder that does not fit.
  """
  for name in ("batch_size", "records_per_shard"):
    if getattr(what, name) < 1:
      raise TokzooError(
        f"{name} is {getattr(what, name)}, but must be at least 1: choose another."
      )
  tokenizer = load_tokenizer(what.tokenizer, what.preset)
  data = DataConfig(
    source=guess_source(what.data),
    split=what.split,
    skip_bad=what.skip_bad,
    channels=tokenizer.config.channels,
    resize=what.resize,
    filter=what.filter,
    crop=what.crop,
    size=what.size or tokenizer.config.image_size,
    flip=what.flip,
    repeat=what.views,
    threads=what.threads,
  )
  with _progress(f"encoding {what.data} {what.split}") as progress:
    done = encode_dataset(
      data,
      tokenizer,
      what.out,
      what.batch_size,
      what.records_per_shard,
      progress,
    )
  told: dict[str, Any] = {
    "out": what.out,
    "records": done.records,
    "shards": done.shards,
    "tokenizer": str(tokenizer.origin),
    "process": f"{jax.process_index()} of {jax.process_count()}",
    "devices": jax.local_device_count(),
    "made_here": done.made,
    "records_per_second": done.made / done.seconds if done.made else None,
  }

  def render(console: Console) -> None:
    console.print(facts("encoded", told))
    console.print(f"Train a generator on it: --data.source tokens:{what.out}")

  emit(told, what.json, render)


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
  """Progress and time that is left: a bar for eyes, now and then a line for a log."""
  console = Console(stderr=True)
  if console.is_terminal:
    columns = (
      TextColumn("{task.description}"),
      BarColumn(),
      MofNCompleteColumn(),
      TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as shown:
      bar = shown.add_task(title)
      yield lambda done, total: shown.update(bar, completed=done, total=total)
    return
  begin = told = time.monotonic()

  def say(done: int, total: int) -> None:
    nonlocal told
    now = time.monotonic()
    if now - told < _EVERY and done < total:
      return
    told = now
    rate = done / max(now - begin, 1e-9)
    note(
      f"{title}: host {jax.process_index()}, {done:,} of {total:,} records, "
      f"{rate:,.0f} a second, {_duration((total - done) / rate)} left"
    )

  yield say


def _duration(seconds: float) -> str:
  """ "2 h 05 min", "3 min 20 s", "12 s"."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes:02d} min"
  return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
