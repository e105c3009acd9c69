"""The photo tokenizer: trained on some photographs, measured on others.

Every held-out photograph is cut to tiles, encoded, decoded, and set beside JPEG and WebP files
of no more bytes, and beside the picture in which each tile is its mean colour.
"""

import dataclasses
from pathlib import Path

import numpy as np

from tokzoo.cli.codecs import at_most, decoded, encoded, psnr_db
from tokzoo.cli.console import to_uint8
from tokzoo.data import DataConfig, open_source
from tokzoo.hub import PretrainedTokenizer
from tokzoo.metrics import BitEntropy
from tokzoo.tokenizers.image.tiles import Tiling


@dataclasses.dataclass(frozen=True)
class Photo:
  """One held-out photograph through the tokenizer.

  name:            file name
  image, made:     uint8[H, W, 3], original and reconstruction
  bits_per_pixel:  of the tokens, as stored
  psnr_db, mean_tile_psnr_db:   of the reconstruction, and of mean colours
  jpeg_psnr_db, webp_psnr_db:   of the best file of at most as many bytes
  """

  name: str
  image: np.ndarray
  made: np.ndarray
  bits_per_pixel: float
  psnr_db: float
  mean_tile_psnr_db: float
  jpeg_psnr_db: float
  webp_psnr_db: float


@dataclasses.dataclass(frozen=True)
class PhotoResult:
  """All held-out photographs, and how the bits were used."""

  photos: list[Photo]
  bit_entropy: float
  bits_in_use: float

  def mean(self, field: str) -> float:
    """Mean of a number over the photographs."""
    return float(np.mean([getattr(photo, field) for photo in self.photos]))


def measure(tokenizer: PretrainedTokenizer) -> PhotoResult:
  """Encodes and decodes every held-out photograph."""
  source = open_source(DataConfig(source="photos", split="test"))
  photos, usage = [], None
  for index in range(len(source)):
    record = source[index]
    image = record["image"]
    tokens = tokenizer.encode(image)
    made = to_uint8(tokenizer.decode(tokens, (image.shape[0], image.shape[1]))[0])
    bits = tokens.total_bits
    state = BitEntropy.from_bits(tokens.unpacked())
    usage = state if usage is None else usage.merge(state)
    photos.append(
      Photo(
        name=Path(record["key"]).name,
        image=image,
        made=made,
        bits_per_pixel=bits / (image.shape[0] * image.shape[1]),
        psnr_db=psnr_db(image, made),
        mean_tile_psnr_db=psnr_db(
          image, mean_tiles(image, tokenizer.config.image_size)
        ),
        jpeg_psnr_db=psnr_db(image, at_most(image, int(bits // 8), "JPEG").picture),
        webp_psnr_db=psnr_db(image, at_most(image, int(bits // 8), "WEBP").picture),
      )
    )
  assert usage is not None  # a source has at least one record
  told = usage.compute()
  return PhotoResult(photos, told["mean"], told["in_use"])


def mean_tiles(image: np.ndarray, side: int) -> np.ndarray:
  """The picture with every tile in its mean colour."""
  tiling = Tiling(image.shape[0], image.shape[1], side)
  tiles = tiling.cut(image).astype(np.float64)
  flat = np.broadcast_to(tiles.mean((1, 2), keepdims=True), tiles.shape)
  return np.round(tiling.join(flat)).astype(np.uint8)


def rate_curve(images: list[np.ndarray], kind: str) -> tuple[list[float], list[float]]:
  """Bits per pixel and mean PSNR of JPEG or WebP at several qualities."""
  rates, decibels = [], []
  for quality in (1, 5, 10, 20, 35, 50, 65, 80):
    files = [encoded(image, kind, quality) for image in images]
    pixels = [image.shape[0] * image.shape[1] for image in images]
    rates.append(
      float(np.mean([8 * len(f) / n for f, n in zip(files, pixels, strict=True)]))
    )
    seen = [decoded(data) for data in files]
    decibels.append(
      float(np.mean([psnr_db(a, b) for a, b in zip(images, seen, strict=True)]))
    )
  return rates, decibels


def error_picture(image: np.ndarray, made: np.ndarray) -> np.ndarray:
  """Absolute error, four times as bright, uint8."""
  error = np.abs(image.astype(np.int32) - made.astype(np.int32))
  return np.clip(4 * error, 0, 255).astype(np.uint8)
