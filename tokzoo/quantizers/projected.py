"""A quantizer between two linear layers: latents of any size through codes of few features.

The projection in is how low-dimensional codes (ViT-VQGAN, DAC) and grids (FSQ, LFQ) meet a
wide model, and with `Product` inside it is product quantization with a learnt rotation.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokzoo.contract import Quantized
from tokzoo.errors import TokzooError
from tokzoo.quantizers.masks import latents


class Projected(nn.Module):
  """Linear in, a quantizer, linear out; both with a bias.

  quantizer:  any quantizer that says its latents' size as `dim`
  dim:        D, features of latents and codes outside

  Losses and statistics are the inner quantizer's: they compare what lies between the two.
  """

  quantizer: Any
  dim: int

  @property
  def num_codes(self) -> int:
    return self.quantizer.num_codes

  @property
  def id_groups(self) -> int:
    """Ids per token."""
    return getattr(self.quantizer, "id_groups", 1)

  @property
  def bits_per_token(self) -> float:
    return self.quantizer.bits_per_token

  def setup(self):
    self.project_in = nn.Dense(self.quantizer.dim, dtype=jnp.float32)
    self.project_out = nn.Dense(self.dim, dtype=jnp.float32)

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized:
    """Quantizes latents of any float dtype."""
    if z.shape[-1] != self.dim:
      raise ValueError(
        f"a projection from {self.dim} features, latents of {z.shape[-1]}."
      )
    # Before the projection, whose gradient would else multiply padding by zero.
    quantized = self.quantizer(self.project_in(latents(z, mask)), mask, train)
    values = self.project_out(quantized.values)
    if mask is not None:
      values = jnp.where(mask[..., None], values, 0)
    return quantized.replace(values=values)

  def ids_to_codes(self, ids: Int[Array, "B L *Q"]) -> Float[Array, "B L D"]:
    """The projected codes of ids; a token of which every id is -1 gives 0."""
    codes = self.quantizer.ids_to_codes(ids)
    is_masked = (ids < 0).reshape(*codes.shape[:-1], -1).all(axis=-1)
    return jnp.where(is_masked[..., None], 0.0, self.project_out(codes))

  def codes_to_ids(self, codes: Float[Array, "B L D"]) -> Int[Array, "B L *Q"]:
    """The ids of projected codes, by the least-squares inverse of the projection.

    Raises:
      TokzooError: the projection out loses features, so that it has no inverse.
    """
    if self.quantizer.dim > self.dim:
      raise TokzooError(
        f"codes of {self.quantizer.dim} features were projected to {self.dim}, which "
        "cannot be undone: keep the ids, or choose a dim at least as large."
      )
    out = self.project_out.variables["params"]
    bias = out["bias"].reshape((1,) * (codes.ndim - 1) + (-1,))
    inner = (codes.astype(jnp.float32) - bias) @ jnp.linalg.pinv(out["kernel"])
    return self.quantizer.codes_to_ids(inner)
