"""`tokens:PATH`: records that a tokenizer made beforehand, for generators to read.

  manifest.json       origin, layout, count, and the DataConfig that was encoded; written
                      last, so a folder without is not whole
  tokens.arrayrecord  one record to a chunk: a small safetensors blob of named arrays

A record holds `packed` uint32[L, w], `ids` int32[L] or [L, Q], or `values` float32[L, D], and
whatever belongs to it: `label` int32[], `features` and `text_mask`. PATH is the folder of one
split, or a folder with one such folder per split.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import load as from_blob
from safetensors.numpy import save as to_blob

from tokzoo.data.config import DataConfig
from tokzoo.data.sources.base import (
  BadRecord,
  Record,
  Source,
  SourceInfo,
  require_split,
)
from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.tokens import Origin, Tokens

FORMAT = "tokzoo-token-records"
VERSION = 1
MANIFEST = "manifest.json"
_RECORDS = "tokens.arrayrecord"


class TokenSource(Source):
  """The records of one split.

  A folder is what was made of one split and says of which; asked for another, it refuses, so
  that nobody evaluates on what was trained on by mistake.
  """

  def __init__(self, path: str, split: str):
    if not path:
      raise TokzooError("the source tokens: lacks its path: write tokens:PATH.")
    folder = Path(path).expanduser()
    parts = sorted(part.parent.name for part in folder.glob(f"*/{MANIFEST}"))
    if parts:
      require_split(f"tokens:{path}", split, parts)
      folder = folder / split
    manifest = read_manifest(folder)
    if manifest["data"]["split"] != split:
      raise TokzooError(
        f"{folder} holds the tokens of the split {manifest['data']['split']!r}, not of "
        f"{split!r}: encode that split too (tokzoo encode --split {split}), or set "
        "data.split."
      )
    records = folder / _RECORDS
    size = records.stat().st_size if records.is_file() else 0
    if size != manifest["bytes"]:
      raise TokzooError(
        f"{records} has {size} bytes but its manifest says {manifest['bytes']}: encode the "
        "data again."
      )
    self._name = str(folder)
    self._records = ArrayRecordDataSource([str(records)])
    self.origin = Origin(**manifest["origin"])
    self.info = SourceInfo(
      name=f"tokens:{path}",
      split=split,
      splits=tuple(parts) or (split,),
      description=f"{manifest['data']['source']} as tokens of {self.origin}",
    )

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Record:
    key = f"{self._name}/{index}"
    try:
      return {**from_blob(self._records[index]), "key": key}
    except (RuntimeError, ValueError) as error:
      raise BadRecord(key, str(error)) from error


class TokenWriter:
  """Writes a folder of token records; nothing that looks whole is left if it is stopped.

  with TokenWriter(folder, tokenizer.origin, data) as writer:
    writer.write({"packed": ..., "label": ...}, tokens)
  """

  def __init__(self, folder: str | Path, origin: Origin, data: DataConfig):
    self.count = 0
    self._data = data
    self._folder = Path(folder)
    self._origin = origin
    self._layout: dict[str, Any] = {}
    if (self._folder / MANIFEST).exists():
      raise TokzooError(
        f"{self._folder} holds token records already: choose another folder, or remove it."
      )
    self._making = self._folder.with_name(f".{self._folder.name}.unfinished")

  def __enter__(self) -> "TokenWriter":
    shutil.rmtree(self._making, ignore_errors=True)
    try:
      self._making.mkdir(parents=True)
    except OSError as error:
      raise TokzooError(
        f"cannot write {self._folder}: {error.strerror}; name a folder that you may write to."
      ) from error
    self._writer = ArrayRecordWriter(str(self._making / _RECORDS), "group_size:1")
    return self

  def write(self, rows: Mapping[str, np.ndarray], tokens: Tokens) -> None:
    """Writes one record per row of the arrays; `tokens` tells their layout."""
    self._layout = {"kind": tokens.kind, "vocab": tokens.vocab, "bits": tokens.bits}
    count = len(next(iter(rows.values())))
    for index in range(count):
      row = {name: np.array(value[index], order="C") for name, value in rows.items()}
      self._writer.write(to_blob(row))
    self.count += count

  def __exit__(self, kind: Any, *_: Any) -> None:
    self._writer.close()
    if kind is not None:
      shutil.rmtree(self._making, ignore_errors=True)
      return
    manifest = {
      "format": FORMAT,
      "format_version": VERSION,
      "origin": {"system": self._origin.system, "weights": self._origin.weights},
      "data": what_was_encoded(self._data),
      "layout": self._layout,
      "records": self.count,
      "bytes": (self._making / _RECORDS).stat().st_size,
    }
    write_atomic(self._making / MANIFEST, json.dumps(manifest, indent=2).encode())
    shutil.rmtree(self._folder, ignore_errors=True)
    self._making.rename(self._folder)


def read_manifest(folder: Path) -> dict[str, Any]:
  """The manifest of a folder of token records.

  Raises:
    TokzooError: there is none, it is damaged, or of another or newer format.
  """
  path = folder / MANIFEST
  if not path.is_file():
    raise TokzooError(
      f"{folder} has no {MANIFEST}: name a folder that  tokzoo encode  has finished."
    )
  try:
    manifest = json.loads(path.read_text())
    found, version = manifest["format"], int(manifest["format_version"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise TokzooError(f"{path} is damaged ({error}): encode the data again.") from error
  if found != FORMAT or version > VERSION:
    raise TokzooError(
      f"{path} has format {found} {version}, this tokzoo reads {FORMAT} up to {VERSION}: "
      "encode the data again, or upgrade tokzoo."
    )
  return manifest


def what_was_encoded(data: DataConfig) -> dict[str, Any]:
  """The fields of a config that decide which pictures are encoded, as JSON holds them."""
  how_fast = ("shuffle", "threads", "prefetch")
  fields = dataclasses.asdict(data).items()
  return {name: value for name, value in fields if name not in how_fast}
