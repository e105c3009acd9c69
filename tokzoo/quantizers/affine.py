"""Affine reparametrisation: a codebook that is shifted and scaled to where the latents are.

Huh et al., "Straightening Out the Straight-Through Estimator" (arXiv 2305.08842). The search
sees, per dimension,

  c' = (c - mean of codes) std of batch / std of codes + mean of batch

so that also codes that no token chose move with the latents. The moments are moving averages
whose first value is that of the first batch; no gradient passes through them. Moving-average
codebooks average the tokens brought back by the inverse.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from tokzoo.kernels.codebook_search import count_and_sum

# The least variance that is divided by, as in vector_quantize_pytorch.
_LEAST = 1e-5


@struct.dataclass
class Moments:
  """Running moments: float32[D], and whether there was a batch yet."""

  batch_mean: Float[Array, "D"]
  batch_variance: Float[Array, "D"]
  codes_mean: Float[Array, "D"]
  codes_variance: Float[Array, "D"]
  is_started: Bool[Array, ""]

  @classmethod
  def first(cls, dim: int) -> "Moments":
    """Those with which nothing is moved."""
    zero, one = jnp.zeros(dim), jnp.ones(dim)
    return cls(zero, one, zero, one, jnp.zeros((), bool))

  def to_batch(self, codes: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """Codes to where the latents are."""
    scale = _ratio(self.batch_variance, self.codes_variance)
    return (codes - self.codes_mean[None]) * scale[None] + self.batch_mean[None]

  def to_codes(self, z: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Latents to where the codes are."""
    scale = _ratio(self.codes_variance, self.batch_variance)
    return (z - self.batch_mean[None]) * scale[None] + self.codes_mean[None]

  def count_and_sum(
    self, z: Float[Array, "N D"], ids: Int[Array, "N"], num_codes: int
  ) -> tuple[Float[Array, "K"], Float[Array, "K D"]]:
    """`count_and_sum` of `to_codes(z)`, scaled and shifted once the sums are exact."""
    counts, sums = count_and_sum(z - self.batch_mean[None], ids, num_codes)
    scale = _ratio(self.codes_variance, self.batch_variance)
    return counts, sums * scale[None] + counts[:, None] * self.codes_mean[None]


def _ratio(a: Float[Array, "D"], b: Float[Array, "D"]) -> Float[Array, "D"]:
  """The ratio of two standard deviations, from their variances."""
  # Not the ratio of two roots: compilers make products with rsqrt of that in one program,
  # and not in the next, and then one device and eight would differ in the last bit.
  return jnp.sqrt(jnp.maximum(a, _LEAST) / jnp.maximum(b, _LEAST))


@dataclasses.dataclass(frozen=True)
class Affine:
  """The rule of the running moments. Only for the euclidean metric."""

  batch_decay: float = 0.99
  codes_decay: float = 0.9

  def update(
    self,
    old: Moments,
    z: Float[Array, "N D"],
    is_kept: Bool[Array, "N"],
    codes: Float[Array, "K D"],
  ) -> Moments:
    """The moments with a batch and the codes that it finds, the same on any mesh."""
    z, codes = jax.lax.stop_gradient((z, codes))
    ids = jnp.where(is_kept, 0, -1)
    count, total = count_and_sum(z, ids, 1)
    mean = total[0] / jnp.maximum(count, 1)
    _, squares = count_and_sum((z - mean[None]) ** 2, ids, 1)
    variance = squares[0] / jnp.maximum(count, 1)

    def mix(old_value, value, decay):
      return jnp.where(old.is_started, decay * old_value + (1 - decay) * value, value)

    new = Moments(
      mix(old.batch_mean, mean, self.batch_decay),
      mix(old.batch_variance, variance, self.batch_decay),
      mix(old.codes_mean, jnp.mean(codes, axis=0), self.codes_decay),
      mix(old.codes_variance, jnp.var(codes, axis=0), self.codes_decay),
      jnp.ones((), bool),
    )
    # A batch without a token says nothing.
    return jax.tree.map(lambda a, b: jnp.where(count[0] > 0, b, a), old, new)
