"""Loading models by name, file, run or repository."""

from tokzoo.hub.catalog import Entry, catalog, find_entry
from tokzoo.hub.codec import PretrainedCodec
from tokzoo.hub.loading import (
  abstract_variables,
  flax_table,
  load,
  published_config,
  table_of,
)
from tokzoo.hub.pretrained import Card, PretrainedGenerator, PretrainedTokenizer
from tokzoo.hub.speaker import PretrainedSpeaker

__all__ = [
  "Card",
  "Entry",
  "PretrainedCodec",
  "PretrainedGenerator",
  "PretrainedSpeaker",
  "PretrainedTokenizer",
  "abstract_variables",
  "catalog",
  "find_entry",
  "flax_table",
  "load",
  "published_config",
  "table_of",
]
