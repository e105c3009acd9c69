"""SimVQ: a codebook that moves as a whole, by one linear map of fixed random vectors.

Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear
Layer" (arXiv 2411.02038). With F [K, d] drawn once from N(0, 1/d) and never changed,

  C = F W^T

and only W learns, from the loss of whatever codes were chosen; codes that were not chosen
move with them. Losses, unweighted and, as in vector_quantize_pytorch, also in evaluation:
`codebook` mean (sg z - c)^2 and `commitment` mean (z - sg c)^2, the latter with 0.25 there. W
starts from N(0, 1/d), there from PyTorch's uniform draw of a third of that variance.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokzoo.contract import Quantized
from tokzoo.quantizers.codebook import nearest
from tokzoo.quantizers.gradients import GRADIENTS, Plain
from tokzoo.quantizers.masks import count_codes, hide, latents, masked_mean


class SimVQ(nn.Module):
  """VQ with a linear map of a frozen codebook.

  num_codes:   K
  dim:         D
  frozen_dim:  d, features of the frozen vectors; None: D
  gradient:    the gradient estimator

  F is the entry `frozen` of the collection `codebook`, W^T the kernel of the parameter
  `transform`.
  """

  num_codes: int
  dim: int
  frozen_dim: int | None = None
  gradient: Plain = "rotation"

  @property
  def bits_per_token(self) -> float:
    return math.log2(self.num_codes)

  def setup(self):
    size = self.frozen_dim or self.dim

    def draw():
      draws = jax.random.normal(self.make_rng("params"), (self.num_codes, size))
      return draws / math.sqrt(size)

    self.frozen = self.variable("codebook", "frozen", draw)
    # Exact, since the search is: the ids are those of the float32 codes on every machine.
    self.transform = nn.Dense(
      self.dim,
      use_bias=False,
      dtype=jnp.float32,
      precision=jax.lax.Precision.HIGHEST,
    )

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized:
    """Quantizes latents of any float dtype. Stats: `counts` int32[K]."""
    if z.shape[-1] != self.dim:
      raise ValueError(f"codes of {self.dim} features, latents of {z.shape[-1]}.")
    z = latents(z, mask)
    codes = self.codebook()
    flat = jax.lax.stop_gradient(z).reshape(-1, self.dim)
    found = nearest(flat, jax.lax.stop_gradient(codes), "euclidean")
    code = codes[found].reshape(z.shape)
    losses = {
      "commitment": masked_mean((z - jax.lax.stop_gradient(code)) ** 2, mask),
      "codebook": masked_mean((jax.lax.stop_gradient(z) - code) ** 2, mask),
    }
    values = GRADIENTS[self.gradient](z, code)
    values, ids = hide(values, found.reshape(z.shape[:2]), mask)
    stats = {"counts": count_codes(ids, self.num_codes)}
    return Quantized(values, ids, losses, stats)

  def codebook(self) -> Float[Array, "K D"]:
    """C = F W^T."""
    return self.transform(self.frozen.value)

  def ids_to_codes(self, ids: Int[Array, "*N"]) -> Float[Array, "*N D"]:
    """The codes of ids in [0, K); -1 gives 0."""
    codes = self.codebook()[jnp.maximum(ids, 0)]
    return jnp.where(ids[..., None] < 0, 0.0, codes)

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N"]:
    """The ids of the codes that lie nearest."""
    flat = codes.astype(jnp.float32).reshape(-1, self.dim)
    return nearest(flat, self.codebook(), "euclidean").reshape(codes.shape[:-1])
