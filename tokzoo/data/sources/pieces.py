"""A source of sound, cut: all of every sound, one piece after another, each a record."""

import functools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tokzoo.data.sources.base import Record, Source
from tokzoo.errors import TokzooError

_KEPT = 2
"""Sounds that are kept: their pieces are read one after the other, and an hour is large."""


class Pieces(Source):
  """The sounds of another source in pieces of so many seconds; the last of each may be shorter.

  Every sound is decoded once to know how long it is.

  Args:
    source: of sounds.
    seconds: of a piece, which must be said.
    threads: that decode.

  Raises:
    TokzooError: a source of pictures, no seconds, or a sound that cannot be read.
  """

  def __init__(self, source: Source, seconds: float | None, threads: int = 4):
    if source.info.media != "sound":
      raise TokzooError(
        f"{source.info.name} has no sounds, but data.crop is 'pieces': set it to center, random "
        "or none."
      )
    if seconds is None or seconds <= 0:
      raise TokzooError(
        f"data.crop is 'pieces' and data.seconds is {seconds}: set it to the length of a piece."
      )
    self.info = source.info
    self._seconds = seconds
    self._read = functools.lru_cache(_KEPT)(source.__getitem__)

    def count(index: int) -> int:
      record = source[index]
      return max(math.ceil(len(record["audio"]) / self._samples(record)), 1)

    with ThreadPoolExecutor(max(threads, 1)) as pool:
      counts = list(pool.map(count, range(len(source))))
    self._ends = np.cumsum(counts)

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, index: int) -> Record:
    sound = int(np.searchsorted(self._ends, index, side="right"))
    place = index - (int(self._ends[sound - 1]) if sound else 0)
    record = self._read(sound)
    whole = len(record["audio"])
    start = place * self._samples(record)
    end = min(start + self._samples(record), whole)
    frames = {
      # Rows lie evenly over the whole sound.
      name: rows[round(start / whole * len(rows)) : round(end / whole * len(rows))]
      for name, rows in record.get("frames", {}).items()
    }
    cut = {
      "audio": record["audio"][start:end],
      "key": f"{record['key']}, piece {place}",
    }
    return record | cut | ({"frames": frames} if frames else {})

  def _samples(self, record: Record) -> int:
    """Of a piece, at the sound's own rate."""
    return max(round(self._seconds * record["rate_hz"]), 1)
