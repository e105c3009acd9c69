"""`arrayrecord:PATH`: a folder that `tokzoo data prepare` wrote.

  manifest.json                      what it is; written last, so a folder without is not whole
  train-00000-of-00003.arrayrecord   ArrayRecord files, one record to a chunk, uncompressed
  test-00000-of-00001.arrayrecord    (pictures are compressed already), with checksums

PATH may be remote (gs://...): its files are then copied into the cache once. For data larger than
the disk mount the bucket instead (gcsfuse, mountpoint-s3) and name the mounted folder.

A record is a header and the bytes of an image or sound file, as they were in the source:

  uint32  little-endian, the length n of the header
  n bytes UTF-8 JSON: {"key": ..., "label": ..., "text": ..., "media": ...}; label and text may
          be absent, as may media where it is image
  rest    the file
"""

import json
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from tokzoo.data.sources.base import (
  BadRecord,
  Encoded,
  Source,
  SourceInfo,
  require_split,
)
from tokzoo.errors import TokzooError
from tokzoo.remote import Located, kept_copy, located, size_of

FORMAT = "tokzoo-arrayrecord"
VERSION = 1
MANIFEST = "manifest.json"


class ArrayRecordSource(Source):
  """The records of one split, in the order in which they were written."""

  def __init__(self, path: str, split: str):
    if not path:
      raise TokzooError(
        "the source arrayrecord: lacks its path: write arrayrecord:PATH."
      )
    folder = located(path)
    manifest = read_manifest(folder)
    require_split(f"arrayrecord:{path}", split, tuple(manifest["splits"]))
    part = manifest["splits"][split]
    for file in part["files"]:
      _require_whole(folder / file["name"], file["bytes"])
    try:
      files = [
        str(kept_copy(folder / file["name"], file["sha256"])) for file in part["files"]
      ]
      self._records = ArrayRecordDataSource(files)
    except (RuntimeError, ValueError) as error:
      raise TokzooError(
        f"cannot open the records of {folder}: {error}; prepare them again."
      ) from error
    self._name = f"{folder}/{split}"
    self.info = SourceInfo(
      name=f"arrayrecord:{path}",
      split=split,
      splits=tuple(manifest["splits"]),
      description=manifest["description"],
      licence=manifest["licence"],
      version=f"{manifest['source']}, {manifest['source_version']}",
      classes=tuple(manifest["classes"]),
      media=manifest.get("media", "image"),
    )

  def __len__(self) -> int:
    return len(self._records)

  def encoded(self, index: int) -> Encoded:
    try:
      return unpack(self._records[index])
    except (RuntimeError, ValueError, KeyError) as error:
      raise BadRecord(f"{self._name}/{index}", str(error)) from error


def pack(item: Encoded) -> bytes:
  """A record as it is written."""
  fields = {"key": item.key, "label": item.label, "text": item.text}
  if item.media != "image":
    fields["media"] = item.media
  header = json.dumps(
    {name: field for name, field in fields.items() if field is not None}
  )
  raw = header.encode()
  return len(raw).to_bytes(4, "little") + raw + item.data


def unpack(record: bytes) -> Encoded:
  """The inverse of `pack`. Raises ValueError or KeyError if it is something else."""
  start = 4 + int.from_bytes(record[:4], "little")
  if start > len(record):
    raise ValueError("it is shorter than its header")
  fields = json.loads(record[4:start])
  return Encoded(
    record[start:],
    fields["key"],
    fields.get("label"),
    fields.get("text"),
    fields.get("media", "image"),
  )


def read_manifest(folder: Located) -> dict[str, Any]:
  """The manifest of a prepared folder.

  Raises:
    TokzooError: there is none, it is damaged, or of a newer format.
  """
  path = folder / MANIFEST
  if not path.is_file():
    raise TokzooError(
      f"{folder} has no {MANIFEST}: name a folder that  tokzoo data prepare  has finished."
    )
  try:
    manifest = json.loads(path.read_text())
    found, version = manifest["format"], int(manifest["format_version"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise TokzooError(
      f"{path} is damaged ({error}): prepare the data again."
    ) from error
  if found != FORMAT or version > VERSION:
    raise TokzooError(
      f"{path} has format {found} {version}, this tokzoo reads {FORMAT} up to {VERSION}: "
      "upgrade tokzoo."
    )
  return manifest


def _require_whole(path: Located, size: int) -> None:
  """Raises a TokzooError unless the file is there with the size that the manifest has."""
  found = size_of(path)
  if found != size:
    has = "is missing" if found is None else f"has {found} bytes"
    raise TokzooError(
      f"{path} {has} but the manifest says {size} bytes: prepare or copy the data again."
    )
