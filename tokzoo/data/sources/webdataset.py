"""`webdataset:PATH`: samples in tar files, read at random through an index.

PATH is a tar file, a folder of them, a folder with the splits `train`, `test`, ..., or a
pattern such as `shards/train-*.tar`. The files of one sample share their path up to the
first dot of the name:

  .png .jpg .jpeg .webp   the picture
  .cls                    its class, a number written out
  .json                   an object; its "label" or "cls" is the class where there is no .cls
  .txt                    a caption

The headers are walked once, when the source is opened; afterwards a sample is one read at a
known place. Compressed tar files have no such places and are refused. Samples without a
picture are an error, as is a set of which only some samples have a class.
"""

import dataclasses
import glob
import json
import os
import tarfile
from pathlib import Path

from tokzoo.data.sources.base import (
  BadRecord,
  Encoded,
  Source,
  SourceInfo,
  require_split,
  split_folder,
)
from tokzoo.errors import TokzooError

_IMAGES = ("png", "jpg", "jpeg", "webp")


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where a member's bytes lie."""

  file: Path
  offset: int
  size: int

  def read(self) -> bytes:
    with open(self.file, "rb") as file:
      file.seek(self.offset)
      return file.read(self.size)


class WebDataset(Source):
  """Samples of tar files in the order of the files and of their members."""

  def __init__(self, path: str, split: str):
    files, splits = _tar_files(path, split)
    self._samples = [
      (f"{file}/{key}", parts)
      for file in files
      for key, parts in _index(file).items()
      if parts.keys() & {*_IMAGES, "cls", "json", "txt"}
    ]
    if not self._samples:
      raise TokzooError(
        f"webdataset:{path} holds no samples: name tar files with some."
      )
    for key, parts in self._samples:
      if not parts.keys() & set(_IMAGES):
        raise TokzooError(
          f"the sample {key} has no picture, only {', '.join(sorted(parts))}: add one "
          f"that ends in {', '.join(_IMAGES)}, or leave the sample out."
        )
    labels = [_label(key, parts) for key, parts in self._samples]
    known = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
      raise TokzooError(
        f"{len(labels) - len(known)} of {len(labels)} samples have no class (the first is "
        f"{self._samples[labels.index(None)][0]}): give all samples a .cls, or none."
      )
    self._labels = labels
    self.info = SourceInfo(
      name=f"webdataset:{path}",
      split=split,
      splits=splits,
      description=f"{len(labels)} samples in {len(files)} tar files",
      classes=tuple(map(str, range(max(known) + 1))) if known else (),
    )

  def __len__(self) -> int:
    return len(self._samples)

  def encoded(self, index: int) -> Encoded:
    key, parts = self._samples[index]
    image = next(parts[kind] for kind in _IMAGES if kind in parts)
    try:
      data = image.read()
      text = parts["txt"].read().decode() if "txt" in parts else None
    except (OSError, UnicodeDecodeError) as error:
      raise BadRecord(key, str(error)) from error
    return Encoded(data, key, self._labels[index], text)


def _tar_files(path: str, split: str) -> tuple[list[Path], tuple[str, ...]]:
  """The tar files of a split, and the names of all splits."""
  if glob.has_magic(path):
    require_split(f"webdataset:{path}", split, ("train",))
    files, splits = [Path(file) for file in glob.glob(path)], ("train",)
  else:
    root, splits = split_folder("webdataset", path, split)
    if not isinstance(root, Path):
      raise TokzooError(
        f"webdataset:{path} is remote, but tar files are read on this machine only: mount the "
        "bucket, or copy them here."
      )
    files = [root] if root.is_file() else list(root.glob("*.tar"))
  if not files:
    raise TokzooError(
      f"no tar files at {path}: name one, a folder of them or a pattern."
    )
  return sorted(files), splits


def _index(file: Path) -> dict[str, dict[str, _Place]]:
  """Sample -> kind of file -> place, in the order of the members."""
  samples: dict[str, dict[str, _Place]] = {}
  try:
    with tarfile.open(file, "r:") as tar:
      for member in tar:
        folder, name = os.path.split(member.name)
        stem, _, kind = name.partition(".")
        if member.isreg() and stem and kind:
          place = _Place(file, member.offset_data, member.size)
          samples.setdefault(os.path.join(folder, stem), {})[kind.lower()] = place
  except (tarfile.TarError, OSError) as error:
    raise TokzooError(
      f"cannot read {file} as an uncompressed tar file ({error}): it is cut short, "
      "compressed or something else; unpack or copy it again."
    ) from error
  return samples


def _label(key: str, parts: dict[str, _Place]) -> int | None:
  """The class of a sample, if it has one."""
  try:
    if "cls" in parts:
      label = int(parts["cls"].read())
    elif "json" in parts:
      fields = json.loads(parts["json"].read())
      label = fields.get("label", fields.get("cls"))
    else:
      return None
  except (OSError, ValueError, AttributeError) as error:
    raise TokzooError(f"cannot read the class of {key}: {error}; mend it.") from error
  if label is not None and (not isinstance(label, int) or label < 0):
    raise TokzooError(f"the class of {key} is {label!r}: it must be 0, 1, 2, ...")
  return label
