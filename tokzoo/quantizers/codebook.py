"""Codebooks: the search for the nearest code, and sums over tokens that are exact."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from tokzoo.quantizers.gradients import unit

Metric = Literal["euclidean", "cosine", "angular"]
"""What near means.

  euclidean  argmin |z - c|^2
  cosine     argmax z . c, where latents and codes have unit norm
  angular    argmax of the cosine, where latents and codes keep their length
"""

_BLOCK = 1024
_LIMBS, _LIMB_BITS = 4, 8


def nearest(
  z: Float[Array, "N D"], codes: Float[Array, "K D"], metric: Metric
) -> Int[Array, "N"]:
  """The id of the nearest code; the lowest of those that tie.

  Exact in float32 on every machine, and no more than N x 1,024 similarities lie in memory:
  the codebook is walked through block by block, which, unlike walking through the tokens,
  leaves a batch that is split over devices where it is.

  Args:
    z: latents, of unit norm for the cosine metric.
    codes: the codebook, of unit norm for the cosine metric.
    metric: what near means.

  Returns:
    int32[N], in [0, K).
  """
  if metric == "angular":
    z, codes = unit(z), unit(codes)
  # argmin |z - c|^2 = argmax z . c - |c|^2 / 2: without |z|^2, which only costs digits.
  handicap = jnp.zeros(codes.shape[0])
  if metric == "euclidean":
    handicap = jnp.sum(codes * codes, axis=-1) / 2
  block = min(_BLOCK, codes.shape[0])
  padding = -codes.shape[0] % block
  blocks = jnp.pad(codes, ((0, padding), (0, 0))).reshape(-1, block, codes.shape[1])
  handicaps = jnp.pad(handicap, (0, padding), constant_values=jnp.inf)

  def visit(best, block_of):
    block_codes, block_handicap, first = block_of
    similarity = jnp.matmul(z, block_codes.T, precision=jax.lax.Precision.HIGHEST)
    similarity = similarity - block_handicap[None, :]
    found = jnp.argmax(similarity, axis=-1).astype(jnp.int32)
    value = jnp.take_along_axis(similarity, found[:, None], axis=-1)[:, 0]
    is_nearer = value > best[0]
    return (
      jnp.where(is_nearer, value, best[0]),
      jnp.where(is_nearer, found + first, best[1]),
    ), None

  start = (jnp.full(z.shape[0], -jnp.inf), jnp.zeros(z.shape[0], jnp.int32))
  firsts = jnp.arange(0, codes.shape[0] + padding, block, dtype=jnp.int32)
  (_, ids), _ = jax.lax.scan(
    visit, start, (blocks, handicaps.reshape(-1, block), firsts)
  )
  return ids


def similarity(
  z: Float[Array, "N D"], codes: Float[Array, "K D"], metric: Metric
) -> Float[Array, "N K"]:
  """How near each code is, as logits: the cosine, or minus the euclidean distance.

  For estimators and losses that need all of them; the search does not. The squared distance
  is at least 1e-8, as in vector_quantize_pytorch, which keeps the gradient of the root finite.
  """
  if metric == "angular":
    z, codes = unit(z), unit(codes)
  product = jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST)
  if metric != "euclidean":
    return product
  squares = jnp.sum(z * z, axis=-1)[:, None] + jnp.sum(codes * codes, axis=-1)[None, :]
  return -jnp.sqrt(jnp.maximum(squares - 2 * product, 1e-8))


@struct.dataclass
class Averages:
  """A codebook and the statistics it is made of.

  codes:   float32[K, D], what the search sees
  counts:  float32[K], moving average of the tokens that a code gets in a step
  sums:    float32[K, D], moving average of the sum of those tokens
  """

  codes: Float[Array, "K D"]
  counts: Float[Array, "K"]
  sums: Float[Array, "K D"]


def count_and_sum(
  z: Float[Array, "N D"], ids: Int[Array, "N"], num_codes: int
) -> tuple[Float[Array, "K"], Float[Array, "K D"]]:
  """How many tokens each code has, and their sum; ids of -1 are left out.

  The sums do not depend on the order of the tokens, hence not on the number of devices:
  each number is written in fixed point relative to the largest, in 4 limbs of 8 bits, and
  limbs are added as int32, which is exact for up to 2^23 tokens of one code.
  """
  lines = jnp.where(ids < 0, num_codes, ids)  # the last line takes what is masked

  def add(x: Array) -> Array:
    return jax.ops.segment_sum(x, lines, num_codes + 1)[:num_codes]

  # A power of two, so that scaling loses nothing.
  kept = jnp.where(ids[:, None] < 0, 0.0, z)
  _, exponent = jnp.frexp(jnp.max(jnp.abs(kept)))
  rest = jnp.ldexp(kept, -exponent)
  sums = jnp.zeros((num_codes, z.shape[1]))
  for limb in range(1, _LIMBS + 1):
    rest = rest * 2.0**_LIMB_BITS
    whole = jnp.round(rest)
    rest = rest - whole
    digits = add(whole.astype(jnp.int32)).astype(jnp.float32)
    sums = sums + digits * 2.0 ** (-limb * _LIMB_BITS)
  return add(jnp.ones_like(lines)).astype(jnp.float32), jnp.ldexp(sums, exponent)
