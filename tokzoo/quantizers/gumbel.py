"""The quantizer of dVAE: a network's own logits, and a Gumbel-softmax over the codes.

Ramesh et al., "Zero-Shot Text-to-Image Generation" (arXiv 2102.12092); Gumbel-softmax: Jang
et al. (arXiv 1611.01144). A linear layer (a 1x1 convolution) makes K logits of each latent:

  training    y = softmax((logits + Gumbel noise) / T), value = y C
  evaluation  value = the code of the largest logit

With `is_hard`, y is in training the one-hot of its maximum, with the gradient of the softmax.
The gradient is the true one: through the softmax to the logits, and to the codes. The loss
`kl` is the divergence from the uniform distribution, mean over tokens of sum_k p log(p K)
with p = softmax(logits), in nats; 5e-4 of it in taming-transformers.
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


class GumbelSoftmax(nn.Module):
  """The dVAE quantizer over the last axis.

  num_codes:    K
  dim:          D
  temperature:  T; a schedule passes its value to the call instead
  is_hard:      values in training are codes, not mixtures of codes
  codes_init:   of the parameter `codes`, [K, D]

  Training needs the rng stream `codebook`.
  """

  num_codes: int
  dim: int
  temperature: float = 1.0
  is_hard: bool = False
  codes_init: nn.initializers.Initializer = nn.initializers.normal(1.0)

  @property
  def bits_per_token(self) -> float:
    return math.log2(self.num_codes)

  def setup(self):
    shape = (self.num_codes, self.dim)
    self.codes = self.param("codes", self.codes_init, shape, jnp.float32)
    self.to_logits = nn.Dense(
      self.num_codes, dtype=jnp.float32, precision=jax.lax.Precision.HIGHEST
    )

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
    temperature: Float[Array, ""] | float | None = None,
  ) -> Quantized:
    """Quantizes latents of any float dtype. Stats: `counts` int32[K].

    Args:
      z: latents.
      mask: the positions that count.
      train: whether codes are drawn and losses computed.
      temperature: in place of the field, may be traced.
    """
    if z.shape[-1] != self.dim:
      raise ValueError(f"codes of {self.dim} features, latents of {z.shape[-1]}.")
    logits = self.to_logits(latents(z, mask))
    # p log p of a p that underflows is 0: its logarithm is finite.
    log_p = jax.nn.log_softmax(logits, axis=-1)
    kl = jnp.sum(jnp.exp(log_p) * (log_p + math.log(self.num_codes)), axis=-1)
    if train:
      noise = jax.random.gumbel(self.make_rng("codebook"), logits.shape)
      heat = self.temperature if temperature is None else temperature
      logits = (logits + noise) / heat
    ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    values = self.codes[ids]
    if train and self.is_hard:
      flat = logits.reshape(-1, self.num_codes)
      values = SoftAssignment()(flat, self.codes, ids.reshape(-1)).reshape(values.shape)
    elif train:
      soft = jax.nn.softmax(logits, axis=-1)
      values = jnp.matmul(soft, self.codes, precision=jax.lax.Precision.HIGHEST)
    values, ids = hide(values, ids, mask)
    losses = {"kl": masked_mean(kl, mask)}
    stats = {"counts": count_codes(ids, self.num_codes)}
    return Quantized(values, ids, losses_in(train, losses), stats)

  def codebook(self) -> Float[Array, "K D"]:
    """The codes."""
    return self.codes

  def ids_to_codes(self, ids: Int[Array, "*N"]) -> Float[Array, "*N D"]:
    """The codes of ids in [0, K); -1 gives 0."""
    return jnp.where(ids[..., None] < 0, 0.0, self.codes[jnp.maximum(ids, 0)])

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N"]:
    """The ids of the codes that lie nearest."""
    flat = codes.astype(jnp.float32).reshape(-1, self.dim)
    return nearest(flat, self.codes, "euclidean").reshape(codes.shape[:-1])
