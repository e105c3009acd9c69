"""`tfds:NAME`: a prepared data set of TensorFlow Datasets, read without TensorFlow.

NAME is a name in the default data directory (`$TFDS_DATA_DIR`, ~/tensorflow_datasets), with
or without version and config, or the folder of one prepared version. The data set must
be prepared as ArrayRecord, the one format of TFDS with random access; preparing itself is
left to TFDS, which downloads, asks for manual files, and may need TensorFlow:

  tfds build NAME --file_format=array_record

Images are taken undecoded and decoded as those of every other source are.
"""

from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from tokzoo.data.sources.base import (
  BadRecord,
  Encoded,
  Source,
  SourceInfo,
  require_split,
)
from tokzoo.errors import TokzooError


class TfdsSource(Source):
  """The pictures of a TFDS data set, with its `label` where it has one."""

  def __init__(self, name: str, split: str):
    builder = _builder(name)
    info = builder.info
    if not info.splits:
      raise TokzooError(
        f"the TFDS data set {name} is not prepared in {builder.data_path}: run  "
        f"tfds build {builder.name} --file_format=array_record"
      )
    require_split(f"tfds:{name}", split, tuple(info.splits))
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
      raise TokzooError(
        f"the TFDS data set {name} is prepared as {info.file_format.value}, which has no "
        f"random access: run  tfds build {builder.name} --file_format=array_record"
      )
    self._image, classes = _features(name, info.features)
    self._examples: Any = builder.as_data_source(
      split=split, decoders={self._image: tfds.decode.SkipDecoding()}
    )
    self._has_label = bool(classes)
    redistribution: Any = info.redistribution_info
    self.info = SourceInfo(
      name=f"tfds:{name}",
      split=split,
      splits=tuple(info.splits),
      description=" ".join(info.description.split()),
      licence=redistribution.license or "unknown",
      version=info.full_name,
      classes=classes,
    )

  def __len__(self) -> int:
    return len(self._examples)

  def encoded(self, index: int) -> Encoded:
    key = f"{self.info.version}/{self.info.split}/{index}"
    try:
      example = self._examples[index]
    except RuntimeError as error:  # ArrayRecord's checksums
      raise BadRecord(key, str(error)) from error
    label = int(example["label"]) if self._has_label else None
    return Encoded(example[self._image], key, label)


def _builder(name: str) -> Any:
  """The TFDS builder of a name or of the folder of a prepared version."""
  if not name:
    raise TokzooError("the source tfds: lacks its name: write tfds:NAME.")
  try:
    folder = Path(name).expanduser()
    if folder.is_dir():
      return tfds.builder_from_directory(folder)
    return tfds.builder(name)
  except tfds.core.DatasetNotFoundError as error:
    raise TokzooError(
      f"TFDS knows no data set {name!r}: check the name, or give the folder of a prepared "
      "version."
    ) from error
  except (FileNotFoundError, ValueError, ImportError) as error:
    reason = str(error).strip().splitlines()[0]
    raise TokzooError(f"TFDS cannot open {name!r}: {reason}") from error


def _features(name: str, features: Any) -> tuple[str, tuple[str, ...]]:
  """The name of the one image feature and the class names of `label`, if it has any."""
  images = [key for key in features if isinstance(features[key], tfds.features.Image)]
  if "image" in images:
    images = ["image"]
  if len(images) != 1:
    raise TokzooError(
      f"the TFDS data set {name} has {len(images)} image features where one is expected "
      f"(it has {', '.join(features)}): choose another data set."
    )
  label = dict(features).get("label")
  classes = label.names if isinstance(label, tfds.features.ClassLabel) else ()
  return images[0], tuple(classes)
