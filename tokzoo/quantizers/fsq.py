"""Finite scalar quantization: each dimension is bounded and rounded to a few levels.

Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple" (arXiv 2309.15505); the
symmetric form is that of Parker et al., "Scaling Transformers for Low-Bitrate High-Quality
Speech Coding" (arXiv 2411.19842). There is no codebook to learn and no loss.

With L levels in a dimension, eps = 1e-3, o = 1/2 if L is even else 0:

  usual      code = round(bound(z)) / (L // 2)
             in [-1, 1] for odd L, in {-1, ..., 1 - 2/L} for even L
    atanh    h = (L - 1)(1 + eps) / 2, bound(z) = tanh(z + atanh(o / h)) h - o; L >= 3
    tan      h = (L - 1)(1 - eps) / 2, bound(z) = tanh(z + tan(o / h)) h - o
    clamp    h as for atanh, bound(z) = clamp(z + o / h) h - o; L >= 3
  symmetric  code = 2 / (L - 1) floor((L - 1)(tanh z + 1) / 2 + 1/2) - 1
             equally spaced on [-1, 1] for every L >= 2; with clamp(z) for tanh z on demand

`tan` is what the paper's appendix and the authors' release compute; atanh is what makes
bound(0) = 0, as the paper means it, and what later code has. Clamping is to [-1, 1], for
latents that are bounded already (residual FSQ).

Rounding is half to even and has the straight-through gradient. An id is a number in mixed
radix with the first dimension fastest: id = sum_j digit_j prod_{i<j} L_i.

Levels that the paper recommends: 2^8 (8, 6, 5); 2^10 (8, 5, 5, 5); 2^12 (7, 5, 5, 5, 5);
2^14 (8, 8, 8, 6, 5); 2^16 (8, 8, 8, 5, 5, 5).
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num
from numpy.typing import ArrayLike

from tokzoo.contract import Quantized
from tokzoo.errors import TokzooError
from tokzoo.quantizers.gradients import straight_through
from tokzoo.quantizers.masks import MAX_COUNTED, count_codes, hide, latents

_EPS = 1e-3
_SHIFTS = {"atanh": np.arctanh, "tan": np.tan, "clamp": np.asarray}


def _clamp(z: Float[Array, "*N"]) -> Float[Array, "*N"]:
  return jnp.clip(z, -1, 1)


class FiniteScalar(nn.Module):
  """FSQ over the last axis, whose size is the number of entries in `levels`.

  levels:         number of levels of each dimension
  symmetric:      the symmetric form; for 2 levels in a dimension it or the bound `tan`
  bound:          how a latent is bounded; the symmetric form has nothing to shift, so its
                  atanh is a plain tanh, and it has no tan
  noise_dropout:  in training, the share of a code's entries that get noise of U(-1/2, 1/2),
                  clamped to [-1, 1], which teaches the decoder values between the levels;
                  ids are those without it. Symmetric form only; needs the rng stream
                  `quantizer`
  scale:          of latents and codes, a number or one a dimension: scale q(z / scale)
  """

  levels: tuple[int, ...]
  symmetric: bool = False
  bound: Literal["atanh", "tan", "clamp"] = "atanh"
  noise_dropout: float = 0.0
  scale: float | tuple[float, ...] = 1.0

  def __post_init__(self):
    super().__post_init__()
    if self.symmetric and self.bound == "tan":
      raise TokzooError(
        "symmetric FSQ has no shift to bound by tan: choose the bound atanh or clamp."
      )
    if self.noise_dropout and not self.symmetric:
      raise TokzooError(
        f"noise dropout of {self.noise_dropout} was asked of FSQ that is not symmetric: "
        "its codes are not centred on their cells; choose the symmetric form."
      )
    fewest = 2 if self.symmetric or self.bound == "tan" else 3
    if not self.levels or min(self.levels) < fewest:
      raise TokzooError(
        f"FSQ levels {tuple(self.levels)}: each dimension needs at least {fewest} levels"
        + ("." if fewest == 2 else "; with 2, choose the symmetric form.")
      )
    if self.num_codes >= 2**31:
      raise TokzooError(
        f"FSQ levels {tuple(self.levels)} make {self.num_codes} codes, but ids are int32: "
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

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized:
    """Quantizes latents of any float dtype and range; it has no losses in either mode.

    Stats: `counts` int32[K], where there are at most 2^18 codes.
    """
    if z.shape[-1] != len(self.levels):
      raise ValueError(
        f"{len(self.levels)} levels quantize as many features, not {z.shape[-1]}."
      )
    scale = self._scale(z.ndim)
    position, digits = self._position(latents(z, mask) / scale)
    values = self._code(straight_through(position, digits))
    if train and self.noise_dropout:
      values = self._with_noise(values)
    values = values * scale
    values, ids = hide(values, self._ids(digits.astype(jnp.int32)), mask)
    stats = {}
    if self.num_codes <= MAX_COUNTED:
      stats["counts"] = count_codes(ids, self.num_codes)
    return Quantized(values, ids, stats=stats)

  def ids_to_codes(self, ids: Int[Array, "*N"]) -> Float[Array, "*N D"]:
    """The codes of ids in [0, K); -1 gives 0."""
    basis = self._row(self._basis, ids.ndim + 1, jnp.int32)
    digits = ids[..., None] // basis % self._row(self.levels, ids.ndim + 1, jnp.int32)
    codes = self._code(digits.astype(jnp.float32)) * self._scale(digits.ndim)
    return jnp.where(ids[..., None] < 0, 0.0, codes)

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N"]:
    """The ids of codes; a value between two levels counts as the nearer one."""
    codes = codes.astype(jnp.float32) / self._scale(codes.ndim)
    top, half = self._row(np.array(self.levels) - 1, codes.ndim), self._half(codes.ndim)
    position = (codes + 1) * top / 2 if self.symmetric else codes * half + half
    digits = jnp.round(position).astype(jnp.int32)
    return self._ids(jnp.clip(digits, 0, top.astype(jnp.int32)))

  def _position(
    self, z: Float[Array, "B L D"]
  ) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"]]:
    """Where z lies on the scale of the digits, and the digit it is rounded to."""
    levels = np.array(self.levels)
    squash = _clamp if self.bound == "clamp" else jnp.tanh
    if self.symmetric:
      position = (squash(z) + 1) * self._row((levels - 1) / 2, z.ndim)
      digits = jnp.floor(position + 0.5)
    else:
      margin = -_EPS if self.bound == "tan" else _EPS
      height = (levels - 1) * (1 + margin) / 2
      offset = np.where(levels % 2 == 0, 0.5, 0.0)
      shift = self._row(_SHIFTS[self.bound](offset / height), z.ndim)
      bounded = squash(z + shift) * self._row(height, z.ndim)
      bounded = bounded - self._row(offset, z.ndim)
      # Rounded before it is moved, since halves go to the even neighbour.
      digits = jnp.round(bounded) + self._half(z.ndim)
      position = bounded + self._half(z.ndim)
    # With more than 1,000 levels the margin eps reaches beyond the last one.
    return position, jnp.clip(digits, 0, self._row(levels - 1, z.ndim))

  def _with_noise(self, values: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    where, what = jax.random.split(self.make_rng("quantizer"))
    is_noisy = jax.random.bernoulli(where, self.noise_dropout, values.shape)
    noise = jax.random.uniform(what, values.shape, minval=-0.5, maxval=0.5)
    return jnp.where(is_noisy, _clamp(values + noise), values)

  def _code(self, digits: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    if self.symmetric:
      return 2 * digits / self._row(np.array(self.levels) - 1, digits.ndim) - 1
    half = self._half(digits.ndim)
    return (digits - half) / half

  def _ids(self, digits: Int[Array, "*N D"]) -> Int[Array, "*N"]:
    basis = self._row(self._basis, digits.ndim, jnp.int32)
    return jnp.sum(digits * basis, axis=-1, dtype=jnp.int32)

  @property
  def _basis(self) -> np.ndarray:
    """What one step of each digit adds to the id."""
    return np.cumprod([1, *self.levels[:-1]])

  def _scale(self, ndim: int) -> Float[Array, "... D"]:
    return self._row(np.broadcast_to(self.scale, len(self.levels)), ndim)

  def _half(self, ndim: int) -> Float[Array, "... D"]:
    return self._row(np.array(self.levels) // 2, ndim)

  def _row(
    self, values: ArrayLike, ndim: int, dtype: DTypeLike = jnp.float32
  ) -> Num[Array, "... D"]:
    """One number per dimension, with leading axes of size 1 for `ndim` in all."""
    row = (1,) * (ndim - 1) + (len(self.levels),)
    return jnp.asarray(values, dtype).reshape(row)
