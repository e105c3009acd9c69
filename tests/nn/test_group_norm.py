"""Our group norm beside Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.nn.group_norm import GroupNorm


def draw(seed, *shape):
  values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  return jnp.asarray(3 + 2 * values)


@pytest.mark.parametrize("shape", [(2, 5, 7, 12), (3, 11, 6)])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_the_numbers_and_gradients_are_those_of_flax(shape, groups):
  ours = GroupNorm(groups, epsilon=1e-5)
  flax = nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)
  x, weight = draw(0, *shape), draw(1, *shape)
  params = {"scale": draw(2, shape[-1]), "bias": draw(3, shape[-1])}
  assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)["params"]) == (
    jax.tree.map(jnp.shape, params)
  )

  def both(module):
    def total(params, x):
      y = module.apply({"params": params}, x)
      return (weight * y).sum(), y

    return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, x)

  (found, y), (wanted, z) = both(ours), both(flax)
  np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), found, wanted
  )


def test_a_large_mean_costs_no_digits_and_bfloat16_stays():
  x = 1000 + draw(0, 2, 8, 8, 4)
  y = GroupNorm(2, use_affine=False).apply({}, x)
  np.testing.assert_allclose(y.reshape(2, 64, 2, 2).std((1, 3)), 1, rtol=1e-3)
  half = {"scale": jnp.ones(4, jnp.bfloat16), "bias": jnp.zeros(4, jnp.bfloat16)}
  y = GroupNorm(2).apply({"params": half}, x.astype(jnp.bfloat16))
  assert y.dtype == jnp.bfloat16


def test_groups_of_unequal_size_are_refused():
  with pytest.raises(TokzooError, match=r"10 features are not 4 groups"):
    GroupNorm(4).init(jax.random.key(0), jnp.zeros((1, 2, 10)))
