"""Rotary position tables over one or several axes (RoFormer, arXiv 2104.09864)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int


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


class Rotary(struct.PyTreeNode):
  """Cosines and sines of each place, for pairs of neighbouring features (2i, 2i + 1).

  cos, sin:  float32[L, d / 2]
  """

  cos: Float[Array, "L h"]
  sin: Float[Array, "L h"]

  def rows(self, start: int | Int[Array, ""], count: int) -> "Rotary":
    """The places from `start` on, which may be traced."""
    cut = jax.lax.dynamic_slice_in_dim
    return Rotary(cut(self.cos, start, count), cut(self.sin, start, count))

  def turn(self, x: Float[Array, "B L H d"]) -> Float[Array, "B L H d"]:
    """Turns each pair by its place's angle, in float32; the dtype of `x` is kept."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    cos, sin = self.cos[None, :, None, :], self.sin[None, :, None, :]
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def grid_rotary(
  rows: int, columns: int, head_dim: int, prefix: int, theta: float = 10_000.0
) -> Rotary:
  """Rotary table of a sequence of condition tokens and the cells of a grid, row by row.

  The cell (r, c) turns the first half of a head's features by r and the second by c. The
  rows of the condition tokens are all zero, cosines too, as in LlamaGen and Open-MAGVIT2:
  queries and keys of these places vanish, and weights that were trained so need it.

  Args:
    rows, columns: of the grid.
    head_dim: features per head, a multiple of four.
    prefix: condition tokens before the grid.
    theta: base of the frequencies.
  """
  cells = np.stack(np.unravel_index(np.arange(rows * columns), (rows, columns)), axis=1)
  half = head_dim // 2
  angles = axis_angles(cells.astype(np.float64), (half, half), theta)
  widths = ((prefix, 0), (0, 0))
  cos, sin = (np.pad(f(angles), widths).astype(np.float32) for f in (np.cos, np.sin))
  return Rotary(jnp.asarray(cos), jnp.asarray(sin))


def line_rotary(length: int, head_dim: int, theta: float = 10_000.0) -> Rotary:
  """Rotary table of a sequence: place i turns by i.

  Args:
    length: places.
    head_dim: features per head, even.
    theta: base of the frequencies.
  """
  places = np.arange(length, dtype=np.float64)[:, None]
  angles = axis_angles(places, (head_dim,), theta)
  cos, sin = (f(angles).astype(np.float32) for f in (np.cos, np.sin))
  return Rotary(jnp.asarray(cos), jnp.asarray(sin))
