"""Our convolutions beside the plain forms that they stand for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.nn.conv2d import doubled_conv, same_conv


def draw(seed, *shape):
  values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  return jnp.asarray(3 + 2 * values)


def plain(x, kernel):
  layout = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=layout
  )


def with_gradients(function, weight, *inputs):
  def total(x, kernel):
    y = function(x, kernel)
    return (weight * y * y).mean(), y

  return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(*inputs)


def assert_close(found, wanted):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), found, wanted
  )


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 43, 96), (3, 5, 7)])
def test_the_gradient_of_a_large_kernel_is_that_of_xla(shape):
  """Rows that the pieces do not divide, several pictures, and grids that are small."""
  x, kernel = draw(0, *shape, 3), draw(1, 3, 3, 3, 5) / 10
  weight = draw(2, *shape, 1)
  found = with_gradients(same_conv, weight, x, kernel)
  assert_close(found, with_gradients(plain, weight, x, kernel))
  program = jax.jit(jax.grad(lambda k: same_conv(x, k).sum())).lower(kernel).as_text()
  assert ("while" in program) == (shape[1] * shape[2] >= 4096)


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 82, 64)])
def test_wide_features_are_convolved_by_winograds_products(shape):
  """One piece; pieces of 20 rows, which do not divide the grid. Others keep XLA's convolution."""
  for outputs in (128, 160):
    x, kernel = draw(0, *shape, 144), draw(1, 3, 3, 144, outputs) / 300
    assert_close(jax.jit(same_conv)(x, kernel), plain(x, kernel))

  def has_products(x, kernel):
    return "dot_general" in jax.jit(same_conv).lower(x, kernel).as_text()

  assert has_products(x, kernel)
  assert not has_products(x[..., :127], kernel[..., :127, :])
  assert not has_products(x[:, :-1], kernel)
  assert not has_products(x[:, :62, :64], kernel)
  assert not has_products(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))


def test_the_kernel_keeps_its_dtype():
  x, kernel = (
    jnp.ones((1, 64, 64, 2), jnp.bfloat16),
    jnp.ones((3, 3, 2, 4), jnp.bfloat16),
  )
  gradient = jax.grad(lambda k: same_conv(x, k).sum().astype(jnp.float32))(kernel)
  assert gradient.dtype == jnp.bfloat16
  assert float(gradient[1, 1, 0, 0]) == 4096 and float(gradient[0, 0, 0, 0]) == 3968


@pytest.mark.parametrize("size", [(4, 4), (1, 3), (5, 2)])
def test_doubling_is_folded_into_the_convolution(size):
  x, kernel, weight = draw(0, 2, *size, 3), draw(1, 3, 3, 3, 5), draw(2, 2, 1, 1, 5)

  def whole(x, kernel):
    return plain(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), kernel)

  assert_close(
    with_gradients(doubled_conv, weight, x, kernel),
    with_gradients(whole, weight, x, kernel),
  )
  module = nn.Conv(5, (3, 3), conv_general_dilated=doubled_conv)
  y, variables = module.init_with_output(jax.random.key(0), x)
  assert y.shape == (2, 2 * size[0], 2 * size[1], 5)
  assert variables["params"]["kernel"].shape == (3, 3, 3, 5)
