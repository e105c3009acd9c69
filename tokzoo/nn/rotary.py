"""Rotary position tables over one or several axes (RoFormer, arXiv 2104.09864)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def axis_angles(
  positions: Float[np.ndarray, "L A"], dims: tuple[int, ...], theta: float
) -> Float[np.ndarray, "L F"]:
  """Angles of every frequency, axis after axis.

  Args:
    positions: `[L, A]`, the place of each token on each axis.
    dims: features that each axis turns; even. F = sum(dims) / 2.
    theta: base of the frequencies; axis a has theta ** (-2 j / dims[a]).

  Returns:
    `float64[L, F]`, made on the host: float32 angles of far positions lose digits.
  """
  angles = []
  for axis, dim in enumerate(dims):
    frequencies = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    angles.append(
      np.asarray(positions[:, axis], np.float64)[:, None] * frequencies[None]
    )
  return np.concatenate(angles, axis=1)


def rotate_split_half(
  x: Float[Array, "B L H d"], cos: Float[Array, "L d"], sin: Float[Array, "L d"]
) -> Float[Array, "B L H d"]:
  """Turns feature j with feature j + d/2, in float32; the dtype of `x` is kept."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([-second, first], axis=-1)
  cos, sin = cos[None, :, None, :], sin[None, :, None, :]
  return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)
