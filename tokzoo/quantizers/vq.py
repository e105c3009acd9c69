"""Vector quantization: the nearest code of a learnt codebook.

van den Oord et al., "Neural Discrete Representation Learning" (arXiv 1711.00937); cosine
search as in Yu et al., "Vector-quantized Image Modeling with Improved VQGAN" (arXiv
2110.04627). What can be chosen are separate small pieces: the search (`metric`), the
gradient estimator (`gradient`), the rule that moves the codes (`update`).

  euclidean  argmin |z - c|^2
  cosine     z <- z / |z|, codes of unit norm, argmax z . c; the value is the unit code

Losses, unweighted: `commitment` mean (z - sg c)^2, and, where codes are learnt by gradient
descent, `codebook` mean (sg z - c)^2. The published weights of the two differ (VQ-VAE: 0.25
on the first; taming-transformers, as released: 0.25 on the second).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokzoo.contract import Quantized
from tokzoo.quantizers.codebook import Averages, Ema, Metric, nearest
from tokzoo.quantizers.gradients import GRADIENTS, Gradient, unit
from tokzoo.quantizers.masks import count_codes, hide, latents, losses_in, masked_mean


class VectorQuantizer(nn.Module):
  """VQ over the last axis.

  num_codes:  K
  dim:        D
  metric:     the search
  gradient:   the gradient estimator
  update:     moving averages, whose state is the collection `codebook`; None: the codes are
              the parameter `codes` and learn from the loss `codebook`
  codes_init: of the codes, [K, D]
  """

  num_codes: int
  dim: int
  metric: Metric = "euclidean"
  gradient: Gradient = "straight_through"
  update: Ema | None = Ema()
  codes_init: nn.initializers.Initializer = nn.initializers.normal(1.0)

  @property
  def bits_per_token(self) -> float:
    return math.log2(self.num_codes)

  def setup(self):
    if self.update is None:
      self.codes = self.param("codes", self._first_codes)
    else:
      # As if each code had just got one token, itself.
      self.ema_codes = self.variable(
        "codebook", "codes", lambda: self._first_codes(self.make_rng("params"))
      )
      self.ema_counts = self.variable(
        "codebook", "counts", lambda: jnp.ones(self.num_codes)
      )
      self.ema_sums = self.variable("codebook", "sums", lambda: self.ema_codes.value)

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized:
    """Quantizes latents of any float dtype.

    In training with an update rule the collection `codebook` must be mutable; what is
    returned comes from the codebook before the update. Stats: `counts` int32[K].
    """
    if z.shape[-1] != self.dim:
      raise ValueError(f"codes of {self.dim} features, latents of {z.shape[-1]}.")
    z = latents(z, mask)
    if self.metric == "cosine":
      z = unit(z)
    codes = self.codebook()
    flat = jax.lax.stop_gradient(z).reshape(-1, self.dim)
    found = nearest(flat, jax.lax.stop_gradient(codes), self.metric)
    code = codes[found].reshape(z.shape)

    losses = {"commitment": masked_mean((z - jax.lax.stop_gradient(code)) ** 2, mask)}
    if self.update is None:
      losses["codebook"] = masked_mean((jax.lax.stop_gradient(z) - code) ** 2, mask)
    values = GRADIENTS[self.gradient](z, code)
    values, ids = hide(values, found.reshape(z.shape[:2]), mask)
    if train and self.update is not None and not self.is_initializing():
      key = self.make_rng("codebook") if self.update.reset_below else None
      old = Averages(self.ema_codes.value, self.ema_counts.value, self.ema_sums.value)
      new = self.update.update(old, flat, ids.reshape(-1), self.metric, key)
      self.ema_codes.value = new.codes
      self.ema_counts.value = new.counts
      self.ema_sums.value = new.sums
    stats = {"counts": count_codes(ids, self.num_codes)}
    return Quantized(values, ids, losses_in(train, losses), stats)

  def codebook(self) -> Float[Array, "K D"]:
    """The codes as the search sees them: of unit norm for the cosine metric."""
    if self.update is not None:
      return self.ema_codes.value
    return unit(self.codes) if self.metric == "cosine" else self.codes

  def ids_to_codes(self, ids: Int[Array, "*N"]) -> Float[Array, "*N D"]:
    """The codes of ids in [0, K); -1 gives 0."""
    codes = self.codebook()[jnp.maximum(ids, 0)]
    return jnp.where(ids[..., None] < 0, 0.0, codes)

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N"]:
    """The ids of the codes that lie nearest."""
    flat = codes.astype(jnp.float32).reshape(-1, self.dim)
    flat = unit(flat) if self.metric == "cosine" else flat
    return nearest(flat, self.codebook(), self.metric).reshape(codes.shape[:-1])

  def _first_codes(self, key: Array) -> Float[Array, "K D"]:
    codes = self.codes_init(key, (self.num_codes, self.dim), jnp.float32)
    return unit(codes) if self.metric == "cosine" else codes
