"""Pictures and folders that the data tests write themselves."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def picture(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
  """uint8[H, W, 3], smooth enough to survive resizing, different for every seed."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
  return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
  """The bytes of an image file."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind)
  return file.getvalue()


def write_class_folder(root: Path, count: int = 12) -> Path:
  """Writes `picture(0)` ... in turn into the folders ant, bee and cat."""
  for number in range(count):
    folder = root / CLASSES[number % 3]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number:02d}.png").write_bytes(encoded(picture(number)))
  return root
