"""Data: Grain pipelines over random-access sources."""

from tokzoo.data.bench import BenchReport, Needs, bench
from tokzoo.data.check import CheckReport, check
from tokzoo.data.config import DataConfig
from tokzoo.data.pipeline import (
  OnePass,
  evaluation_batches,
  host_rows,
  loader,
  state_after,
)
from tokzoo.data.prepare import PrepareReport, prepare
from tokzoo.data.sources import Source, SourceInfo, guess_source, open_source

__all__ = [
  "BenchReport",
  "CheckReport",
  "DataConfig",
  "Needs",
  "OnePass",
  "PrepareReport",
  "Source",
  "SourceInfo",
  "bench",
  "check",
  "evaluation_batches",
  "guess_source",
  "host_rows",
  "loader",
  "open_source",
  "prepare",
  "state_after",
]
