"""A trained model as one self-describing file: safetensors with its config in the header.

What a run exports and what the packaged checkpoints are. Arrays bear our own paths
("params/encoder/blocks_0/attn/q_proj/kernel"); the header says system, part, config, the
recipe, the tokenizer whose tokens a generator makes, and a fingerprint of the arrays.
"""

import json
from pathlib import Path
from typing import Any

from tokzoo.errors import TokzooError
from tokzoo.files import read_safetensors
from tokzoo.weights.files import write_safetensors
from tokzoo.weights.table import fingerprint, flatten, unflatten

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
  metadata = {name: json.dumps(value, sort_keys=True) for name, value in header.items()}
  metadata |= {
    "format": FORMAT,
    "version": str(VERSION),
    "fingerprint": fingerprint(variables),
  }
  write_safetensors(path, flatten(variables), metadata)


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """The variables (NumPy) and the header that `write_checkpoint` wrote.

  Raises:
    TokzooError: no such file, another format, or a file that was changed or cut short.
  """
  arrays, metadata = read_safetensors(path, "checkpoint")
  if metadata.get("format") != FORMAT:
    raise TokzooError(
      f"{path} is safetensors, but not tokzoo's own checkpoint format: for weights in their "
      "authors' layout name the preset as well (--preset)."
    )
  if int(metadata["version"]) > VERSION:
    raise TokzooError(
      f"{path} has checkpoint format {metadata['version']}, this tokzoo reads up to "
      f"{VERSION}: upgrade tokzoo."
    )
  variables = unflatten(arrays)
  if fingerprint(variables) != metadata["fingerprint"]:
    raise TokzooError(
      f"{path} is damaged: its arrays do not agree with their fingerprint; fetch it again, "
      "or export the run again."
    )
  told = {k: v for k, v in metadata.items() if k not in ("format", "version")}
  fingerprint_of = told.pop("fingerprint")
  header = {name: json.loads(value) for name, value in told.items()}
  return variables, {**header, "fingerprint": fingerprint_of}


def is_checkpoint(path: str | Path) -> bool:
  """Whether a safetensors file is in this format."""
  return read_safetensors(path, "checkpoint")[1].get("format") == FORMAT
