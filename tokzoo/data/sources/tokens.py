"""`tokens:PATH`: records that a tokenizer made beforehand, for generators to read.

  manifest.json       origin, layout, count; written last, so a folder without is not whole
  tokens.arrayrecord  one record to a chunk: a small safetensors blob of named arrays

A record holds `packed` uint32[L, w], `ids` int32[L] or [L, Q], or `values` float32[L, D], and
whatever belongs to it: `label` int32[], `features` and `text_mask`. PATH is the folder of one
split, or a folder with one such folder per split.
"""

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

from tokzoo.data.sources.base import BadRecord, Record, Source, SourceInfo
from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.tokens import Origin, Tokens

FORMAT = "tokzoo-token-records"
VERSION = 1
MANIFEST = "manifest.json"
_RECORDS = "tokens.arrayrecord"


class TokenSource(Source):
  """The records of one split."""

  def __init__(self, path: str, split: str):
    folder = Path(path).expanduser()
    if (folder / split / MANIFEST).is_file():
      folder = folder / split
    manifest = read_manifest(folder)
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
      splits=(split,),
      description=f"tokens of {self.origin}, layout {manifest['layout']}",
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

  with TokenWriter(folder, tokenizer.origin) as writer:
    writer.write({"packed": ..., "label": ...}, tokens)
  """

  def __init__(self, folder: str | Path, origin: Origin):
    self.count = 0
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
      row = {name: np.ascontiguousarray(value[index]) for name, value in rows.items()}
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


def kept_origin(folder: str | Path) -> Origin | None:
  """Whose tokens a finished folder holds; None if there is none."""
  folder = Path(folder)
  if not (folder / MANIFEST).is_file():
    return None
  return Origin(**read_manifest(folder)["origin"])
