"""Index backpropagation: every code gets a gradient through the logits of the choice.

Shi et al., "Scalable Image Tokenization with Index Backpropagation Quantization" (arXiv
2412.02692), after the authors' code (TencentARC/SEED-Voken). The logits are dot products,
z . c, neither distances nor cosines; the id is the largest, and

  value = (hard + p - sg p) C,  p = softmax(logits)

whose gradient reaches z and all K codes. Losses, unweighted (nats where entropies):

  quantization    mean (value - z)^2, through the value's own gradient
  commitment      mean (z - sg c)^2
  codebook        mean (sg z - c)^2, with 0.25 in the paper
  sample_entropy  mean over tokens of H(softmax(logits / T)), which is to fall
  batch_entropy   H of the mean over tokens, which is to rise; weights as in LFQ

All N x K logits lie in memory, in training twice: that is the method.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokzoo.contract import Quantized
from tokzoo.quantizers.codebook import nearest
from tokzoo.quantizers.gradients import SoftAssignment
from tokzoo.quantizers.masks import count_codes, hide, latents, losses_in, masked_mean
from tokzoo.quantizers.regularizers import softmax_entropies


class IndexBackpropagation(nn.Module):
  """IBQ over the last axis.

  num_codes:            K
  dim:                  D
  entropy_temperature:  T of the two entropies, not of the value
  codes_init:           of the parameter `codes`, [K, D]
  """

  num_codes: int
  dim: int
  entropy_temperature: float = 0.01
  codes_init: nn.initializers.Initializer = nn.initializers.normal(1.0)

  @property
  def bits_per_token(self) -> float:
    return math.log2(self.num_codes)

  def setup(self):
    shape = (self.num_codes, self.dim)
    self.codes = self.param("codes", self.codes_init, shape, jnp.float32)

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
    flat = z.reshape(-1, self.dim)
    # The search of the cosine metric is that for the largest dot product.
    found = nearest(*jax.lax.stop_gradient((flat, self.codes)), "cosine")
    ids = found.reshape(z.shape[:2])
    code = self.codes[ids]
    if train:
      logits = jnp.matmul(flat, self.codes.T, precision=jax.lax.Precision.HIGHEST)
      values = SoftAssignment()(logits, self.codes, found).reshape(z.shape)
      sharp = (logits / self.entropy_temperature).reshape(*z.shape[:2], -1)
      sample_entropy, batch_entropy = softmax_entropies(sharp, mask)
    else:
      values, sample_entropy, batch_entropy = code, jnp.zeros(()), jnp.zeros(())
    losses = {
      "quantization": masked_mean((values - z) ** 2, mask),
      "commitment": masked_mean((z - jax.lax.stop_gradient(code)) ** 2, mask),
      "codebook": masked_mean((jax.lax.stop_gradient(z) - code) ** 2, mask),
      "sample_entropy": sample_entropy,
      "batch_entropy": batch_entropy,
    }
    values, ids = hide(values, ids, mask)
    stats = {"counts": count_codes(ids, self.num_codes)}
    return Quantized(values, ids, losses_in(train, losses), stats)

  def codebook(self) -> Float[Array, "K D"]:
    """The codes."""
    return self.codes

  def ids_to_codes(self, ids: Int[Array, "*N"]) -> Float[Array, "*N D"]:
    """The codes of ids in [0, K); -1 gives 0."""
    return jnp.where(ids[..., None] < 0, 0.0, self.codes[jnp.maximum(ids, 0)])

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N"]:
    """The ids of codes, by distance: the largest dot product need not be the code itself."""
    flat = codes.astype(jnp.float32).reshape(-1, self.dim)
    return nearest(flat, self.codes, "euclidean").reshape(codes.shape[:-1])
