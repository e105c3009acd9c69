"""Vector quantization: search, estimators, moving averages, dead codes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import FlaxError

from tokzoo.kernels.codebook_search import count_and_sum
from tokzoo.quantizers import Ema, ResetBelow, VectorQuantizer
from tokzoo.quantizers.codebook import nearest
from tokzoo.quantizers.gradients import rotation, straight_through, unit


def init(quantizer, z):
  return jax.jit(quantizer.init)(jax.random.key(0), z)


def train(quantizer, variables, z, mask=None, key=None):
  """Output and new state of a training step."""
  rngs = None if key is None else {"codebook": key}
  call = functools.partial(quantizer.apply, train=True, mutable=["codebook"])
  return jax.jit(call)(variables, z, mask, rngs=rngs)


@pytest.mark.parametrize("num_codes", [1, 5, 1024, 2500])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_search_equals_the_definition(num_codes, metric):
  rng = np.random.default_rng(0)
  z = rng.normal(size=(50, 4)).astype(np.float32)
  codes = rng.normal(size=(num_codes, 4)).astype(np.float32)
  if metric == "cosine":
    z, codes = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, codes))
    expected = np.argmax(z.astype(np.float64) @ codes.T.astype(np.float64), -1)
  else:
    offsets = z[:, None].astype(np.float64) - codes[None]
    expected = np.argmin((offsets**2).sum(-1), -1)
  found = jax.jit(nearest, static_argnums=2)(z, codes, metric)
  np.testing.assert_array_equal(found, expected)


def test_the_lowest_id_wins_a_tie_also_across_blocks():
  codes = jnp.tile(jnp.eye(3), (1000, 1))
  found = nearest(2 * jnp.eye(3), codes, "euclidean")
  np.testing.assert_array_equal(found, [0, 1, 2])


@pytest.mark.parametrize("estimator", [straight_through, rotation])
def test_the_value_is_the_code_and_the_code_gets_no_gradient(estimator, rng):
  z, code = jax.random.normal(rng, (2, 9, 5)) * 100
  value, pullback = jax.vjp(estimator, z, code)
  np.testing.assert_array_equal(value, code)
  assert not pullback(jnp.ones_like(z))[1].any()


def test_rotation_gradient_is_the_scaled_rotation(rng):
  z, code = np.asarray(jax.random.normal(rng, (2, 5)), np.float64)
  z_unit, code_unit = z / np.linalg.norm(z), code / np.linalg.norm(code)
  w = (z_unit + code_unit) / np.linalg.norm(z_unit + code_unit)
  matrix = np.eye(5) - 2 * np.outer(w, w) + 2 * np.outer(code_unit, z_unit)
  jacobian = jax.jit(jax.jacobian(rotation))(*map(jnp.float32, (z, code)))
  stretch = np.linalg.norm(code) / np.linalg.norm(z)
  np.testing.assert_allclose(jacobian, stretch * matrix, atol=1e-5)


def test_gradients_at_zero_are_finite():
  zero, code = jnp.zeros((1, 4)), jnp.ones((1, 4))
  for function in (unit, lambda z: rotation(z, code), lambda z: rotation(code, z)):
    assert np.isfinite(jax.jit(jax.jacobian(function))(zero)).all()


jitted_sums = jax.jit(count_and_sum, static_argnums=2)


def test_exact_sums():
  """In any order, of any size, and as near to the float64 sum as float32 can be."""
  rng = np.random.default_rng(0)
  z = (rng.normal(size=(4000, 3)) * 10 ** rng.uniform(-3, 2, (4000, 1))).astype("f4")
  ids = rng.integers(-1, 7, 4000).astype(np.int32)
  counts, sums = jitted_sums(jnp.asarray(z), jnp.asarray(ids), 7)
  order = rng.permutation(4000)
  shuffled = jitted_sums(jnp.asarray(z[order]), jnp.asarray(ids[order]), 7)
  np.testing.assert_array_equal(sums, shuffled[1])
  np.testing.assert_array_equal(counts, np.bincount(ids[ids >= 0], minlength=7))
  expected = np.stack([z[ids == code].astype(np.float64).sum(0) for code in range(7)])
  np.testing.assert_allclose(sums, expected, rtol=1e-6, atol=1e-5)


def test_sums_of_nothing_are_zero():
  counts, sums = jitted_sums(jnp.zeros((4, 2)), jnp.full(4, -1), 3)
  assert not counts.any() and not sums.any()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_moving_averages_follow_the_equations(metric, rng):
  quantizer = VectorQuantizer(6, 3, metric, update=Ema(decay=0.9, eps=1e-3))
  z = jax.random.normal(rng, (4, 5, 3))
  state = init(quantizer, z)
  quantized, after = train(quantizer, state, z)
  old, new = state["codebook"], after["codebook"]
  latents = np.asarray(z, np.float64).reshape(-1, 3)
  if metric == "cosine":
    latents /= np.linalg.norm(latents, axis=-1, keepdims=True)
  hot = np.eye(6)[np.asarray(quantized.ids).reshape(-1)]
  counts = 0.9 * np.asarray(old["counts"]) + 0.1 * hot.sum(0)
  sums = 0.9 * np.asarray(old["sums"]) + 0.1 * hot.T @ latents
  smooth = (counts + 1e-3) / (counts.sum() + 6e-3) * counts.sum()
  codes = sums / smooth[:, None]
  if metric == "cosine":
    codes /= np.linalg.norm(codes, axis=-1, keepdims=True)
  np.testing.assert_allclose(new["counts"], counts, rtol=1e-6)
  np.testing.assert_allclose(new["sums"], sums, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(new["codes"], codes, rtol=1e-5, atol=1e-6)
  # The output is of the codebook before the step.
  np.testing.assert_array_equal(
    quantized.values, np.asarray(old["codes"])[np.asarray(quantized.ids)]
  )


def test_a_dead_code_lives_again(rng):
  """Code, sum and count are reset together, so the code survives the next steps."""
  quantizer = VectorQuantizer(4, 2, update=Ema(0.5, reset=ResetBelow(0.4)))
  z = jax.random.normal(rng, (8, 4, 2))
  codebook = dict(init(quantizer, z)["codebook"])
  codebook["codes"] = jnp.asarray([[0.0, 0], [1, 1], [-1, 1], [1e4, 1e4]])
  codebook["sums"] = codebook["codes"]
  used = set()
  for step in range(4):
    key = jax.random.key(step)
    quantized, state = train(quantizer, {"codebook": codebook}, z, key=key)
    codebook = state["codebook"]
    used = set(np.asarray(quantized.ids).reshape(-1).tolist())
    if step == 1:  # the count fell to 1/4: the code is now a token of the batch
      tokens = np.asarray(z).reshape(-1, 2)
      assert (tokens == np.asarray(codebook["codes"][3])).all(-1).any()
      assert codebook["counts"][3] == np.float32(0.4)
      np.testing.assert_array_equal(
        codebook["sums"][3], codebook["codes"][3] * jnp.float32(0.4)
      )
  assert 3 in used
  assert jnp.abs(codebook["codes"]).max() < 10


def test_no_more_codes_are_reset_than_tokens_are_kept(rng):
  quantizer = VectorQuantizer(32, 2, update=Ema(0.5, reset=ResetBelow(10.0)))
  z = jax.random.normal(rng, (1, 6, 2))
  mask = jnp.asarray([[True, False, True, False, True, False]])
  state = init(quantizer, z)
  _, after = train(quantizer, state, z, mask, rng)
  is_new = np.asarray(after["codebook"]["counts"]) == 10.0
  assert is_new.sum() == 3
  replaced = np.asarray(after["codebook"]["codes"])[is_new]
  assert {tuple(code) for code in replaced} == {
    tuple(row) for row in np.asarray(z)[0, ::2]
  }


def test_training_without_a_mutable_codebook_is_refused(rng):
  quantizer = VectorQuantizer(4, 2)
  z = jnp.ones((1, 1, 2))
  with pytest.raises(FlaxError):
    quantizer.apply(init(quantizer, z), z, train=True)


def test_a_learnt_codebook_learns_from_its_loss(rng):
  quantizer = VectorQuantizer(8, 3, update=None)
  z = jax.random.normal(rng, (2, 9, 3))
  variables = init(quantizer, z)

  def loss(variables):
    return quantizer.apply(variables, z, train=True).losses["codebook"]

  grad = jax.jit(jax.grad(loss))(variables)["params"]["codes"]
  ids = np.asarray(quantizer.apply(variables, z).ids).reshape(-1)
  offset = np.asarray(variables["params"]["codes"])[ids] - np.asarray(z).reshape(-1, 3)
  expected = np.zeros((8, 3))
  np.add.at(expected, ids, 2 * offset / z.size)
  np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-7)
