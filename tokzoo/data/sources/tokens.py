"""`tokens:PATH`: records that a tokenizer made beforehand, for generators to read.

  manifest.json                       the header: tokenizer and hash of its weights, layout,
                                      the DataConfig that was encoded (crops, views), classes,
                                      and the files; written last (see ../token_shards.py), so
                                      a folder without is not whole
  tokens-00000-of-00013.arrayrecord   one record to a chunk: a small safetensors blob of named
                                      arrays

Record i is view i of one pass over the data: record i mod N of its N pictures or sounds. A record
holds `packed` uint32[L, w], `ids` int32[L] or [L, Q], or `values` float32[L, D], and whatever
belongs to it: `label` int32[], `features` and `text_mask`, `scale` float32[S] of a codec that needs
it. PATH is the folder of one
split, or a folder with one such folder per split; it may be remote (gs://...): its files are
then copied into the cache once.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from safetensors.numpy import load as from_blob

from tokzoo.data.sources.base import (
  BadRecord,
  Record,
  Source,
  SourceInfo,
  require_split,
)
from tokzoo.errors import TokzooError
from tokzoo.remote import Located, kept_copy, located, size_of
from tokzoo.tokens import Origin

FORMAT = "tokzoo-token-records"
VERSION = 2
MANIFEST = "manifest.json"
_COPIES = 8
"""Remote files that are fetched at once."""


class TokenSource(Source):
  """The records of one split.

  A folder is what was made of one split and says of which; asked for another, it refuses, so
  that nobody evaluates on what was trained on by mistake.
  """

  def __init__(self, path: str, split: str):
    if not path:
      raise TokzooError("the source tokens: lacks its path: write tokens:PATH.")
    folder = located(path)
    parts = tuple(sorted(part.parent.name for part in folder.glob(f"*/{MANIFEST}")))
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
    self._name = str(folder)
    self._records = ArrayRecordDataSource(_files(folder, manifest["files"]))
    self.origin = Origin(**manifest["origin"])
    self.layout: dict[str, Any] = manifest["layout"]
    self.info = SourceInfo(
      name=f"tokens:{path}",
      split=split,
      splits=parts or (split,),
      description=f"{manifest['data']['source']} as tokens of {self.origin}",
      classes=tuple(manifest.get("classes", ())),
    )

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Record:
    key = f"{self._name}/{index}"
    try:
      return {**from_blob(self._records[index]), "key": key}
    except (RuntimeError, ValueError) as error:
      raise BadRecord(key, str(error)) from error


def read_manifest(folder: Located) -> dict[str, Any]:
  """The manifest of a folder of token records.

  Raises:
    TokzooError: there is none, it is damaged, or of another or newer format.
  """
  path = folder / MANIFEST
  if not path.is_file():
    raise TokzooError(
      f"{folder} has no {MANIFEST}: name a folder that  tokzoo tokenize-dataset  has finished."
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
  if version == 1:  # one file
    size = {"records": manifest["records"], "bytes": manifest["bytes"]}
    manifest["files"] = [{"name": "tokens.arrayrecord", **size}]
  return manifest


def _files(folder: Located, files: list[dict[str, Any]]) -> list[str]:
  """The shards as files of this machine, each of the size that the manifest says."""

  def one(file: dict[str, Any]) -> str:
    path = folder / file["name"]
    size = size_of(path)
    if size != file["bytes"]:
      has = "is missing" if size is None else f"has {size} bytes"
      raise TokzooError(
        f"{path} {has} but its manifest says {file['bytes']} bytes: encode the data again."
      )
    return str(kept_copy(path, file.get("sha256", "")))

  with ThreadPoolExecutor(_COPIES) as pool:
    return list(pool.map(one, files))
