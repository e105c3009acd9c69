"""A digest of an array that does not depend on how it is laid out.

The digest of the bits b_i is two sums modulo 2^32 of b_i w(i) with odd weights w(i) that
mix the index: integer sums, so any order and any sharding gives the same, computed where
the array lies. A change within one element always changes a sum, since an odd weight has
an inverse; any other change slips through with probability about 2^-64.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32

from tokzoo.train.mesh import programs_in_flight

_SALTS = (0x9E3779B9, 0x7F4A7C15)
_CHUNK = 1 << 22
"""Elements that the host digests at a time, to bound its temporaries."""


def digest(array: Array) -> UInt32[Array, "2"]:
  """The digest of an array, under jit, wherever its shards lie."""
  if array.dtype == jnp.bool_:
    array = array.astype(jnp.uint8)
  width = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
  bits = jax.lax.bitcast_convert_type(array, width).astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis, stride in enumerate(_strides(bits.shape)):
    place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    index = index + place * jnp.uint32(stride)
  return jnp.stack(
    [
      jnp.sum(bits * _weights(index, jnp.uint32(salt)), dtype=jnp.uint32)
      for salt in _SALTS
    ]
  )


def host_digest(array: np.ndarray) -> tuple[int, int]:
  """The same digest of a NumPy array."""
  width = {1: np.uint8, 2: np.uint16}.get(array.dtype.itemsize, np.uint32)
  bits = np.ascontiguousarray(array).reshape(-1).view(width)
  sums = [0, 0]
  for start in range(0, bits.size, _CHUNK):
    part = bits[start : start + _CHUNK].astype(np.uint32)
    index = np.arange(start, start + part.size, dtype=np.uint64).astype(np.uint32)
    for which, salt in enumerate(_SALTS):
      weighted = part * _weights(index, np.uint32(salt))
      sums[which] += int(weighted.sum(dtype=np.uint64))
  return sums[0] % 2**32, sums[1] % 2**32


Looks = dict[str, tuple[UInt32[Array, "2"], Bool[Array, ""]]]
"""By name, what `look` is about to find of an array."""


def look(arrays: Mapping[str, Array], everywhere: jax.sharding.Sharding) -> Looks:
  """Sends for the digest of every array, and for whether it is finite; `told` waits.

  The device does it after what it was sent before: a step may be under way, and the arrays
  may be given to the next one as soon as this returns.

  Args:
    arrays: global arrays by name.
    everywhere: the sharding that copies to all devices of their mesh.
  """
  # One small program per shape: one program over a large model's arrays compiles for
  # minutes.
  program = jax.jit(_look, out_shardings=everywhere)
  waits = programs_in_flight(everywhere.device_set) == 0
  found = {}
  for name, array in arrays.items():
    found[name] = program(array)
    if waits:
      jax.block_until_ready(found[name])
  return found


def told(looks: Looks) -> tuple[dict[str, list[int]], str | None]:
  """The digest of every array, and the name of one that is not finite, or None."""
  found = jax.device_get(looks)
  bad = [name for name, (_, is_finite) in found.items() if not is_finite]
  digests = {
    name: [int(half) for half in halves] for name, (halves, _) in found.items()
  }
  return digests, bad[0] if bad else None


def _look(array: Array) -> tuple[UInt32[Array, "2"], Bool[Array, ""]]:
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return digest(array), jnp.bool_(True)
  return digest(array), jnp.isfinite(array).all()


def _weights(index: Any, salt: Any) -> Any:
  """Odd uint32 weights: the finaliser of MurmurHash3 over index and salt."""
  mixed = index ^ salt
  mixed = (mixed ^ (mixed >> 16)) * mixed.dtype.type(0x85EBCA6B)
  mixed = (mixed ^ (mixed >> 13)) * mixed.dtype.type(0xC2B2AE35)
  return (mixed ^ (mixed >> 16)) | mixed.dtype.type(1)


def _strides(shape: tuple[int, ...]) -> list[int]:
  """Row-major strides in elements, modulo 2^32."""
  return [
    int(np.prod(shape[axis + 1 :], dtype=np.uint64)) % 2**32
    for axis in range(len(shape))
  ]
