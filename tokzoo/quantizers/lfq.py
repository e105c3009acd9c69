"""Lookup-free quantization: a code is the signs of the latent. Also its spherical form.

LFQ: Yu et al., "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation"
(arXiv 2310.05737). BSQ: Zhao et al., "Image and Video Tokenization with Binary Spherical
Quantization" (arXiv 2406.07548). With z the latent and d bits:

  LFQ   code = +-s, s = `scale`
  BSQ   z <- s z / |z|, code = +-s / sqrt(d)

A bit is 1 where z > 0 (so zero is -s), and an id is big-endian: dimension 0 is its highest
bit. Losses (nats, unweighted; the papers use sample - gamma batch):

  sample_entropy   mean over tokens of H(p(code | z)), which is to fall
  batch_entropy    H(mean over tokens of p(code | z)), which is to rise
  commitment       mean of (z - sg(code))^2 over tokens and dimensions

with p = softmax(2 tau z . code). Given z the bits are independent, p(bit j) =
sigmoid(4 tau s z_j), so both entropies come without a softmax over 2^d codes: the first is
a sum over bits, the second an outer product of two halves (`entropies`). Differences from
published code: logarithms are exact, not clamped at 1e-5, unless `log_floor` or `log_eps`
say so; the authors' BSQ takes its commitment as a sum over dimensions, d times ours.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokzoo.contract import Quantized
from tokzoo.errors import TokzooError
from tokzoo.quantizers.entropies import bit_entropies, floored_entropies
from tokzoo.quantizers.gradients import straight_through, unit
from tokzoo.quantizers.masks import (
  MAX_COUNTED,
  count_codes,
  hide,
  latents,
  losses_in,
  masked_mean,
)


class LookupFree(nn.Module):
  """LFQ over the last axis, whose size is the number of bits.

  bits:                 d, bits of a token
  spherical:            BSQ: latents and codes on the sphere of radius s
  scale:                s, half the distance between the two values of a bit, or the radius
  gradient:             d value / d z: 1 ("code", as in most LFQ code) or the scale ("sign":
                        straight through the sign alone, as in the authors' BSQ code)
  inverse_temperature:  tau of the entropies
  entropy_group:        bits whose joint distribution `batch_entropy` takes, summed over
                        groups; None: all d at once, which needs 2^d floats
  log_eps:              added to the probability inside the logarithm of `batch_entropy`;
                        1e-5 in Open-MAGVIT2's code
  log_floor:            the published 1e-5: entropies as -sum p log max(p, floor) over the
                        2^entropy_group words of a group, for each token; None: exact
  soft_clamp:           v: z <- v tanh(z / v) first; None: not
  id_groups:            ids per token; d bits in one int32 go up to 31
  """

  bits: int
  spherical: bool = False
  scale: float = 1.0
  gradient: Literal["code", "sign"] = "code"
  inverse_temperature: float = 100.0
  entropy_group: int | None = 9
  log_eps: float = 0.0
  log_floor: float | None = None
  soft_clamp: float | None = None
  id_groups: int = 1

  def __post_init__(self):
    super().__post_init__()
    if self.bits % self.id_groups or self.bits // self.id_groups > 31:
      raise TokzooError(
        f"{self.bits} bits do not fit {self.id_groups} int32 ids: choose a number of id "
        "groups that divides the bits and leaves at most 31 to each."
      )

  @property
  def dim(self) -> int:
    """D, features of latents and codes: one a bit."""
    return self.bits

  @property
  def num_codes(self) -> int:
    """Codes of one id."""
    return 2 ** (self.bits // self.id_groups)

  @property
  def bits_per_token(self) -> float:
    return float(self.bits)

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized:
    """Quantizes latents of any float dtype.

    Ids: int32[B, L], or int32[B, L, Q] with several id groups. Stats: `on` int32[d], how
    often each bit is 1, and `tokens` int32[], of how many; with one id group and at most
    2^18 codes also `counts` int32[K].
    """
    if z.shape[-1] != self.bits:
      raise ValueError(
        f"{self.bits} bits quantize as many features, not {z.shape[-1]}."
      )
    z = latents(z, mask)
    if self.soft_clamp is not None:
      z = self.soft_clamp * jnp.tanh(z / self.soft_clamp)
    if self.spherical:
      z = self.scale * unit(z)
    is_one = z > 0
    code = self._code(is_one)
    values = straight_through(z * self._slope, code)
    values, ids = hide(values, self._ids(is_one), mask)

    sharpness = 2 * self.inverse_temperature * self._scale
    if self.log_floor is None:
      entropies = bit_entropies(
        2 * sharpness * z, self.entropy_group, mask, self.log_eps
      )
    else:
      entropies = floored_entropies(
        z, sharpness, self.log_floor, self.entropy_group, mask
      )
    losses = {
      "commitment": masked_mean((z - jax.lax.stop_gradient(code)) ** 2, mask),
      "sample_entropy": entropies[0],
      "batch_entropy": entropies[1],
    }
    kept = jnp.ones(z.shape[:2], bool) if mask is None else mask
    stats = {
      "on": jnp.sum(is_one & kept[..., None], axis=(0, 1), dtype=jnp.int32),
      "tokens": jnp.sum(kept, dtype=jnp.int32),
    }
    if self.id_groups == 1 and self.num_codes <= MAX_COUNTED:
      stats["counts"] = count_codes(ids, self.num_codes)
    return Quantized(values, ids, losses_in(train, losses), stats)

  def ids_to_codes(self, ids: Int[Array, "*N"]) -> Float[Array, "*N D"]:
    """The codes of ids in [0, K); -1 gives 0. With id groups the last axis is theirs."""
    if self.id_groups == 1:
      ids = ids[..., None]
    places = self._places(ids.ndim + 1)
    is_one = jnp.right_shift(*jnp.broadcast_arrays(ids[..., None], places)) & 1
    code = jnp.where(ids[..., None] < 0, 0.0, self._code(is_one.astype(bool)))
    return code.reshape(*ids.shape[:-1], self.bits)

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N"]:
    """The ids of codes, by their signs."""
    return self._ids(codes > 0)

  @property
  def _scale(self) -> float:
    """s, the magnitude of a code's entries."""
    return self.scale / math.sqrt(self.bits) if self.spherical else self.scale

  @property
  def _slope(self) -> float:
    return self._scale if self.gradient == "sign" else 1.0

  def _code(self, is_one: Bool[Array, "*N D"]) -> Float[Array, "*N D"]:
    return jnp.where(is_one, jnp.float32(self._scale), jnp.float32(-self._scale))

  def _ids(self, is_one: Bool[Array, "*N D"]) -> Int[Array, "*N"]:
    grouped = is_one.reshape(*is_one.shape[:-1], self.id_groups, -1).astype(jnp.int32)
    shifted = jnp.left_shift(*jnp.broadcast_arrays(grouped, self._places(grouped.ndim)))
    ids = jnp.sum(shifted, axis=-1, dtype=jnp.int32)
    return ids[..., 0] if self.id_groups == 1 else ids

  def _places(self, ndim: int) -> Int[Array, "... m"]:
    """The place of each bit of an id, highest first."""
    places = jnp.arange(self.bits // self.id_groups - 1, -1, -1, dtype=jnp.int32)
    return places.reshape((1,) * (ndim - 1) + (-1,))
