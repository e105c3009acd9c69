"""Codebooks: the search for the nearest code, and the moving averages that keep codes alive."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.quantizers.gradients import unit

Metric = Literal["euclidean", "cosine"]

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
    metric: "euclidean", argmin |z - c|^2, or "cosine", argmax z . c.

  Returns:
    int32[N], in [0, K).
  """
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


@dataclasses.dataclass(frozen=True)
class Ema:
  """The codebook rule of VQ-VAE (van den Oord et al., arXiv 1711.00937, appendix A.1)."""

  decay: float = 0.99
  """Of counts and sums, per step."""
  eps: float = 1e-5
  """Laplace smoothing of the counts."""
  reset_below: float = 0.0
  """A code whose count falls below this is dead and becomes a token of the batch; 0: never.
  Needs the rng stream `codebook`."""

  def update(
    self,
    old: Averages,
    z: Float[Array, "N D"],
    ids: Int[Array, "N"],
    metric: Metric,
    key: PRNGKeyArray | None = None,
  ) -> Averages:
    """The codebook after a step.

    Nothing depends on how the tokens are split over devices, to the last bit: sums are
    exact, and random draws come from the key alone.

    Args:
      old: the codebook that the step searched.
      z: the step's tokens, of unit norm for the cosine metric.
      ids: int32[N], the code of each; -1 where a token is masked out.
      metric: for "cosine" the new codes have unit norm.
      key: for the choice of tokens that replace dead codes.
    """
    num_codes = old.counts.shape[0]
    counts, sums = count_and_sum(z, ids, num_codes)
    counts = self.decay * old.counts + (1 - self.decay) * counts
    sums = self.decay * old.sums + (1 - self.decay) * sums
    total = jnp.sum(counts)
    smooth = (counts + self.eps) / (total + num_codes * self.eps) * total
    codes = sums / smooth[:, None]
    new = Averages(unit(codes) if metric == "cosine" else codes, counts, sums)
    return new if key is None else self._reset(new, z, ids >= 0, key)

  def _reset(
    self,
    averages: Averages,
    z: Float[Array, "N D"],
    is_kept: Bool[Array, "N"],
    key: PRNGKeyArray,
  ) -> Averages:
    """Gives dead codes new life; never more of them than there are tokens."""
    num_codes = averages.counts.shape[0]
    is_dead = averages.counts < self.reset_below
    # The r-th dead code gets the r-th token of a random order, masked ones last.
    lot = jnp.where(is_kept, jax.random.uniform(key, is_kept.shape), -1.0)
    _, order = jax.lax.top_k(lot, min(num_codes, z.shape[0]))
    rank = jnp.cumsum(is_dead) - 1
    is_reset = is_dead & (rank < jnp.minimum(order.size, jnp.sum(is_kept)))
    codes = z[order[jnp.minimum(rank, order.size - 1)]]
    # All three together: the next step would else rebuild the dead code from its old sum.
    return Averages(
      jnp.where(is_reset[:, None], codes, averages.codes),
      jnp.where(is_reset, self.reset_below, averages.counts),
      jnp.where(is_reset[:, None], codes * self.reset_below, averages.sums),
    )


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
