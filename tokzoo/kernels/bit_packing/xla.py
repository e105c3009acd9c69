"""Bit packing for XLA: forms that its CPU compiler vectorises, one pass on every machine."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from tokzoo.kernels.bit_packing import reference
from tokzoo.kernels.bit_packing.reference import WORD, Kind, unpack
from tokzoo.kernels.padding import pad_to

__all__ = ["pack", "packed_matmul", "unpack", "weights_gradient"]

# Four bytes of 0 or 1, as one number times this: the byte j moves to bit 24 + j, and no two
# of the sixteen partial products meet, so nothing carries.
_GATHER = 0x01020408
# Unpacked bits that are in flight at a time: 2 MiB as float32, the fastest of 2^16 to 2^22.
_BITS = 2**19


def pack(x: Array) -> UInt32[Array, "*N w"]:
  """See `api.pack`: 32 loads and shifts of a word become 8 loads and multiplications."""
  on = reference.pad_bits(x if x.dtype == jnp.bool_ else x > 0)
  fours = on.reshape(*on.shape[:-1], -1, WORD // 4, 4).astype(jnp.uint8)
  # Written as an or of neighbouring bytes, which the compiler turns into one load.
  number = fours[..., 0].astype(jnp.uint32)
  for byte in range(1, 4):
    number |= fours[..., byte].astype(jnp.uint32) << jnp.uint32(8 * byte)
  nibbles = (number * jnp.uint32(_GATHER)) >> jnp.uint32(24)
  places = 4 * jax.lax.broadcasted_iota(jnp.uint32, nibbles.shape, nibbles.ndim - 1)
  return jax.lax.reduce(
    nibbles << places, jnp.uint32(0), jax.lax.bitwise_or, (nibbles.ndim - 1,)
  )


def packed_matmul(
  packed: UInt32[Array, "*N w"], weights: Float[Array, "n D"], kind: Kind
) -> Float[Array, "*N D"]:
  """See `api.packed_matmul`: some rows at a time, so that their bits stay in the cache."""
  rows = packed.reshape(-1, packed.shape[-1])
  product = jax.lax.map(
    lambda row: reference.packed_matmul(row, weights, kind),
    rows,
    batch_size=_rows_at_a_time(weights.shape[0], len(rows)),
  )
  return product.reshape(*packed.shape[:-1], weights.shape[1])


def weights_gradient(
  packed: UInt32[Array, "*N w"], cotangent: Float[Array, "*N D"], n: int, kind: Kind
) -> Float[Array, "n D"]:
  """The gradient of `packed_matmul` to its weights: unpacked bits^T @ cotangent."""
  rows = packed.reshape(-1, packed.shape[-1])
  gradient = cotangent.reshape(-1, cotangent.shape[-1])
  batch = _rows_at_a_time(n, len(rows))
  # What fills up the last slice has no gradient.
  rows, gradient = pad_to(rows, 0, batch), pad_to(gradient, 0, batch)

  def add(total, of_slice):
    some_rows, some_gradient = of_slice
    bits = unpack(some_rows, n, kind).astype(jnp.float32)
    highest = jax.lax.Precision.HIGHEST
    return total + jnp.matmul(bits.T, some_gradient, precision=highest), None

  slices = (a.reshape(-1, batch, a.shape[-1]) for a in (rows, gradient))
  zero = jnp.zeros((n, cotangent.shape[-1]), jnp.float32)
  return jax.lax.scan(add, zero, tuple(slices))[0]


def _rows_at_a_time(n: int, rows: int) -> int:
  return max(1, min(rows, _BITS // n))
