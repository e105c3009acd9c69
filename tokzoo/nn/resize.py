"""A grid doubled by copies of its places and convolved, in less than half of the products."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def doubled_conv(
  x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"], *ignored: Any, **how: Any
) -> Float[Array, "B 2H 2W D"]:
  """Nearest doubling, then a convolution 3x3 with zeros around; for
  `nn.Conv(D, (3, 3), conv_general_dilated=doubled_conv)`.

  Each place of the output sees only two rows and two columns of the input, since two of the
  three taps fall on copies of one place: four convolutions 2x2 on the small grid, one for
  each parity of row and column, whose taps are sums of the kernel's. 4/9 of the products,
  and the large grid is never written before it is convolved.
  """
  layout = ("NHWC", "HWIO", "NHWC")
  precision = how.get("precision")

  def conv(taps: Array, row: int, column: int) -> Array:
    padding = [(1 - row, row), (1 - column, column)]
    return jax.lax.conv_general_dilated(
      x, taps, (1, 1), padding, dimension_numbers=layout, precision=precision
    )

  rows = [
    jnp.stack([conv(taps, r, c) for c, taps in enumerate(_folded(two, 1))], axis=3)
    for r, two in enumerate(_folded(kernel, 0))
  ]
  batch, height, width, _ = x.shape
  return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def _folded(kernel: Array, axis: int) -> tuple[Array, Array]:
  """The two taps that the first and the second copy of a place see along an axis."""
  first, middle, last = (jax.lax.index_in_dim(kernel, tap, axis) for tap in range(3))
  return (
    jnp.concatenate([first, middle + last], axis),
    jnp.concatenate([first + middle, last], axis),
  )
