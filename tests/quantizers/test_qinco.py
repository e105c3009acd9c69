"""Residual quantization whose codebooks are networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.contract import Quantizer
from tokzoo.quantizers import VectorQuantizer
from tokzoo.quantizers.qinco import Qinco, adapt, nearest_adapted
from tokzoo.quantizers.residual import Residual


@pytest.fixture(scope="module")
def setting():
  """A quantizer whose networks do something, its variables, and latents."""
  quantizer = Qinco(40, 3, 3, hidden=5, num_blocks=2)
  z = jax.random.normal(jax.random.key(1), (2, 6, 3))
  variables = jax.jit(quantizer.init)(jax.random.key(0), z)
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  leaves = [
    leaf + 0.3 * jax.random.normal(key, leaf.shape)
    for leaf, key in zip(leaves, keys, strict=True)
  ]
  return quantizer, jax.tree.unflatten(tree, leaves), z


def test_begins_as_plain_residual_quantization():
  z = jax.random.normal(jax.random.key(1), (2, 6, 3))
  quantizer = Qinco(40, 3, 3)
  variables = jax.jit(quantizer.init)(jax.random.key(0), z)
  codes = variables["params"]["codes"]
  plain = Residual(tuple(VectorQuantizer(40, 3, update=None) for _ in range(3)))
  params = {f"levels_{i}": {"codes": codes[i]} for i in range(3)}
  expected = jax.jit(plain.apply)({"params": params}, z)
  found = jax.jit(quantizer.apply)(variables, z)
  np.testing.assert_array_equal(found.ids, expected.ids)
  np.testing.assert_allclose(found.values, expected.values, atol=1e-6)


def test_the_search_equals_the_definition(setting):
  """Also across blocks of codes: 40 are one and a part."""
  _, variables, z = setting
  params = {k: v[0] for k, v in variables["params"].items() if k != "codes"}
  codes, rest = variables["params"]["codes"][1], z.reshape(-1, 3)
  partial = 0.5 * rest
  every = adapt(
    params,
    jnp.broadcast_to(codes[None], (12, 40, 3)),
    jnp.broadcast_to(partial[:, None], (12, 40, 3)),
  )
  error = ((np.asarray(rest)[:, None] - np.asarray(every)) ** 2).sum(-1)
  found = jax.jit(nearest_adapted)(params, codes, partial, rest)
  np.testing.assert_array_equal(found, error.argmin(-1))


def test_follows_the_contract(setting):
  quantizer, variables, z = setting
  assert isinstance(quantizer, Quantizer)
  out = jax.jit(quantizer.apply)(variables, z)
  assert out.ids.shape == (2, 6, 3) and out.ids.dtype == jnp.int32
  assert not any(out.losses.values())
  codes = quantizer.apply(variables, out.ids, method="ids_to_codes")
  np.testing.assert_allclose(out.values, codes, atol=1e-6)
  sums = quantizer.apply(variables, out.ids, method="ids_to_partial_sums")
  prefix = quantizer.apply(variables, out.ids[..., :2], method="ids_to_codes")
  np.testing.assert_allclose(prefix, sums[1], atol=1e-6)
  dropped = quantizer.apply(
    variables, out.ids.at[..., 2:].set(-1), method="ids_to_codes"
  )
  np.testing.assert_allclose(dropped, sums[1], atol=1e-6)


def test_padding_reaches_nothing(setting):
  quantizer, variables, z = setting
  mask = jnp.ones((2, 6), bool).at[:, 4:].set(False)
  padded = jnp.where(mask[..., None], z, jnp.nan)

  @jax.jit
  def losses(params, z, mask):
    out = quantizer.apply({"params": params}, z, mask, train=True)
    return sum(out.losses.values()), out

  differentiate = jax.value_and_grad(losses, has_aux=True)
  (loss, out), grad = differentiate(variables["params"], padded, mask)
  (short, _), short_grad = differentiate(variables["params"], z[:, :4], mask[:, :4])
  assert (np.asarray(out.ids)[:, 4:] == -1).all() and not out.values[:, 4:].any()
  assert loss == pytest.approx(float(short), rel=1e-5)
  for name in grad:
    np.testing.assert_allclose(grad[name], short_grad[name], rtol=1e-4, atol=1e-6)


def test_codebook_loss_has_a_true_gradient(setting):
  """In the direction of any weights, by finite differences, for fixed ids."""
  quantizer, variables, z = setting
  ids = jax.jit(quantizer.apply)(variables, z).ids

  @jax.jit
  def loss(params):
    sums = quantizer.apply({"params": params}, ids, method="ids_to_partial_sums")
    return jnp.mean((z[None] - sums) ** 2)

  def trained(params):
    return quantizer.apply({"params": params}, z, train=True).losses["codebook"]

  params = variables["params"]
  grad = jax.jit(jax.grad(trained))(params)
  for name in ("codes", "mix", "up", "down_bias"):
    direction = jax.random.normal(jax.random.key(5), params[name].shape)
    step = 2e-3 * direction
    ahead, behind = (params | {name: params[name] + s} for s in (step, -step))
    slope = (loss(ahead) - loss(behind)) / 4e-3
    assert float(jnp.sum(grad[name] * direction)) == pytest.approx(
      float(slope), rel=0.02
    )
