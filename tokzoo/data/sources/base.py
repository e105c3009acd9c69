"""What every source is: random access to pictures or sounds, each with a name and perhaps a class.

A record is a dict of

  image  uint8[H, W, C], C is 1 (grey) or 3 (RGB), as stored; or
  audio  float32[T, C] in [-1, 1], as stored, with `rate_hz` int, samples a second, and perhaps
         `frames`, arrays [M, ...] by name whose rows lie evenly over the sound: a teacher's features
  label  int32[], in [0, len(classes)); only where the source has classes
  text   str, a caption; only where the record has one
  key    str, names the record in messages: a path, a member of a tar, an index

A source is an object, not a generator: `source[i]` may be called from many threads, in any
order, and always returns the same record.
"""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tokzoo.data.sound import BadSound, decode_sound
from tokzoo.errors import TokzooError
from tokzoo.remote import Located, located

Record = dict[str, Any]
"""One picture or sound: `image` or `audio` and `rate_hz`, `key` and, where the source has them,
`label` and `text`."""

Media = Literal["image", "sound"]
"""What the records of a source are."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""File names that are taken for pictures, in lower case."""


@dataclasses.dataclass(frozen=True)
class SourceInfo:
  """What is known about a source beside its records.

  name:         as in `DataConfig.source`
  split:        the part that is open
  splits:       all parts that there are
  description:  one sentence
  licence:      of the pictures
  version:      of the package or file that they come from
  classes:      class names in the order of their labels; empty: no labels
  media:        image or sound
  """

  name: str
  split: str
  splits: tuple[str, ...]
  description: str
  licence: str = "unknown"
  version: str = "unknown"
  classes: tuple[str, ...] = ()
  media: Media = "image"


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A record before decoding: the bytes of an image or sound file, as they were stored."""

  data: bytes
  key: str
  label: int | None = None
  text: str | None = None
  media: Media = "image"


class BadRecord(TokzooError):
  """A record that cannot be read or decoded: `key` names it, `reason` says why."""

  def __init__(self, key: str, reason: str):
    super().__init__(
      f"cannot read {key}: {reason}; remove or replace it, or set data.skip_bad."
    )
    self.key = key
    self.reason = reason


class Source:
  """Random access to pictures or sounds. A subclass sets `info`, `__len__` and `encoded`."""

  info: SourceInfo

  def __len__(self) -> int:
    raise TypeError(f"{type(self).__name__} does not define its length")

  def encoded(self, index: int) -> Encoded:
    """The record as the bytes of a file, e.g. to copy it without loss.

    Raises:
      BadRecord: it cannot be read.
    """
    raise TypeError(f"{type(self).__name__} does not define its records")

  def __getitem__(self, index: int) -> Record:
    """The record.

    Raises:
      BadRecord: it cannot be read or decoded; a TokzooError that names it.
    """
    item = self.encoded(index)
    record: Record = {**decoded(item), "key": item.key}
    if item.label is not None:
      record["label"] = np.int32(item.label)
    if item.text is not None:
      record["text"] = item.text
    return record


class ArraySource(Source):
  """A source whose pictures are small and lie in memory.

  Args:
    info: about the source.
    images: uint8[N, H, W, C].
    labels: int[N].
  """

  def __init__(self, info: SourceInfo, images: np.ndarray, labels: np.ndarray):
    self.info = info
    self._images = images
    self._labels = labels

  def __len__(self) -> int:
    return len(self._images)

  def encoded(self, index: int) -> Encoded:
    image = self._images[index]
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return Encoded(file.getvalue(), self._key(index), int(self._labels[index]))

  def __getitem__(self, index: int) -> Record:
    return {
      "image": self._images[index],
      "label": np.int32(self._labels[index]),
      "key": self._key(index),
    }

  def _key(self, index: int) -> str:
    return f"{self.info.name}/{self.info.split}/{index}"


def decoded(item: Encoded) -> Record:
  """The `image`, or the `audio` and its `rate_hz`, of an encoded record.

  Raises:
    BadRecord: it cannot be decoded.
  """
  if item.media == "image":
    return {"image": decode_image(item.data, item.key)}
  try:
    sound = decode_sound(item.data)
  except BadSound as error:
    raise BadRecord(item.key, str(error)) from error
  return {"audio": sound.samples, "rate_hz": sound.info.rate_hz}


def decode_image(data: bytes, key: str) -> np.ndarray:
  """Decodes the bytes of an image file; of an animation, the first frame.

  The camera's orientation tag is applied. Transparent pixels are laid over white. Of 16 bits
  the nearest of 256 levels is kept.

  Args:
    data: the whole file.
    key: names the file in the message.

  Returns:
    uint8[H, W, C], C is 1 or 3.

  Raises:
    BadRecord: not an image, cut short, or of a kind without a fixed range.
  """
  try:
    with Image.open(io.BytesIO(data)) as picture:
      picture.load()
      return _as_array(ImageOps.exif_transpose(picture))
  except UnidentifiedImageError:
    reason = "it is empty" if not data else "it is not an image that Pillow knows"
  # Pillow's decoders raise all of these on damaged files.
  except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
    reason = str(error) or type(error).__name__
  except Image.DecompressionBombError as error:
    reason = str(error)
  raise BadRecord(key, reason)


def _as_array(picture: Image.Image) -> np.ndarray:
  """uint8[H, W, C] of a decoded picture of any mode."""
  if picture.mode.startswith("I;16"):
    levels = np.asarray(picture).astype(np.float32) / 257
    return np.rint(levels).astype(np.uint8)[..., None]
  if picture.mode in ("I", "F"):
    raise ValueError(f"its pixels (mode {picture.mode}) have no fixed range")
  is_grey = picture.mode in ("1", "L", "LA")
  if picture.has_transparency_data:
    picture = picture.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(ground, picture)
  if is_grey:
    return np.asarray(picture.convert("L"))[..., None]
  return np.asarray(picture.convert("RGB"))


def require_split(name: str, split: str, known: Sequence[str]) -> None:
  """Raises a TokzooError unless `split` is one of `known`."""
  if split not in known:
    raise TokzooError(
      f"{name} has no split {split!r}: set data.split to {' or '.join(known)}."
    )


def split_folder(kind: str, path: str, split: str) -> tuple[Located, tuple[str, ...]]:
  """Where the files of a split lie: in `path/split` if `path` has parts, else in `path`.

  A path has parts when it is a folder that holds a folder called `train`. One without parts
  is all training data, so that nobody evaluates on what was trained on by mistake.

  Returns:
    The path of the files, and the names of all splits.

  Raises:
    TokzooError: the path is missing, or has no such split.
  """
  if not path:
    raise TokzooError(f"the source {kind}: lacks its path: write {kind}:PATH.")
  place = located(path)
  if not place.exists():
    raise TokzooError(
      f"no such file or folder: {place}; check the path after '{kind}:'."
    )
  if (place / "train").is_dir():
    parts = sorted(
      part.name for part in place.iterdir() if part.is_dir() and part.name[0] != "."
    )
    require_split(f"{kind}:{path}", split, parts)
    return place / split, tuple(parts)
  if split != "train":
    raise TokzooError(
      f"{kind}:{path} has no split {split!r}, only train: to have parts, put the files "
      f"into {path}/train and {path}/{split}."
    )
  return place, ("train",)
