"""Random-projection quantizer: targets for masked prediction from nothing learnt.

Chiu et al., "Self-supervised Learning with Random-projection Quantizer for Speech
Recognition" (BEST-RQ, arXiv 2202.01855). Projections and codebooks are drawn once and never
train; only the ids are of use:

  x <- (x - mean) / sqrt(var + 1e-5) over the features of a token
  id_q = argmax_k  unit(x A_q) . unit(c_qk),   A_q Xavier normal, c_qk normal

The paper normalises with statistics of the data set; per token is what later code does.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokzoo.contract import Quantized
from tokzoo.kernels.codebook_search import search
from tokzoo.quantizers.gradients import unit
from tokzoo.quantizers.masks import count_codes, hide, latents

_NORM_EPS = 1e-5


class RandomProjection(nn.Module):
  """BEST-RQ over the last axis. All state is the collection `codebook` and stays as drawn.

  num_codes:      K of each codebook
  dim:            D
  code_dim:       e, features of a projection
  num_codebooks:  Q, each with a projection of its own
  normalize:      whether each token gets mean 0 and variance 1 first
  mixed:          for Q > 1: all projections together pass through a further random affine
                  map, whose output of Q x Qe features the codebooks share out, so that a
                  codebook (of codes of Qe features) sees every projection. This is what
                  vector-quantize-pytorch 1.32 does, since its heads default to the full width
  """

  num_codes: int
  dim: int
  code_dim: int
  num_codebooks: int = 1
  normalize: bool = True
  mixed: bool = False

  @property
  def id_groups(self) -> int:
    """Ids per token."""
    return self.num_codebooks

  @property
  def bits_per_token(self) -> float:
    return self.num_codebooks * math.log2(self.num_codes)

  def setup(self):
    heads = self.num_codebooks
    width = self.code_dim * heads if self.mixed else self.code_dim
    xavier = nn.initializers.variance_scaling(
      1.0, "fan_avg", "normal", in_axis=-2, out_axis=-1, batch_axis=(0,)
    )
    normal = nn.initializers.normal(1.0)
    self.projections = self._frozen(
      "projections", xavier, (heads, self.dim, self.code_dim)
    )
    self.codes = self._frozen("codes", normal, (heads, self.num_codes, width))
    if self.mixed:
      fan_in = self.code_dim * heads
      self.mix = self._frozen(
        "mix", nn.initializers.lecun_uniform(), (fan_in, heads * width)
      )
      self.mix_bias = self._frozen(
        "mix_bias", nn.initializers.uniform(fan_in**-0.5), (heads * width,)
      )

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized:
    """The ids of latents of any float dtype, the same in training; there are no losses.

    Values: the unit codes of all codebooks side by side, float32[B, L, Q e], without a
    gradient. Ids: int32[B, L], or int32[B, L, Q] with several codebooks. Stats: `counts`
    int32[Q, K].
    """
    if z.shape[-1] != self.dim:
      raise ValueError(
        f"latents of {self.dim} features were expected, not {z.shape[-1]}."
      )
    z = jax.lax.stop_gradient(latents(z, mask))
    if self.normalize:
      z = z - jnp.mean(z, axis=-1, keepdims=True)
      z = z / jnp.sqrt(jnp.mean(z * z, axis=-1, keepdims=True) + _NORM_EPS)
    exact = jax.lax.Precision.HIGHEST
    heads = jnp.einsum("bld,qde->blqe", z, self.projections, precision=exact)
    if self.mixed:
      flat = heads.reshape(*z.shape[:2], -1)
      flat = jnp.matmul(flat, self.mix, precision=exact) + self.mix_bias[None, None]
      heads = flat.reshape(*z.shape[:2], self.num_codebooks, -1)
    ids = self._search(heads)
    values, ids = hide(self.ids_to_codes(ids), ids, mask)
    each = ids if ids.ndim == 3 else ids[..., None]
    counts = [count_codes(each[..., q], self.num_codes) for q in range(each.shape[-1])]
    return Quantized(values, ids, stats={"counts": jnp.stack(counts)})

  def ids_to_codes(self, ids: Int[Array, "*N"]) -> Float[Array, "*N Qe"]:
    """The unit codes of ids in [0, K), those of several codebooks (last axis of `ids`) side
    by side; -1 gives 0."""
    each = ids if self.num_codebooks > 1 else ids[..., None]
    books = jnp.arange(self.num_codebooks).reshape((1,) * (each.ndim - 1) + (-1,))
    codes = unit(self.codes)[books, jnp.maximum(each, 0)]
    codes = jnp.where(each[..., None] < 0, 0.0, codes)
    return codes.reshape(*each.shape[:-1], -1)

  def codes_to_ids(self, codes: Float[Array, "*N Qe"]) -> Int[Array, "*N"]:
    """The ids of the codes that lie nearest by angle."""
    codes = codes.astype(jnp.float32)
    return self._search(codes.reshape(*codes.shape[:-1], self.num_codebooks, -1))

  def _search(self, heads: Float[Array, "*N Q e"]) -> Int[Array, "*N"]:
    flat = jnp.moveaxis(heads.reshape(-1, *heads.shape[-2:]), 1, 0)
    ids = jnp.asarray(search(flat, self.codes, metric="cosine"))[..., 0].T
    ids = ids.reshape(heads.shape[:-1])
    return ids if self.num_codebooks > 1 else ids[..., 0]

  def _frozen(
    self, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]
  ) -> Array:
    return self.variable(
      "codebook", name, lambda: init(self.make_rng("params"), shape, jnp.float32)
    ).value
