"""`folder:PATH`, `audio:PATH`: a folder of pictures, or of sound, with or without classes.

  PATH/*.png                  no classes
  PATH/CLASS/.../*.png        the first folder's name is the class, sorted by name
  PATH/train/..., /test/...   splits, each of one of the two kinds above

PATH may be remote (gs://...): each file is then fetched when it is read. Pictures are files
whose name ends as a picture's does (`IMAGE_SUFFIXES`), sounds likewise (`SOUND_SUFFIXES`); other
files are counted in the description, hidden ones are not looked at. A file that cannot be decoded
is an error that names it when it is read.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tokzoo.data.sound import SOUND_SUFFIXES
from tokzoo.data.sources.base import (
  IMAGE_SUFFIXES,
  BadRecord,
  Encoded,
  Media,
  Record,
  Source,
  SourceInfo,
  split_folder,
)
from tokzoo.errors import TokzooError
from tokzoo.remote import Located, files_under, on_disk


class Folder(Source):
  """Pictures in a folder, in the order of their paths; the key is the path."""

  kind: str = "folder"
  noun: str = "pictures"
  media: Media = "image"
  suffixes: tuple[str, ...] = IMAGE_SUFFIXES

  def __init__(self, path: str, split: str):
    root, splits = split_folder(self.kind, path, split)
    if not root.is_dir():
      raise TokzooError(
        f"{root} is a file: {self.kind}: wants the folder that it lies in."
      )
    pictures, num_others = _files_under(root, self.suffixes)
    if not pictures:
      holds = f"only {num_others} other files" if num_others else "nothing"
      raise TokzooError(
        f"{root} holds {holds}, no {self.noun}: name a folder with files that end in "
        f"{', '.join(self.suffixes)}."
      )
    classes = _classes(root, pictures, self.noun)
    if split != "train":
      # A label means the same in all splits, even where one of them lacks a class.
      train = root.parent / "train"
      known = _classes(train, _files_under(train, self.suffixes)[0], self.noun)
      if extra := set(classes) - set(known):
        raise TokzooError(
          f"{root} has the class {min(extra)!r}, which {train} lacks: add an example "
          "there, or remove it here."
        )
      classes = known if classes else ()
    self._root = root
    self._pictures = pictures
    self._labels = {name: label for label, name in enumerate(classes)}
    ignored = f"; {num_others} other files are ignored" if num_others else ""
    self.info = SourceInfo(
      name=f"{self.kind}:{path}",
      split=split,
      splits=splits,
      description=f"{len(pictures)} {self.noun} in {len(classes) or 'no'} classes{ignored}",
      classes=classes,
      media=self.media,
    )

  def __len__(self) -> int:
    return len(self._pictures)

  def encoded(self, index: int) -> Encoded:
    picture = self._pictures[index]
    path = self._root / picture
    try:
      data = path.read_bytes()
    except OSError as error:
      raise BadRecord(str(path), error.strerror or str(error)) from error
    except Exception as error:  # every store has errors of its own
      if isinstance(path, Path):
        raise
      raise BadRecord(str(path), str(error)) from error
    label = self._labels.get(picture.parts[0])
    return Encoded(data, str(path), label, media=self.media)


class SoundFolder(Folder):
  """Sound files in a folder, likewise.

  Beside NAME.wav may lie NAME.teacher.npy, NAME.teacher_lm.npy, ...: float[M, D], features of a
  teacher for the whole file, which come as `teacher`, `teacher_lm`, ... of the record.
  """

  kind = "audio"
  noun = "sounds"
  media = "sound"
  suffixes = SOUND_SUFFIXES

  def __getitem__(self, index: int) -> Record:
    record = super().__getitem__(index)
    path = self._root / self._pictures[index]
    found = sorted(path.parent.glob(f"{glob.escape(path.stem)}.teacher*.npy"))
    if found:
      record["frames"] = {file.name.split(".")[-2]: _features(file) for file in found}
    return record


def _features(path: Located) -> np.ndarray:
  """A teacher's features, float32[M, D].

  Raises:
    BadRecord: they are not.
  """
  try:
    with on_disk(path) as local:
      rows = np.load(local, allow_pickle=False)
  except (OSError, ValueError) as error:
    raise BadRecord(str(path), str(error)) from error
  if rows.ndim != 2 or not len(rows) or not np.isfinite(rows).all():
    raise BadRecord(
      str(path),
      f"features are finite float[M, D]; these are {rows.dtype}{list(rows.shape)}",
    )
  return rows.astype(np.float32)


def _classes(root: Located, pictures: list[Path], noun: str) -> tuple[str, ...]:
  """The first folders of the files' paths, sorted; none if they lie in `root` itself."""
  loose = [picture for picture in pictures if len(picture.parts) == 1]
  if len(loose) == len(pictures):
    return ()
  names = sorted({picture.parts[0] for picture in pictures if picture.parts[1:]})
  if loose:
    raise TokzooError(
      f"{root} holds {noun} both beside folders ({loose[0]}) and inside ({names[0]}), so "
      "their classes are unclear: move all of them into class folders, or all out."
    )
  return tuple(names)


def _files_under(root: Located, suffixes: tuple[str, ...]) -> tuple[list[Path], int]:
  """The paths of such files relative to `root`, sorted, and the number of others."""
  files = _files_here(root) if isinstance(root, Path) else map(Path, files_under(root))
  shown = [file for file in files if not any(part[0] == "." for part in file.parts)]
  pictures = [file for file in shown if file.name.lower().endswith(suffixes)]
  return sorted(pictures), len(shown) - len(pictures)


def _files_here(root: Path) -> Iterator[Path]:
  """The paths of all files below a folder of this machine, relative to it."""
  seen = set()
  for folder, folders, files in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen:  # a link back up
      folders.clear()
      continue
    seen.add(real)
    folders[:] = [name for name in folders if name[0] != "."]
    for name in files:
      yield (Path(folder) / name).relative_to(root)
