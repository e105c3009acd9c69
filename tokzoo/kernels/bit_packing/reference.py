"""Bit packing in plain jax.numpy: the specification."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt32


def pack_bits(bits: Array) -> UInt32[Array, "*N w"]:
  """See `api.pack_bits`."""
  *lead, m = bits.shape
  on = (bits > 0.5) if jnp.issubdtype(bits.dtype, jnp.floating) else bits.astype(bool)
  padding = [(0, 0)] * len(lead) + [(0, -m % 32)]
  words = jnp.pad(on, padding).reshape(*lead, -1, 32).astype(jnp.uint32)
  # The places are distinct, so a sum of shifted bits is their union.
  places = jnp.arange(32, dtype=jnp.uint32)
  shifted = jnp.left_shift(words, jnp.broadcast_to(places, words.shape))
  return shifted.sum(-1, dtype=jnp.uint32)


def unpack_bits(packed: UInt32[Array, "*N w"], bits: int) -> Bool[Array, "*N m"]:
  """See `api.unpack_bits`."""
  places = jnp.arange(32, dtype=jnp.uint32)
  words = jnp.broadcast_to(packed[..., None], (*packed.shape, 32))
  on = jnp.right_shift(words, jnp.broadcast_to(places, words.shape)) & jnp.uint32(1)
  return on.astype(bool).reshape(*packed.shape[:-1], -1)[..., :bits]
