"""`tokzoo tokenize-dataset`: a data set of pictures or sounds to token records, on all devices of
all hosts."""

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

from tokzoo.cli.coding import load_encoder, require_none
from tokzoo.cli.console import emit, facts, note, read_arguments
from tokzoo.cli.tokenizing import encode_dataset
from tokzoo.data import DataConfig, guess_source
from tokzoo.data.config import Crop, Filter
from tokzoo.data.token_shards import RECORDS_PER_SHARD
from tokzoo.errors import TokzooError
from tokzoo.hub import PretrainedCodec, PretrainedTokenizer
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
  """digits, photos, folder:PATH, arrayrecord:PATH, tones, speech-prompts, audio:PATH, ... or a path
  alone; one split of it."""
  out: str
  """A folder for each split, which all hosts see; it may be remote (gs://, s3://)."""
  split: str = "train"
  """Part of the data set."""
  views: int = 1
  """Of each picture or sound: random crops and flips differ between them."""
  resize: int | None = None
  """Pixels that the shorter side is resized to before it is cut."""
  filter: Filter = "bicubic"
  """Of the resizing."""
  crop: Crop | None = None
  """Where the square is cut from, center by default; none: pictures are of one size already. Of
  sound, with --seconds: pieces (by default) one after another, the last filled up with silence;
  random, center; none, from the start."""
  size: int | None = None
  """Side of the square in pixels; the tokenizer's own by default."""
  flip: bool = False
  """Mirror left to right with probability one half."""
  seconds: float | None = None
  """Length of a record of sound; without, sounds are taken whole and must be of one length."""
  kbps: float | None = None
  """Bit rate of a codec of sound, which says how many codebooks are kept; the highest by default."""
  flat: bool = False
  """Write the codes of a frame one after the other, each level's ids in a range of its own, as
  generators of one row of ids read them; else records of several codebooks are ids [L, Q]."""
  skip_bad: bool = False
  """Leave out files that cannot be decoded, naming them."""
  batch_size: int | None = None
  """Pictures or sounds at a time, of one host; 256 pictures or 16 sounds by default."""
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
    value = getattr(what, name)
    if value is not None and value < 1:
      raise TokzooError(f"{name} is {value}, but must be at least 1: choose another.")
  tokenizer = load_encoder(what.tokenizer, what.preset)
  codebooks = None
  if isinstance(tokenizer, PretrainedCodec):
    data = _of_sound(what, tokenizer)
    codebooks = tokenizer.codebooks_of(what.kbps)
  else:
    data = _of_pictures(what, tokenizer)
  with _progress(f"encoding {what.data} {what.split}") as progress:
    done = encode_dataset(
      data,
      tokenizer,
      what.out,
      what.batch_size,
      what.records_per_shard,
      progress,
      codebooks,
      what.flat,
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


def _of_pictures(what: TokenizeDataset, tokenizer: PretrainedTokenizer) -> DataConfig:
  """The pictures, as the tokenizer takes them."""
  require_none(
    what.tokenizer,
    "pictures",
    seconds=what.seconds,
    kbps=what.kbps,
    flat=what.flat or None,
  )
  return DataConfig(
    source=guess_source(what.data),
    split=what.split,
    skip_bad=what.skip_bad,
    channels=tokenizer.config.channels,
    resize=what.resize,
    filter=what.filter,
    crop=what.crop or "center",
    size=what.size or tokenizer.config.image_size,
    flip=what.flip,
    repeat=what.views,
    threads=what.threads,
  )


def _of_sound(what: TokenizeDataset, codec: PretrainedCodec) -> DataConfig:
  """The sounds, at the codec's rate and with its channels."""
  require_none(
    what.tokenizer, "sound", resize=what.resize, size=what.size, flip=what.flip or None
  )
  source, rate = guess_source(what.data), codec.config.sample_rate_hz
  if source in ("tones", "taught-tones"):
    source = f"{source}:{max(rate, 2_000)}"  # made at the rate, not resampled
  if what.crop not in (None, "none") and what.seconds is None:
    raise TokzooError(
      f"--crop {what.crop} came without --seconds: say how long the records are to be."
    )
  return DataConfig(
    source=source,
    split=what.split,
    skip_bad=what.skip_bad,
    channels=codec.config.channels,
    crop=what.crop or ("none" if what.seconds is None else "pieces"),
    sample_rate_hz=rate,
    seconds=what.seconds,
    repeat=what.views,
    threads=what.threads,
  )


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
