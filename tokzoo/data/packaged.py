"""The data of small recipes, packaged with tokzoo or made, and ImageNet as published recipes read it."""

import dataclasses
from typing import Literal

from tokzoo.data.config import DataConfig


def photo_crops(split: str, size: int, views: int = 100) -> DataConfig:
  """Random crops of the packaged photographs.

  Args:
    split: train (mirrored and shuffled) or test (held-out photographs, as they are).
    size: side of a crop in pixels.
    views: crops of a photograph in one pass over the held-out ones.
  """
  train = split == "train"
  return DataConfig(
    source="photos",
    split=split,
    crop="random",
    size=size,
    flip=train,
    repeat=10_000 if train else views,
    shuffle=train,
    threads=1,
  )


def digits(split: str) -> DataConfig:
  """The packaged grey digits of 8 x 8 pixels with their labels; split: train or test."""
  return DataConfig(
    source="digits", split=split, channels=1, size=8, crop="none", threads=1
  )


def sound_crops(
  split: str,
  rate_hz: int,
  seconds: float,
  source: str = "tones",
  views: int = 1,
  channels: Literal[1, 2] = 1,
) -> DataConfig:
  """Random crops of sounds.

  Args:
    split: train (shuffled) or test (held-out sounds, the same crops every time).
    rate_hz: samples a second; the source `tones` is made at this rate.
    seconds: length of a crop.
    source: tones (synthesised), taught-tones (with teachers), speech-prompts, or another source of sound.
    views: crops of a sound in one pass over the held-out ones.
    channels: 1 or 2.
  """
  train = split == "train"
  return DataConfig(
    source=f"{source}:{rate_hz}" if source in ("tones", "taught-tones") else source,
    split=split,
    channels=channels,
    crop="random",
    sample_rate_hz=rate_hz,
    seconds=seconds,
    repeat=100 if train else views,
    shuffle=train,
    threads=1,
  )


def imagenet_crops(
  source: str, size: int = 256, resize: int | None = None, test: str = "test"
) -> tuple[DataConfig, DataConfig]:
  """Training data (random crops, mirrored) and held-out data (centre crops) of ImageNet.

  Args:
    source: such as tfds:imagenet2012 or arrayrecord:data/imagenet.
    size: side of a crop in pixels.
    resize: length of the shorter side that training crops are cut from; None: `size`, as for
      the held-out pictures.
    test: what the source calls its held-out split.
  """
  train = DataConfig(
    source=source,
    resize=resize or size,
    crop="random",
    size=size,
    flip=True,
    threads=32,
    prefetch=8,
  )
  held_out = dataclasses.replace(
    train, split=test, resize=size, crop="center", flip=False
  )
  return train, held_out
