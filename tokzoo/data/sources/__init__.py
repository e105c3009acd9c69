"""Sources: random access to pictures wherever they lie, by a name such as `folder:PATH`."""

from tokzoo.data.config import DataConfig
from tokzoo.data.sources.base import Encoded, Record, Source, SourceInfo
from tokzoo.data.sources.packaged import Photos, digits
from tokzoo.errors import TokzooError, unknown

__all__ = ["Encoded", "Record", "Source", "SourceInfo", "open_source"]


def open_source(config: DataConfig) -> Source:
  """Opens the source that a config names.

  Args:
    config: of which `source`, `split` and `skip_bad` are read.

  Returns:
    The source; it has at least one record.

  Raises:
    TokzooError: no such source, path or split, or nothing in it.
  """
  kind, _, path = config.source.partition(":")
  match kind:
    case "photos":
      return Photos(config.split)
    case "digits":
      return digits(config.split)
  raise unknown("source", config.source, ("photos", "digits"))
