"""Data: Grain pipelines over random-access sources."""

from tokzoo.data.config import DataConfig
from tokzoo.data.pipeline import evaluation_batches, host_rows, loader
from tokzoo.data.sources import open_source

__all__ = [
  "DataConfig",
  "evaluation_batches",
  "host_rows",
  "loader",
  "open_source",
]
