"""From a record to a training example: every step exactly specified, in this order.

  channels   1: ITU-R 601-2 luma as Pillow's mode L; 3: grey repeated
  resize     the shorter side to `resize` pixels, the longer by the same factor, rounded to
             the nearest pixel, half up; Pillow's filters on bytes
  crop       a square of `size` pixels: `random`, uniform over all places; `center`, at
             ((H - size) // 2, (W - size) // 2); `ten`, of the largest centred square, by the
             view's number: upper left, upper right, lower left, lower right, centre, and the
             mirror images of these five
  flip       left to right, with probability one half
  range      float32, x / 127.5 - 1: 0 becomes -1 and 255 becomes 1

With `antialias` the filter widens with the shrinking factor, which is what Pillow does. Without
it the filter keeps the width that it has for enlarging and skips pixels when shrinking, as
TensorFlow's and PyTorch's resize of arrays do unless told otherwise.

Sounds take steps of their own:

  channels   as in `tokzoo/data/sound.py`: the mean for mono, mono repeated for stereo
  resample   to `sample_rate_hz`, by soxr
  crop       `seconds`: `random`, uniform over all places; `center`; `none`, from the start;
             `pieces`, as the source has cut it already (`tokzoo/data/sources/pieces.py`).
             What is shorter is filled up with silence at its end. Frames that come with a
             sound (a teacher's features) are cut where it is, and filled up with zeros.
             A `random` crop softer than `softest_db` LUFS is drawn again, up to eight times
             in all; the last is taken as it is
  loudness   to `loudness_db` LUFS; channels whose peak is then above 1 are made softer
  phase      with `shift_phase`, of all frequencies by one angle, uniform in [-pi, pi)
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from tokzoo.data.config import DataConfig
from tokzoo.data.loudness import at_loudness, loudness, phase_shifted
from tokzoo.data.sound import BadSound, mixer, resampled
from tokzoo.data.sources.base import BadRecord, Record
from tokzoo.errors import TokzooError

TEN = 10
"""Views of a picture where `crop` is "ten"."""
_TRIES = 8
"""Draws of a crop that is loud enough, as audiotools has it."""

_PILLOW = {
  "nearest": Image.Resampling.NEAREST,
  "box": Image.Resampling.BOX,
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
  "lanczos": Image.Resampling.LANCZOS,
}


def require_sizes(config: DataConfig) -> None:
  """Raises a TokzooError if the sizes of a config do not go together."""
  for name in ("resize", "size"):
    value = getattr(config, name)
    if value is not None and value < 1:
      raise TokzooError(f"data.{name} is {value} pixels: it must be at least 1.")
  for name in ("sample_rate_hz", "seconds"):
    value = getattr(config, name)
    if value is not None and value <= 0:
      raise TokzooError(f"data.{name} is {value}: it must be more than 0.")
  if config.crop != "none" and config.size is None and config.seconds is None:
    raise TokzooError(
      f"data.crop is {config.crop!r} but data.size is not set: set it to the side of the "
      "crop in pixels."
    )
  if config.crop == "ten":
    if config.seconds is not None:
      raise TokzooError("data.crop is 'ten', which is of pictures: choose another.")
    if config.repeat != TEN or config.flip:
      raise TokzooError(
        f"data.crop is 'ten', each picture's ten views mirrored or not, but data.repeat is "
        f"{config.repeat} and data.flip {config.flip}: set repeat (--views) to {TEN}, and flip off."
      )
  if config.resize and config.size and config.resize < config.size:
    raise TokzooError(
      f"data.resize {config.resize} is less than data.size {config.size}: a crop of "
      f"{config.size} pixels needs a shorter side of at least {config.size}."
    )


def fixed_part(config: DataConfig, record: Record) -> Record:
  """Channels and resize or resampling: what is the same for every view of a record.

  Args:
    config: the transforms.
    record: `image` uint8[H, W, C], or `audio` float32[T, C] and its `rate_hz`, and the rest.

  Returns:
    The record with `image` uint8[H', W', config.channels] or `audio`
    float32[T', config.channels].

  Raises:
    TokzooError: a sound that does not go into the config's channels.
  """
  if "audio" in record:
    return _fixed_sound(config, record)
  if "image" not in record:
    return record  # tokens: there is nothing to transform
  image = to_channels(record["image"], config.channels)
  if config.resize is not None:
    image = resize_shorter(image, config.resize, config.filter, config.antialias)
  return {**record, "image": image}


def random_part(
  config: DataConfig, record: Record, rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """Crop, flip and range: one view of a record.

  Args:
    config: the transforms.
    record: what `fixed_part` returned; with `view`, its number, where `crop` is "ten".
    rng: of this view alone; drawn from in the order top, left, flip.

  Returns:
    `image` float32[size, size, C] in [-1, 1] or `audio` float32[T, C] in [-1, 1] and, where
    there are classes, `label` int32[].

  Raises:
    TokzooError: the picture is smaller than the crop, or is not of the size without one.
  """
  if "audio" in record:
    return _random_sound(config, record, rng)
  if "image" not in record:
    return {name: value for name, value in record.items() if name != "key"}
  image = record["image"]
  height, width = image.shape[:2]
  size = config.size
  if size is not None and config.crop == "none" and (height, width) != (size, size):
    raise TokzooError(
      f"{record['key']} is {height} x {width} pixels, not {size} x {size}: set data.crop "
      "to center or random."
    )
  if size is not None and config.crop != "none":
    if min(height, width) < size:
      raise TokzooError(
        f"{record['key']} is {height} x {width} pixels, too small for a crop of {size}: "
        f"set data.resize to {size} or more."
      )
    if config.crop == "random":
      top = int(rng.integers(height - size + 1))
      left = int(rng.integers(width - size + 1))
    elif config.crop == "ten":
      top, left = _corner(record["view"] % 5, height, width, size)
    else:
      top, left = (height - size) // 2, (width - size) // 2
    image = image[top : top + size, left : left + size]
  is_mirrored = config.flip and rng.random() < 0.5
  if is_mirrored or (config.crop == "ten" and record["view"] >= 5):
    image = image[:, ::-1]
  example = {"image": to_float(image)}
  if "label" in record:
    example["label"] = record["label"]
  return example


def _corner(number: int, height: int, width: int, size: int) -> tuple[int, int]:
  """Top and left of one of five crops of the centred square. Of the centre an odd pixel is
  rounded half to even, as torchvision's TenCrop has it."""
  side = min(height, width)
  spare, top, left = side - size, (height - side) // 2, (width - side) // 2
  if number == 4:
    return top + round(spare / 2), left + round(spare / 2)
  return top + spare * (number // 2), left + spare * (number % 2)


def _fixed_sound(config: DataConfig, record: Record) -> Record:
  """A sound with the config's channels and rate."""
  if config.channels == 3:
    raise TokzooError(
      f"{record['key']} is sound, which has 1 or 2 channels: set data.channels."
    )
  samples, rate_hz = record["audio"], record["rate_hz"]
  try:
    samples = mixer(samples.shape[1], config.channels)(samples)
  except BadSound as error:
    raise BadRecord(record["key"], str(error)) from error
  wanted_hz = config.sample_rate_hz or rate_hz
  samples = resampled(samples, rate_hz, wanted_hz)
  return {**record, "audio": samples, "rate_hz": wanted_hz}


def _random_sound(
  config: DataConfig, record: Record, rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """A sound cut to the config's length, at its loudness; drawn are the starts, then the phase."""
  example, rate_hz = _cut(config, record, rng), record["rate_hz"]
  if config.crop == "random" and config.softest_db is not None:
    for _ in range(_TRIES - 1):
      if loudness(example["audio"], rate_hz) > config.softest_db:
        break
      example = _cut(config, record, rng)
  if config.loudness_db is not None:
    example["audio"] = at_loudness(example["audio"], rate_hz, config.loudness_db)
  if config.shift_phase:
    shift = float(rng.uniform(-np.pi, np.pi))
    example["audio"] = phase_shifted(example["audio"], shift)
  if "label" in record:
    example["label"] = record["label"]
  return example


def _cut(
  config: DataConfig, record: Record, rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """`seconds` of a sound and of the frames that come with it."""
  samples, rate_hz = record["audio"], record["rate_hz"]
  example = {"audio": samples, **record.get("frames", {})}
  if config.seconds is None:
    return example
  length = max(round(config.seconds * rate_hz), 1)
  spare = max(len(samples) - length, 0)
  start = {"none": 0, "pieces": 0, "center": spare // 2}.get(config.crop)
  if start is None:
    start = int(rng.integers(spare + 1))
  whole_s, start_s = len(samples) / rate_hz, start / rate_hz
  for name, rows in example.items():
    # Whole frames a second, so that every crop has as many.
    rows_hz = rate_hz if name == "audio" else max(round(len(rows) / whole_s), 1)
    first, count = round(start_s * rows_hz), max(round(config.seconds * rows_hz), 1)
    cut = rows[first : first + count]
    spare_rows = ((0, count - len(cut)), *((0, 0),) * (rows.ndim - 1))
    example[name] = np.pad(cut, spare_rows)
  return example


def to_float(image: np.ndarray) -> np.ndarray:
  """Bytes to float32 in [-1, 1]: x / 127.5 - 1."""
  return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
  """uint8[H, W, 1 or 3] as colour (3 channels) or grey (1)."""
  if image.shape[-1] == channels:
    return image
  if channels == 3:
    return np.repeat(image, 3, axis=-1)
  return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def resize_shorter(
  image: np.ndarray, shorter: int, filter: str, antialias: bool = True
) -> np.ndarray:
  """Resizes so that the shorter side has `shorter` pixels.

  Args:
    image: uint8[H, W, C].
    shorter: pixels.
    filter: nearest, box, bilinear, bicubic (a = -0.5) or lanczos (3 lobes).
    antialias: widen the filter when shrinking.

  Returns:
    uint8[H', W', C] with min(H', W') = shorter.
  """
  height, width = image.shape[:2]
  short = min(height, width)
  if short == shorter:
    return image
  rows, columns = (
    (2 * side * shorter + short) // (2 * short) for side in (height, width)
  )
  if antialias or filter == "nearest":
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    resized = Image.fromarray(pixels).resize((columns, rows), _PILLOW[filter])
    return np.asarray(resized).reshape(rows, columns, image.shape[-1])
  down = _weights(height, rows, filter)
  across = _weights(width, columns, filter)
  resized = np.einsum("hH,wW,HWc->hwc", down, across, image, optimize=True)
  return np.rint(np.clip(resized, 0, 255)).astype(np.uint8)


# Filter -> half its width in pixels and its value at distance x.
_KERNELS: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
  "box": (0.5, lambda x: ((x > -0.5) & (x <= 0.5)).astype(np.float64)),
  "bilinear": (1, lambda x: np.maximum(0, 1 - np.abs(x))),
  "bicubic": (
    2,
    lambda x: np.where(
      np.abs(x) < 1,
      1.5 * np.abs(x) ** 3 - 2.5 * x**2 + 1,
      np.where(
        np.abs(x) < 2, -0.5 * np.abs(x) ** 3 + 2.5 * x**2 - 4 * np.abs(x) + 2, 0
      ),
    ),
  ),
  "lanczos": (3, lambda x: np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)),
}


def _weights(size: int, new_size: int, filter: str) -> np.ndarray:
  """float64[new_size, size]: how much of each pixel goes into each new one, unwidened."""
  support, kernel = _KERNELS[filter]
  centers = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
  distances = np.arange(size) - centers[:, None]
  weights = np.where(np.abs(distances) <= support, kernel(distances), 0)
  # At the border the part of the filter that has no pixel is left out, as in Pillow.
  return weights / weights.sum(axis=1, keepdims=True)
