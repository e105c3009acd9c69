"""Flax checkpoints: variables as msgpack, as `flax.serialization.to_bytes` writes them.

A file is a map of collections of which weights have one, {"params": {"encoder": ...}}; the keys
of its arrays are joined by slashes. msgpack holds numbers, text and bytes, and its arrays are
bytes with a shape: nothing in it is run. Such files often have no ending, so that they are known
by their first bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax.numpy as jnp
import numpy as np

from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.weights.table import unflatten

_PARAMS = "params"


def is_flax(path: str | Path) -> bool:
  """Whether a file begins like a Flax checkpoint: a msgpack map whose first key is text."""
  with open(path, "rb") as file:
    start = file.read(6)
  # A map of up to 15 entries, or one whose number of entries takes 2 or 4 bytes. 0x80, the map
  # of no entries, is how a pickle begins.
  skipped = {0xDE: 3, 0xDF: 5}.get(start[0], 1) if start else 0
  if not start or not (0x81 <= start[0] <= 0x8F or skipped > 1):
    return False
  return start[skipped : skipped + 1] in _TEXT


_TEXT = {bytes([first]) for first in (*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB)}
"""First bytes of a text, by how long it is."""


def read_flax(path: Path, under: str | None = None) -> dict[str, np.ndarray]:
  """The arrays of a Flax checkpoint by their keys below "params": "encoder/Conv_0/kernel".

  Args:
    path: the file.
    under: its entry that holds the weights; None: "params", beside which there is no other.

  Raises:
    TokzooError: a damaged file, other entries than the weights', or something that is no array
      of real numbers.
  """
  try:
    tree = flax.serialization.msgpack_restore(path.read_bytes())
    if not isinstance(tree, dict):
      raise TypeError(f"a {type(tree).__name__} where a map was expected")
  except Exception as error:
    # msgpack, numpy and flax raise many kinds: the file is refused.
    first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
    raise TokzooError(
      f"{path} begins like a Flax checkpoint, but is not a whole one ({first_line}): it was cut "
      "short or changed; fetch it again."
    ) from error
  held = ", ".join(repr(name) for name in list(tree)[:6])
  if under is None and set(tree) != {_PARAMS}:
    raise TokzooError(
      f"{path} is a Flax checkpoint of {held}, where {_PARAMS!r} alone was expected: name the "
      "entry that holds the weights (--under)."
    )
  name = under or _PARAMS
  if name not in tree:
    raise TokzooError(f"{path} has no entry {name!r}; it holds {held}.")
  state: dict[str, np.ndarray] = {}
  _gather(path, tree[name], (), state)
  return state


def write_flax(path: str | Path, state: Mapping[str, Any]) -> None:
  """Writes arrays by their keys as a Flax checkpoint, whole or not at all.

  Raises:
    TokzooError: the path cannot be written.
  """
  tree = {_PARAMS: unflatten({key: np.asarray(state[key]) for key in sorted(state)})}
  write_atomic(path, flax.serialization.msgpack_serialize(tree))


def _gather(
  path: Path, node: Any, keys: tuple[str, ...], state: dict[str, np.ndarray]
) -> None:
  """Adds the arrays below a node to the state."""
  if isinstance(node, dict):
    for key, value in node.items():
      if not isinstance(key, str) or "/" in key:
        raise TokzooError(
          f"{path} has the entry {key!r} under {'/'.join(keys)!r}, where a name without a slash "
          "was expected: it is no checkpoint of a Linen module."
        )
      _gather(path, value, (*keys, key), state)
    return
  if not isinstance(node, np.ndarray) or not _is_real(node.dtype):
    kind = (
      f"{node.dtype} array" if isinstance(node, np.ndarray) else type(node).__name__
    )
    raise TokzooError(
      f"{path} holds {'/'.join(keys)!r}, of the kind {kind}, instead of an array of real "
      "numbers: name the entry that holds the weights alone (--under)."
    )
  # As torch's: float32 holds every bfloat16 exactly.
  is_short = node.dtype == jnp.bfloat16
  state["/".join(keys)] = node.astype(np.float32) if is_short else node


def _is_real(dtype: np.dtype) -> bool:
  return dtype.kind in "fiu" or dtype == jnp.bfloat16
