"""Reading and writing weight files.

safetensors is read without torch, and so are Flax checkpoints, known by their first bytes
(`flax_files.py`). The pickles that most of the field publishes (.pt, .pth, .bin, .ckpt, .dev) are
read only through torch's weights-only loader, which refuses everything but tensors, plain
containers and the settings of a command line: nothing that was downloaded is ever unpickled.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tokzoo.errors import TokzooError, missing_extra
from tokzoo.files import (
  read_safetensors,
  read_safetensors_metadata,
  to_safetensors,
  write_atomic,
)
from tokzoo.weights.flax_files import is_flax, read_flax

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".dev")


def read_state(path: str | Path, under: str | None = None) -> dict[str, np.ndarray]:
  """Reads the authors' weights as key -> array.

  Args:
    path: `.safetensors`, a Flax checkpoint of any name, or a torch file (extra `torch`).
    under: the entry of a torch file that holds the weights, e.g. "module" or "state_dict", or
      of a Flax checkpoint that holds more than "params".

  Raises:
    TokzooError: no such file, an unknown ending, a file that is damaged or no weight file,
      a pickle that holds more than tensors, or no entry `under`.
  """
  path = Path(path)
  if not path.is_file():
    raise TokzooError(f"no weight file at {path}: check the path.")
  if path.suffix == ".safetensors":
    return read_safetensors(path, "weight file")[0]
  if is_flax(path):
    return read_flax(path, under)
  if path.suffix in _PICKLES:
    return _read_torch(path, under)
  raise TokzooError(
    f"{path.name} has the ending {path.suffix!r}; weights are read from .safetensors, "
    f"{', '.join(_PICKLES)}, or a Flax checkpoint of any name, as which it does not begin."
  )


def read_metadata(path: str | Path) -> dict[str, str]:
  """What the authors wrote into the header of a .safetensors file; a torch file has none.

  Raises:
    TokzooError: no such file, or one that is damaged.
  """
  path = Path(path)
  if path.suffix != ".safetensors":
    return {}
  return read_safetensors_metadata(path, "weight file")


def write_safetensors(
  path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
  """Writes arrays and metadata, whole or not at all.

  Raises:
    TokzooError: the path cannot be written.
  """
  write_atomic(path, to_safetensors(arrays, metadata or {}))


def _read_torch(path: Path, under: str | None) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError as error:
    raise missing_extra("torch", "torch", f"reading {path.name}") from error
  try:
    # Training scripts save their parsed options beside the weights; a Namespace runs nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
      loaded = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # torch raises many kinds; each means the file is refused
    first_line = str(error).strip().splitlines()[0]
    raise TokzooError(
      f"torch's weights-only loader refuses {path} ({first_line}): the file is damaged, or "
      "holds more than tensors; ask its authors for safetensors."
    ) from error
  if under is not None:
    if not isinstance(loaded, Mapping) or under not in loaded:
      keys = list(loaded)[:6] if isinstance(loaded, Mapping) else type(loaded).__name__
      raise TokzooError(f"{path} has no entry {under!r}; it holds {keys}.")
    loaded = loaded[under]
  if not isinstance(loaded, Mapping):
    raise TokzooError(f"{path} holds a {type(loaded).__name__}, not weights by name.")
  state = {}
  for key, value in loaded.items():
    if not isinstance(value, torch.Tensor):
      raise TokzooError(
        f"{path} holds {key!r}, a {type(value).__name__} instead of a tensor: "
        "name the entry that holds the weights (module, state_dict, model, ...)."
      )
    # NumPy has no bfloat16 of its own; float32 holds every bfloat16 exactly.
    value = value.detach()
    state[key] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
  return state
