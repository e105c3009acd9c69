"""What an EMA codebook needs of an assignment: how many rows each code has, and their sum."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LIMBS, _LIMB_BITS = 4, 8


def count_and_sum(
  x: Float[Array, "N D"], ids: Int[Array, "N"], num_codes: int
) -> tuple[Float[Array, "K"], Float[Array, "K D"]]:
  """How many rows each code has, and their sum; ids of -1 are left out.

  Nothing of size [N, K] is made, and the sums do not depend on the order of the rows, hence
  not on the number of devices: each number is written in fixed point relative to the
  largest, in 4 limbs of 8 bits, and limbs are added as int32, which is exact for up to 2^23
  rows of one code.

  Args:
    x: float32; may hold anything where the id is -1.
    ids: int32 in [-1, num_codes).
    num_codes: K.

  Returns:
    Counts float32[K] and sums float32[K, D].
  """
  lines = jnp.where(ids < 0, num_codes, ids)  # the last line takes what is left out

  def add(values: Array) -> Array:
    return jax.ops.segment_sum(values, lines, num_codes + 1)[:num_codes]

  # A power of two, so that scaling loses nothing.
  kept = jnp.where(ids[:, None] < 0, 0.0, x)
  _, exponent = jnp.frexp(jnp.max(jnp.abs(kept)))
  rest = jnp.ldexp(kept, -exponent)
  sums = jnp.zeros((num_codes, x.shape[1]))
  for limb in range(1, _LIMBS + 1):
    rest = rest * 2.0**_LIMB_BITS
    whole = jnp.round(rest)
    rest = rest - whole
    digits = add(whole.astype(jnp.int32)).astype(jnp.float32)
    sums = sums + digits * 2.0 ** (-limb * _LIMB_BITS)
  return add(jnp.ones_like(lines)).astype(jnp.float32), jnp.ldexp(sums, exponent)
