"""`fashion-mnist`: 60,000 + 10,000 grey pictures of clothes, 28 x 28, ten classes.

Xiao, Rasul and Vollgraf, arXiv 1708.07747; MIT licence. Looked for, in this order, in the
folder PATH of `fashion-mnist:PATH`; or, without one, where Debian's package
`dataset-fashion-mnist` puts it, then among the prepared data sets of TFDS. The files are
those that the authors publish, in the IDX format of MNIST, compressed with gzip or not:

  magic   00 00 08 NN    unsigned bytes, NN axes
  sizes   NN times int32, big-endian
  data    bytes, last axis fastest
"""

import gzip
import zlib
from pathlib import Path

import numpy as np

from tokzoo.data.sources.base import ArraySource, Source, SourceInfo, require_split
from tokzoo.errors import TokzooError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
  "T-shirt/top",
  "Trouser",
  "Pullover",
  "Dress",
  "Coat",
  "Sandal",
  "Shirt",
  "Sneaker",
  "Bag",
  "Ankle boot",
)
_PREFIX = {"train": "train", "test": "t10k"}


def fashion_mnist(path: str, split: str) -> Source:
  """Fashion-MNIST from a folder of IDX files, from Debian or from TFDS.

  Args:
    path: the folder; empty: look in the two other places.
    split: train or test.

  Raises:
    TokzooError: it is in none of the places, or its files are damaged.
  """
  require_split("fashion-mnist", split, tuple(_PREFIX))
  if path:
    return _from_folder(Path(path).expanduser(), split)
  if DEBIAN.is_dir():
    return _from_folder(DEBIAN, split)
  from tokzoo.data.sources.tfds import TfdsSource  # takes a second to import

  try:
    return TfdsSource("fashion_mnist", split)
  except TokzooError as error:
    raise TokzooError(
      "Fashion-MNIST is not on this machine: install Debian's package "
      "dataset-fashion-mnist, or name a folder with its four IDX files as "
      "fashion-mnist:PATH, or prepare it with TFDS "
      "(tfds build fashion_mnist --file_format=array_record)."
    ) from error


def read_idx(path: Path, num_axes: int) -> np.ndarray:
  """Reads an IDX file of bytes.

  Args:
    path: the file without `.gz`; the compressed file is read where only that exists.
    num_axes: how many axes there must be.

  Returns:
    uint8 of `num_axes` axes.

  Raises:
    TokzooError: no such file, not an IDX file of that kind, or cut short.
  """
  packed = path.with_name(path.name + ".gz")
  if not path.is_file() and not packed.is_file():
    raise TokzooError(
      f"no file {path} or {packed.name}: name the folder that holds all four IDX files."
    )
  try:
    data = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
  except (OSError, EOFError, zlib.error) as error:
    raise TokzooError(f"cannot read {packed}: {error}; get the file again.") from error
  head = 4 + 4 * num_axes
  if len(data) < head or data[:4] != bytes((0, 0, 8, num_axes)):
    raise TokzooError(
      f"{path} is not an IDX file of bytes with {num_axes} axes: get the file again."
    )
  shape = tuple(np.frombuffer(data, ">i4", num_axes, offset=4).tolist())
  if len(data) - head != int(np.prod(shape)):
    raise TokzooError(
      f"{path} holds {len(data) - head} bytes where its header {shape} promises "
      f"{int(np.prod(shape))}: it is damaged; get the file again."
    )
  return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _from_folder(folder: Path, split: str) -> Source:
  prefix = _PREFIX[split]
  images = read_idx(folder / f"{prefix}-images-idx3-ubyte", num_axes=3)
  labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte", num_axes=1)
  if len(images) != len(labels) or not len(images):
    raise TokzooError(
      f"{folder} holds {len(images)} pictures but {len(labels)} labels of its {split} "
      "part: get the files again."
    )
  if labels.max() >= len(CLASSES):
    raise TokzooError(
      f"{folder} holds the label {labels.max()}, but Fashion-MNIST has 0 to 9: "
      "these are other files."
    )
  info = SourceInfo(
    name="fashion-mnist",
    split=split,
    splits=tuple(_PREFIX),
    description="clothes, 28 x 28, grey",
    licence="MIT",
    version=f"IDX files of {folder}",
    classes=CLASSES,
  )
  return ArraySource(info, images[..., None], labels)
