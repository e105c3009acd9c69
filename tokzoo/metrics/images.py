"""Pixel metrics of pictures in [-1, 1]: PSNR and SSIM.

Pictures are compared as they come: round them to 8 bits first where a protocol says so.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from tokzoo.errors import TokzooError
from tokzoo.metrics.state import Additive, ratio, sum_rows

DATA_RANGE = 2.0
"""Of pictures in [-1, 1]."""

_SIGMA = 1.5
# Of the Gaussian window: int(3.5 sigma + 0.5), as scikit-image truncates it.
_RADIUS = 5
SSIM_WINDOW = 2 * _RADIUS + 1
"""Side in pixels of the smallest picture that SSIM is defined for."""


@struct.dataclass
class PSNR(Additive):
  """Peak signal-to-noise ratio in dB, both ways that papers average it.

  decibels:  float32[], sum over pictures of 10 log10(4 / mse of the picture)
  squares:   float32[], sum over pictures of the mse of the picture
  count:     float32[]
  """

  decibels: Float[Array, ""]
  squares: Float[Array, ""]
  count: Float[Array, ""]

  @classmethod
  def from_batch(
    cls,
    images: Float[Array, "B H W C"],
    reconstructions: Float[Array, "B H W C"],
    valid: Bool[Array, "B"] | None = None,
  ) -> "PSNR":
    """Pictures in [-1, 1], any float dtype."""
    _same_shape(images, reconstructions)
    errors = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    mse = jnp.mean(errors**2, axis=(1, 2, 3))
    decibels, count = sum_rows(10 * jnp.log10(DATA_RANGE**2 / mse), valid)
    return cls(decibels, sum_rows(mse, valid)[0], count)

  def compute(self) -> dict[str, float]:
    """`mean_db`: the mean of the pictures' PSNR, infinite if one picture is met exactly.
    `pooled_db`: the PSNR of the mean squared error over all pictures; never above it."""
    mse = ratio(self.squares, self.count)
    return {
      "mean_db": ratio(self.decibels, self.count),
      "pooled_db": float(10 * np.log10(DATA_RANGE**2 / mse)) if mse else float("inf"),
    }


@struct.dataclass
class SSIM(Additive):
  """Structural similarity (Wang et al. 2004), the mean over pictures.

  Equal to scikit-image's `structural_similarity(..., gaussian_weights=True, sigma=1.5,
  use_sample_covariance=False, data_range=2, channel_axis=-1)` to 1e-4: a Gaussian window of
  11 x 11, k1 = 0.01, k2 = 0.03, channels averaged. Many evaluation scripts use a uniform
  7 x 7 window or gray pictures instead; their numbers differ in the second decimal.

  total, count:  float32[]
  """

  total: Float[Array, ""]
  count: Float[Array, ""]

  @classmethod
  def from_batch(
    cls,
    images: Float[Array, "B H W C"],
    reconstructions: Float[Array, "B H W C"],
    valid: Bool[Array, "B"] | None = None,
  ) -> "SSIM":
    """Pictures in [-1, 1] of at least 11 x 11 pixels, any float dtype."""
    return cls(*sum_rows(ssim(images, reconstructions), valid))

  def compute(self) -> float:
    return ratio(self.total, self.count)


def ssim(
  images: Float[Array, "B H W C"], others: Float[Array, "B H W C"]
) -> Float[Array, "B"]:
  """SSIM of each pair of pictures in [-1, 1], float32 in [-1, 1]; see `SSIM`.

  Raises:
    TokzooError: shapes differ, or a side is shorter than the window of 11 pixels.
  """
  _same_shape(images, others)
  if min(images.shape[1:3]) < 2 * _RADIUS + 1:
    raise TokzooError(
      f"SSIM looks through a window of {2 * _RADIUS + 1} pixels, these pictures have "
      f"{images.shape[1]} x {images.shape[2]}: measure larger ones."
    )
  x, y = images.astype(jnp.float32), others.astype(jnp.float32)
  # Windows that reach over the edge are left out, as scikit-image does.
  mean_x, mean_y, mean_xx, mean_yy, mean_xy = _blur(
    jnp.stack([x, y, x * x, y * y, x * y])
  )
  c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
  covariance = mean_xy - mean_x * mean_y
  variances = (mean_xx - mean_x**2) + (mean_yy - mean_y**2)
  similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
  similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
  return jnp.mean(similarity, axis=(1, 2, 3))


def _blur(x: Float[Array, "S B H W C"]) -> Float[Array, "S B h w C"]:
  """The Gaussian mean of each window that lies inside the picture."""
  offsets = np.arange(-_RADIUS, _RADIUS + 1)
  weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
  weights = jnp.asarray(weights / weights.sum(), jnp.float32)
  for axis in (2, 3):
    size = x.shape[axis] - 2 * _RADIUS
    shifted = [
      weight * jax.lax.slice_in_dim(x, start, start + size, axis=axis)
      for start, weight in enumerate(weights)
    ]
    x = functools.reduce(operator.add, shifted)
  return x


def _same_shape(images: Array, others: Array) -> None:
  if images.shape != others.shape or images.ndim != 4:
    raise TokzooError(
      f"pictures of shape {list(images.shape)} were compared with {list(others.shape)}: "
      "both must be [B, H, W, C] of one shape."
    )
