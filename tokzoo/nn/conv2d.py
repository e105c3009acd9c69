"""Convolutions 3x3 in forms that cost less, for `nn.Conv(..., conv_general_dilated=...)`.

  same_conv     the usual one: on CPUs by Winograd's products where the grid is large, and the
                kernel's gradient a product of matrices
  doubled_conv  of a grid that is doubled first, in less than half of the products

Grids are float[B, H, W, C], kernels float[3, 3, C, D]; zeros lie around a grid.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_PIXELS = 1024
"""Of the grid, that the gradient of a kernel takes at a time: a few MB of shifted copies."""
_PLACES = 4096
"""Of the grid, that Winograd's sums are taken of at a time."""
_SMALL = 64 * 64
"""Places below which XLA's convolution and its gradient are as fast, or nearly."""
_WIDE = 128
"""Features below which Winograd's sums cost as much as its products save."""


def same_conv(
  x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"], *ignored: Any, **how: Any
) -> Float[Array, "B H W D"]:
  """A convolution 3x3 at stride 1.

  XLA's CPU compiler takes the gradient of the kernel for a convolution whose kernel is the
  grid, and is slow at it: for 256 x 256 places of 128 features 330 ms, three times what the
  convolution itself and its other gradient take together. As a product of matrices, a few
  rows at a time, it takes 84. Where no gradient is taken, wide features on large grids are
  convolved by Winograd's products. Other machines do what they did.
  """
  precision = how.get("precision")
  if math.prod(x.shape[1:3]) < _SMALL:
    return _conv(x, kernel, precision)
  return _large_conv(precision, x, kernel)


def _conv(x: Array, kernel: Array, precision: Any) -> Array:
  padding = [(1, 1), (1, 1)]
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), padding, dimension_numbers=_LAYOUT, precision=precision
  )


def _fast_conv(x: Array, kernel: Array, precision: Any) -> Array:
  def plain(x: Array, kernel: Array) -> Array:
    return _conv(x, kernel, precision)

  _, height, width, inputs = x.shape
  is_wide = min(inputs, kernel.shape[-1]) >= _WIDE
  is_even = height % 2 == 0 and width % 2 == 0
  if not (is_wide and is_even and x.dtype == kernel.dtype == jnp.float32):
    return plain(x, kernel)
  return jax.lax.platform_dependent(x, kernel, cpu=_winograd, default=plain)


def _winograd(x: Array, kernel: Array) -> Array:
  """Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308): 4/9 of the multiplications.

  A tile of 4 x 4 places is taken apart into 16 sums, each is multiplied with its own matrix
  [C, D], and 2 x 2 places of the output are sums of the products. A few rows at a time, so
  that sums and products stay in the cache; on one core a convolution of 128 features takes
  0.6 of the time of XLA's. The error is that of float32, as before.
  """
  (batch, height, width, inputs), outputs = x.shape, kernel.shape[-1]
  rows = min(height, max(2, _PLACES // (batch * width) // 2 * 2))
  steps = -(-height // rows)
  missing, wider = steps * rows - height, max(0, outputs - inputs)
  # What the loop overwrites. Zeros would do, but XLA lays those of all layers out at the start.
  made = jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, wider)))[..., :outputs]
  x = jnp.pad(x, ((0, 0), (1, 1 + missing), (0, 0), (0, 0)))
  matrices = _along_both(kernel, _taps)

  def some_rows(step: Array, made: Array) -> Array:
    near = jax.lax.dynamic_slice_in_dim(x, step * rows, rows + 2, 1)
    some = _tiles(jnp.pad(near, ((0, 0), (0, 0), (1, 1), (0, 0))), matrices)
    return jax.lax.dynamic_update_slice_in_dim(made, some, step * rows, 1)

  return jax.lax.fori_loop(0, steps, some_rows, made)[:, :height]


def _tiles(x: Array, matrices: list[list[Array]]) -> Array:
  """`x` with a border of one place -> its convolution, without it."""
  batch, height, width, inputs = x.shape
  down, across = height // 2 - 1, width // 2 - 1
  pairs = x.reshape(batch, down + 1, 2, across + 1, 2, inputs)
  place = [
    [
      pairs[:, i // 2 : i // 2 + down, i % 2, j // 2 : j // 2 + across, j % 2]
      for j in range(4)
    ]
    for i in range(4)
  ]
  apart = _along_both(place, _apart)
  products = [
    [part @ matrix for part, matrix in zip(*both, strict=True)]
    for both in zip(apart, matrices, strict=True)
  ]
  first, second = _along_both(products, _together)
  both = jnp.stack([jnp.stack(first, 3), jnp.stack(second, 3)], 2)
  return both.reshape(batch, 2 * down, 2 * across, -1)


def _along_both(
  grid: Any, change: Callable[..., tuple[Array, ...]]
) -> list[list[Array]]:
  """`change` of the rows' entries in each column, then of each row's entries."""
  columns = [change(*entries) for entries in zip(*grid, strict=True)]
  return [list(change(*row)) for row in zip(*columns, strict=True)]


def _taps(a: Array, b: Array, c: Array) -> tuple[Array, ...]:
  return a, (a + b + c) / 2, (a - b + c) / 2, c


def _apart(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, ...]:
  return a - c, b + c, c - b, b - d


def _together(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, ...]:
  return a + b + c, b - c - d


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _large_conv(precision: Any, x: Array, kernel: Array) -> Array:
  return _fast_conv(x, kernel, precision)


def _forward(precision: Any, x: Array, kernel: Array) -> tuple[Array, Any]:
  return _conv(x, kernel, precision), (x, kernel)


def _backward(precision: Any, kept: Any, gradient: Array) -> tuple[Array, Array]:
  x, kernel = kept

  def plain(x: Array, kernel: Array, gradient: Array) -> Array:
    of_kernel = jax.vjp(lambda k: _conv(x, k, precision), kernel)[1]
    return of_kernel(gradient)[0]

  of_x = jax.vjp(lambda x: _conv(x, kernel, precision), x)[1](gradient)[0]
  return of_x, jax.lax.platform_dependent(
    x, kernel, gradient, cpu=_kernel_gradient, default=plain
  )


_large_conv.defvjp(_forward, _backward)


def _kernel_gradient(x: Array, kernel: Array, gradient: Array) -> Array:
  """x^T with nine shifted copies of the gradient, summed over pieces of a few rows."""
  batch, height, width, inputs = x.shape
  outputs = gradient.shape[-1]
  rows = min(height, max(1, _PIXELS // (batch * width)))
  steps = -(-height // rows)
  missing = steps * rows - height
  x = jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))
  gradient = jnp.pad(gradient, ((0, 0), (1, 1 + missing), (1, 1), (0, 0)))

  def add(total: Array, step: Array) -> tuple[Array, None]:
    def piece(grid: Array, more: int) -> Array:
      return jax.lax.dynamic_slice_in_dim(grid, step * rows, rows + more, 1)

    near = piece(gradient, 2)
    shifted = [
      near[:, 2 - i : 2 - i + rows, 2 - j : 2 - j + width]
      for i in range(3)
      for j in range(3)
    ]
    wide = jnp.concatenate(shifted, axis=-1).reshape(-1, 9 * outputs)
    part = jnp.matmul(
      piece(x, 0).reshape(-1, inputs).T, wide, preferred_element_type=jnp.float32
    )
    return total + part, None

  zeros = jnp.zeros((inputs, 9 * outputs), jnp.float32)
  total, _ = jax.lax.scan(add, zeros, jnp.arange(steps))
  taps = total.reshape(inputs, 3, 3, outputs).transpose(1, 2, 0, 3)
  return taps.astype(kernel.dtype)


def doubled_conv(
  x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"], *ignored: Any, **how: Any
) -> Float[Array, "B 2H 2W D"]:
  """Nearest doubling, then a convolution 3x3 at stride 1.

  Each place of the output sees only two rows and two columns of the input, since two of the
  three taps fall on copies of one place: four convolutions 2x2 on the small grid, one for
  each parity of row and column, whose taps are sums of the kernel's. 4/9 of the products,
  and the large grid is never written before it is convolved.
  """
  precision = how.get("precision")

  def conv(taps: Array, row: int, column: int) -> Array:
    padding = [(1 - row, row), (1 - column, column)]
    return jax.lax.conv_general_dilated(
      x, taps, (1, 1), padding, dimension_numbers=_LAYOUT, precision=precision
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
