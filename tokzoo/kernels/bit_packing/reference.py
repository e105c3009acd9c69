"""Bit packing in plain jax.numpy: the specification."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

WORD = 32
Kind = Literal["bool", "sign", "float"]
KINDS: tuple[Kind, ...] = ("bool", "sign", "float")


def pack(x: Array) -> UInt32[Array, "*N w"]:
  """See `api.pack`."""
  on = pad_bits(x if x.dtype == jnp.bool_ else x > 0)
  words = on.reshape(*on.shape[:-1], -1, WORD).astype(jnp.uint32)
  # The places are distinct, so a sum of shifted bits is their union.
  return jnp.sum(jnp.left_shift(words, _places(words)), axis=-1, dtype=jnp.uint32)


def unpack(packed: UInt32[Array, "*N w"], n: int, kind: Kind) -> Array:
  """See `api.unpack`."""
  words = jnp.broadcast_to(packed[..., None], (*packed.shape, WORD))
  one = jnp.left_shift(jnp.ones_like(words), _places(words))
  on = (words & one != 0).reshape(*packed.shape[:-1], -1)[..., :n]
  return as_kind(on, kind)


def packed_matmul(
  packed: UInt32[Array, "*N w"], weights: Float[Array, "n D"], kind: Kind
) -> Float[Array, "*N D"]:
  """See `api.packed_matmul`."""
  bits = unpack(packed, weights.shape[0], kind).astype(jnp.float32)
  return jnp.matmul(bits, weights, precision=jax.lax.Precision.HIGHEST)


def hamming(a: UInt32[Array, "*N w"], b: UInt32[Array, "*N w"]) -> Int[Array, "*N"]:
  """See `api.hamming`."""
  return jnp.sum(jax.lax.population_count(a ^ b).astype(jnp.int32), axis=-1)


def pad_bits(on: Bool[Array, "*N m"]) -> Bool[Array, "*N 32*w"]:
  """Fills up the last word with zeros."""
  short = -on.shape[-1] % WORD
  return jnp.pad(on, [(0, 0)] * (on.ndim - 1) + [(0, short)]) if short else on


def as_kind(on: Bool[Array, "*N n"], kind: Kind) -> Array:
  """Bits as bool, as float32 -1 and 1, or as float32 0 and 1."""
  match kind:
    case "bool":
      return on
    case "sign":
      return jnp.where(on, jnp.float32(1), jnp.float32(-1))
    case "float":
      return on.astype(jnp.float32)


def _places(words: Array) -> UInt32[Array, "..."]:
  return jax.lax.broadcasted_iota(jnp.uint32, words.shape, words.ndim - 1)
