"""A trained model as one self-describing file: safetensors with its config in the header.

What a run exports and what the packaged checkpoints are. Arrays bear our own paths
("params/encoder/blocks_0/attn/q_proj/kernel"); the header says system, part, config, the
recipe, the tokenizer whose tokens a generator makes, and a digest over header and arrays.
"""

import json
from pathlib import Path
from typing import Any

from tokzoo.errors import TokzooError
from tokzoo.files import digest, read_safetensors
from tokzoo.weights.files import write_safetensors
from tokzoo.weights.table import flatten, unflatten

FORMAT = "tokzoo-checkpoint"
VERSION = 1


def write_checkpoint(path: str | Path, variables: Any, header: dict[str, Any]) -> None:
  """Writes variables and their description, whole or not at all.

  Args:
    path: a `.safetensors` file.
    variables: Linen variables.
    header: JSON values: `system`, `part`, `config` and whatever else is worth keeping.

  Raises:
    TokzooError: the path cannot be written.
  """
  arrays = flatten(variables)
  metadata = {name: json.dumps(value, sort_keys=True) for name, value in header.items()}
  metadata |= {"format": FORMAT, "version": str(VERSION)}
  metadata["digest"] = digest(metadata, arrays)
  write_safetensors(path, arrays, metadata)


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """The variables (NumPy) and the header that `write_checkpoint` wrote.

  Raises:
    TokzooError: no such file, another format, or a file that was changed or cut short.
  """
  arrays, metadata = read_safetensors(path, "checkpoint")
  if metadata.get("format") != FORMAT:
    raise TokzooError(
      f"{path} is safetensors, but not tokzoo's own checkpoint format: for weights in their "
      "authors' layout name the published config as well (preset=..., --preset)."
    )
  if metadata.get("digest") != digest(metadata, arrays):
    raise TokzooError(
      f"{path} is damaged: its digest does not agree with what it holds; fetch it again, or "
      "export the run again."
    )
  if int(metadata["version"]) > VERSION:
    raise TokzooError(
      f"{path} has checkpoint format {metadata['version']}, this tokzoo reads up to "
      f"{VERSION}: upgrade tokzoo."
    )
  told = {k: v for k, v in metadata.items() if k not in ("format", "version", "digest")}
  return unflatten(arrays), {name: json.loads(value) for name, value in told.items()}
