"""JPEG and WebP at the bytes of a tokenizer: the peers that every picture already has."""

import dataclasses
import io

import numpy as np
from PIL import Image

KINDS = ("JPEG", "WEBP")


@dataclasses.dataclass(frozen=True)
class Coded:
  """A picture through a codec.

  picture:  uint8[H, W, C]
  bytes:    of the whole file, header and all
  """

  picture: np.ndarray
  bytes: int


def at_most(image: np.ndarray, budget_bytes: int, kind: str) -> Coded:
  """The picture through the highest quality of JPEG or WebP that fits the bytes.

  Where no quality fits, the lowest: `bytes` then says how much more it takes.
  """
  low, high = 0, 100
  best = encoded(image, kind, 0)
  while low <= high:
    quality = (low + high) // 2
    data = encoded(image, kind, quality)
    if len(data) <= budget_bytes:
      best, low = data, quality + 1
    else:
      high = quality - 1
  return Coded(decoded(best, image.shape[-1]), len(best))


def encoded(image: np.ndarray, kind: str, quality: int) -> bytes:
  """A file of that kind in memory: the whole file counts, header and all."""
  buffer = io.BytesIO()
  settings = {"optimize": True} if kind == "JPEG" else {"method": 4}
  flat = image[..., 0] if image.shape[-1] == 1 else image
  Image.fromarray(flat).save(buffer, kind, quality=quality, **settings)
  return buffer.getvalue()


def decoded(data: bytes, channels: int = 3) -> np.ndarray:
  """uint8[H, W, channels] of a file in memory."""
  picture = Image.open(io.BytesIO(data)).convert("RGB" if channels == 3 else "L")
  return np.asarray(picture).reshape(picture.height, picture.width, channels)


def psnr_db(image: np.ndarray, other: np.ndarray) -> float:
  """PSNR in dB of two uint8 pictures, peak 255."""
  error = np.mean((image.astype(np.float64) - other.astype(np.float64)) ** 2)
  return float(10 * np.log10(255**2 / max(error, 1e-10)))
