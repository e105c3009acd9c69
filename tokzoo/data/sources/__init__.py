"""Sources: random access to pictures wherever they lie, by a name such as `folder:PATH`."""

from tokzoo.data.sources.base import BadRecord, Encoded, Record, Source, SourceInfo
from tokzoo.data.sources.opening import guess_source, open_source

__all__ = [
  "BadRecord",
  "Encoded",
  "Record",
  "Source",
  "SourceInfo",
  "guess_source",
  "open_source",
]
