"""Real pictures that come with tokzoo's dependencies: nothing is downloaded.

`photos`: the colour photographs packaged with scikit-image and scikit-learn.

  test   chelsea (a cat), coffee (a cup on wood), china (a pagoda by a lake): fur, china and
         grain, leaves and roofs; no part of them is ever trained on
  train  astronaut, rocket, flower, motorcycle_left and _right (a stereo pair, so it stays on
         one side of the split), hubble_deep_field, ihc (stained tissue), retina

The drawings (logo, color, phantom, horse, chessboards) and the grey pictures are left out.

`digits`: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, grey levels g of 0 to 16.
A level becomes the byte (255 g + 8) // 16, the nearest one; all 17 stay distinct, 0 is 0 and
16 is 255. Of each class every fifth digit, in scikit-learn's order, is in the split `test`.
"""

import importlib.metadata
import importlib.util
from pathlib import Path

import numpy as np

from tokzoo.data.sources.base import (
  ArraySource,
  Encoded,
  Source,
  SourceInfo,
  require_split,
)
from tokzoo.errors import TokzooError

_SKIMAGE = ("skimage", "data")
_SKLEARN = ("sklearn", "datasets/images")
PHOTOS = {
  "train": {
    "astronaut.png": _SKIMAGE,
    "flower.jpg": _SKLEARN,
    "hubble_deep_field.jpg": _SKIMAGE,
    "ihc.png": _SKIMAGE,
    "motorcycle_left.png": _SKIMAGE,
    "motorcycle_right.png": _SKIMAGE,
    "retina.jpg": _SKIMAGE,
    "rocket.jpg": _SKIMAGE,
  },
  "test": {
    "chelsea.png": _SKIMAGE,
    "china.jpg": _SKLEARN,
    "coffee.png": _SKIMAGE,
  },
}
"""Split -> file -> package and folder within it."""


class Photos(Source):
  """The packaged colour photographs; the key is the file's path within its package."""

  def __init__(self, split: str):
    require_split("photos", split, tuple(PHOTOS))
    self._files = [
      (f"{package}/{folder}/{name}", _package_folder(package) / folder / name)
      for name, (package, folder) in PHOTOS[split].items()
    ]
    for _, path in self._files:
      if not path.is_file():
        raise TokzooError(
          f"the photograph {path} is missing from its package: install the versions of "
          "scikit-image and scikit-learn that tokzoo asks for."
        )
    self.info = SourceInfo(
      name="photos",
      split=split,
      splits=tuple(PHOTOS),
      description="colour photographs packaged with scikit-image and scikit-learn",
      licence="public domain or CC0; motorcycle_*: Middlebury stereo 2014, free for "
      "research; china and flower: CC-BY-2.0",
      version=f"{_version('scikit-image')}, {_version('scikit-learn')}",
    )

  def __len__(self) -> int:
    return len(self._files)

  def encoded(self, index: int) -> Encoded:
    key, path = self._files[index]
    return Encoded(path.read_bytes(), key)


def digits(split: str) -> Source:
  """The handwritten digits: uint8[8, 8, 1] with labels 0 to 9."""
  from sklearn.datasets import load_digits  # takes a second to import

  require_split("digits", split, ("train", "test"))
  levels, labels = load_digits(return_X_y=True)
  images = ((255 * levels.astype(np.int32) + 8) // 16).astype(np.uint8)
  images = images.reshape(-1, 8, 8, 1)
  is_test = np.zeros(len(labels), bool)
  for label in range(10):
    is_test[np.flatnonzero(labels == label)[4::5]] = True
  part = is_test if split == "test" else ~is_test
  info = SourceInfo(
    name="digits",
    split=split,
    splits=("train", "test"),
    description="handwritten digits, 8 x 8, grey (UCI optical recognition, test part)",
    licence="CC-BY-4.0 (UCI), packaged under BSD-3-Clause",
    version=_version("scikit-learn"),
    classes=tuple("0123456789"),
  )
  return ArraySource(info, images[part], labels[part])


def _package_folder(package: str) -> Path:
  """Where a package is installed, without importing it."""
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise TokzooError(f"the package {package} is missing: reinstall tokzoo.")
  return Path(spec.submodule_search_locations[0])


def _version(package: str) -> str:
  return f"{package} {importlib.metadata.version(package)}"
