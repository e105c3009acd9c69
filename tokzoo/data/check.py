"""A look at a data set before training on it: what is there, and what is broken."""

import collections
import dataclasses
import math
from typing import Any

import numpy as np

from tokzoo.data.config import DataConfig
from tokzoo.data.sources import BadRecord, guess_source, open_source
from tokzoo.data.sources.arrayrecord import read_manifest
from tokzoo.data.sources.base import Media
from tokzoo.errors import TokzooError
from tokzoo.files import sha256_of
from tokzoo.remote import Located, located, on_disk


@dataclasses.dataclass(frozen=True)
class CheckReport:
  """What `check` found.

  source:       as in `DataConfig.source`
  split:        the part that was read
  splits:       all parts that there are
  description:  one sentence
  licence:      of the pictures or sounds
  version:      of where they come from
  records:      in the split
  read:         of those, how many were read, the bad ones included
  shapes:       (H, W, C) or (T, C) -> how many of those read, the most frequent first
  dtype:        of the pictures or sounds
  lowest:       smallest pixel or sample, None if nothing could be read
  highest:      largest pixel or sample
  classes:      class -> how many of those read; empty: no classes
  bad:          file or record -> what is wrong with it
  """

  source: str
  split: str
  splits: tuple[str, ...]
  description: str
  licence: str
  version: str
  records: int
  read: int
  shapes: dict[tuple[int, ...], int]
  dtype: str
  lowest: float | None
  highest: float | None
  classes: dict[str, int]
  bad: dict[str, str]
  media: Media = "image"

  def rows(self) -> list[tuple[str, str]]:
    """Name and value of each line of a table."""
    shapes = [f"{count} of {_size(shape)}" for shape, count in self.shapes.items()]
    if len(shapes) > 5:
      areas = sorted(self.shapes, key=math.prod)
      shapes = [f"{len(shapes)} sizes, {_size(areas[0])} to {_size(areas[-1])}"]
    rows = [
      ("source", self.source),
      ("split", f"{self.split} of {', '.join(self.splits)}"),
      ("description", self.description),
      ("licence", self.licence),
      ("version", self.version),
      ("records", f"{self.records:,}, of which {self.read:,} were read"),
      (
        "pictures" if self.media == "image" else "sounds",
        ", ".join(shapes) or "none",
      ),
      ("dtype", self.dtype),
      ("range", f"{self.lowest} to {self.highest}" if self.shapes else "unknown"),
      ("classes", f"{len(self.classes)}" if self.classes else "none"),
    ]
    rows += [(f"  {name}", f"{count:,}") for name, count in self.classes.items()]
    rows += [("bad", f"{len(self.bad)}")]
    return rows + [(f"  {name}", reason) for name, reason in self.bad.items()]

  def as_dict(self) -> dict[str, Any]:
    """The fields as JSON can hold them."""
    fields = dataclasses.asdict(self)
    fields["shapes"] = [
      {"shape": list(shape), "count": count} for shape, count in self.shapes.items()
    ]
    return fields


def check(
  path: str, split: str = "train", records: int = 100, digests: bool = False
) -> CheckReport:
  """Reads some records, spread evenly over a split, and reports what they are.

  Args:
    path: a source such as `folder:PATH`, or a path alone (see `guess_source`).
    split: the part to read.
    records: how many to read; all of them if there are no more.
    digests: also compare the SHA-256 of every file with the manifest (`arrayrecord:`).

  Returns:
    The report; records that cannot be read or decoded are in `bad`, by name.

  Raises:
    TokzooError: the source cannot be opened at all, or `records` is less than 1.
  """
  if records < 1:
    raise TokzooError(f"{records} records were asked for: read at least 1.")
  name = guess_source(path)
  source = open_source(DataConfig(source=name, split=split))
  count = min(records, len(source))
  shapes, labels = collections.Counter(), collections.Counter()
  ranges: list[tuple[float, float]] = []
  bad: dict[str, str] = {}
  for index in np.linspace(0, len(source) - 1, count).round().astype(int).tolist():
    try:
      record = source[index]
    except BadRecord as error:
      bad[error.key] = error.reason
      continue
    array = record["image"] if "image" in record else record["audio"]
    shapes[array.shape] += 1
    ranges.append((array.min().item(), array.max().item()))
    if "label" in record:
      labels[int(record["label"])] += 1
  if digests:
    bad |= _changed_files(name)
  info = source.info
  return CheckReport(
    source=name,
    split=split,
    splits=info.splits,
    description=info.description,
    licence=info.licence,
    version=info.version,
    records=len(source),
    read=count,
    shapes=dict(shapes.most_common()),
    dtype="uint8" if info.media == "image" else "float32",
    lowest=min((low for low, _ in ranges), default=None),
    highest=max((high for _, high in ranges), default=None),
    classes={name: labels[label] for label, name in enumerate(info.classes)},
    bad=bad,
    media=info.media,
  )


def _changed_files(source: str) -> dict[str, str]:
  """The files of a prepared folder that are not what its manifest says."""
  kind, _, path = source.partition(":")
  if kind != "arrayrecord":
    raise TokzooError(
      f"{source} has no digests to compare: only prepared data (arrayrecord:PATH) has."
    )
  folder = located(path)
  files = [
    file
    for part in read_manifest(folder)["splits"].values()
    for file in part["files"]
    if _sha256(folder / file["name"]) != file["sha256"]
  ]
  return {
    str(folder / file["name"]): "its SHA-256 is not the manifest's" for file in files
  }


def _sha256(path: Located) -> str:
  with on_disk(path) as local:
    return sha256_of(local)


def _size(shape: tuple[int, ...]) -> str:
  return " x ".join(map(str, shape))
