"""Latent quantization: each dimension takes the nearest of a few learnt scalar values.

Hsu et al., "Disentanglement via Latent Quantization" (arXiv 2305.18378): strong weight decay
and one small table of values a dimension push a model to give each dimension one meaning.

  q_j = argmin_{v in V_j} |z_j - v|, with the straight-through gradient
  V_j begins as linspace(-1/2, 1/2, L) for odd L and as i / L - 1/2 for even L

An id is a number in mixed radix with the first dimension fastest, of the places of the
values in their tables. Losses, unweighted means over positions and dimensions: `commitment`
(z - sg q)^2 and `codebook` (sg z - q)^2, from which the values learn.

vector_quantize_pytorch 1.32 compares instead what comes into its projection with what leaves
the one behind, x and y: (sg x - y)^2 and (x - sg y)^2. There y has the straight-through
gradient, so that the values learn nothing, and without projections the two pull x in opposite
directions. Whoever wants that has x and y of a `Projected` layer at hand.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tokzoo.contract import Quantized
from tokzoo.errors import TokzooError
from tokzoo.quantizers.gradients import straight_through
from tokzoo.quantizers.masks import (
  MAX_COUNTED,
  count_codes,
  hide,
  latents,
  losses_in,
  masked_mean,
)


class LatentQuantizer(nn.Module):
  """Latent quantization over the last axis.

  levels:  number of values of each dimension, as many as latents have features
  """

  levels: tuple[int, ...]

  def __post_init__(self):
    super().__post_init__()
    if not self.levels or min(self.levels) < 2:
      raise TokzooError(
        f"latent quantization got levels {tuple(self.levels)}: name at least one "
        "dimension, each with at least 2 values."
      )
    if self.num_codes >= 2**31:
      raise TokzooError(
        f"levels {tuple(self.levels)} make {self.num_codes} codes, but ids are int32: "
        "choose fewer or smaller levels."
      )

  @property
  def dim(self) -> int:
    """D, features of latents and codes."""
    return len(self.levels)

  @property
  def num_codes(self) -> int:
    return math.prod(self.levels)

  @property
  def bits_per_token(self) -> float:
    return math.log2(self.num_codes)

  def setup(self):
    self.values = [
      self.param(f"values_{place}", lambda _, size=size: first_values(size))
      for place, size in enumerate(self.levels)
    ]

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized:
    """Quantizes latents of any float dtype.

    Stats: `counts` int32[K], where there are at most 2^18 codes.
    """
    if z.shape[-1] != self.dim:
      raise ValueError(
        f"latents of {self.dim} features were expected, not {z.shape[-1]}."
      )
    z = latents(z, mask)
    digits = self._nearest(z)
    code = self._look_up(digits)
    losses = {
      "commitment": masked_mean((z - jax.lax.stop_gradient(code)) ** 2, mask),
      "codebook": masked_mean((jax.lax.stop_gradient(z) - code) ** 2, mask),
    }
    values, ids = hide(straight_through(z, code), self._ids(digits), mask)
    stats = {}
    if self.num_codes <= MAX_COUNTED:
      stats["counts"] = count_codes(ids, self.num_codes)
    return Quantized(values, ids, losses_in(train, losses), stats)

  def ids_to_codes(self, ids: Int[Array, "*N"]) -> Float[Array, "*N D"]:
    """The codes of ids in [0, K); -1 gives 0."""
    basis = _row(jnp.asarray(self._basis, jnp.int32), ids.ndim + 1)
    sizes = _row(jnp.asarray(self.levels, jnp.int32), ids.ndim + 1)
    digits = jnp.maximum(ids, 0)[..., None] // basis % sizes
    return jnp.where(ids[..., None] < 0, 0.0, self._look_up(digits))

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N"]:
    """The ids of the codes that lie nearest."""
    return self._ids(self._nearest(codes.astype(jnp.float32)))

  def _nearest(self, z: Float[Array, "*N D"]) -> Int[Array, "*N D"]:
    """The place of the nearest value in each dimension's table; the first of a tie."""
    found = [
      jnp.argmin(jnp.abs(z[..., place, None] - _row(values, z.ndim)), axis=-1)
      for place, values in enumerate(self.values)
    ]
    return jnp.stack(found, axis=-1).astype(jnp.int32)

  def _look_up(self, digits: Int[Array, "*N D"]) -> Float[Array, "*N D"]:
    columns = [values[digits[..., place]] for place, values in enumerate(self.values)]
    return jnp.stack(columns, axis=-1)

  def _ids(self, digits: Int[Array, "*N D"]) -> Int[Array, "*N"]:
    basis = _row(jnp.asarray(self._basis, jnp.int32), digits.ndim)
    return jnp.sum(digits * basis, axis=-1, dtype=jnp.int32)

  @property
  def _basis(self) -> np.ndarray:
    """What one step of each digit adds to the id."""
    return np.cumprod([1, *self.levels[:-1]])


def first_values(size: int) -> Float[Array, "size"]:
  """Equally spaced values from -1/2 on, with 0 among them."""
  if size % 2:
    return jnp.linspace(-0.5, 0.5, size, dtype=jnp.float32)
  return jnp.arange(size, dtype=jnp.float32) / size - 0.5


def _row(x: Array, ndim: int) -> Array:
  """A vector with leading axes of size 1, for `ndim` in all."""
  return x.reshape((1,) * (ndim - 1) + (-1,))
