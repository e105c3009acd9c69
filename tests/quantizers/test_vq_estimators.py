"""Gradient estimators beyond straight-through and rotation, and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.quantizers import Ema, VectorQuantizer
from tokzoo.quantizers.codebook import similarity
from tokzoo.quantizers.gradients import (
  Directional,
  Gumbel,
  SoftAssignment,
  SyncUpdate,
  rotation,
)
from tokzoo.quantizers.regularizers import Orthogonal


def differences(function, x, step=1e-2):
  """The gradient of a scalar function by central differences."""
  x = np.asarray(x, np.float64)
  grad = np.zeros_like(x)
  for place in np.ndindex(x.shape):
    ahead, behind = x.copy(), x.copy()
    ahead[place] += step
    behind[place] -= step
    grad[place] = (function(jnp.float32(ahead)) - function(jnp.float32(behind))) / (
      2 * step
    )
  return grad


def test_directional_steps_the_true_distance_in_a_noisy_direction(rng):
  z, code = jax.random.normal(rng, (2, 400, 5))
  key = jax.random.key(1)
  value = jax.jit(Directional(5e-3))(z, code, key)
  offset, step = np.asarray(code - z), np.asarray(value - z)
  length = np.linalg.norm(offset, axis=-1)
  np.testing.assert_allclose(np.linalg.norm(step, axis=-1), length, rtol=1e-4)
  # The direction is off by noise of this variance over the length, to first order.
  turned = step / length[:, None] - offset / length[:, None]
  assert np.mean(turned**2 * length[:, None] ** 2) == pytest.approx(4e-3, rel=0.25)
  np.testing.assert_allclose(jax.jit(Directional(0.0))(z, code, key), code, atol=1e-5)


def test_directional_gradient_is_that_of_the_distance(rng):
  z, code, cotangent = jax.random.normal(rng, (3, 1, 4))
  direction = np.asarray(jax.jit(Directional(0.1))(z, code, rng) - z)
  direction = direction / np.linalg.norm(direction)

  @jax.jit
  def distance_along(z, code):  # the direction is a constant
    return jnp.sum(cotangent * (z + direction * jnp.linalg.norm(code - z)))

  def total(z, code):
    return jnp.sum(cotangent * Directional(0.1)(z, code, rng))

  grads = jax.jit(jax.grad(total, (0, 1)))(z, code)
  for side, grad in enumerate(grads):
    moves = (lambda x: distance_along(x, code), lambda x: distance_along(z, x))
    expected = differences(moves[side], (z, code)[side])
    np.testing.assert_allclose(grad, expected, atol=2e-3)
  same = jax.jit(jax.jacobian(lambda z: Directional()(z, code, rng)))(code)
  assert np.isfinite(same).all()


@pytest.mark.parametrize("reaches", ["code", "latent"])
def test_sync_update_shares_the_gradient(reaches, rng):
  z, code, cotangent = jax.random.normal(rng, (3, 7, 4))
  value, pullback = jax.vjp(SyncUpdate(0.3, reaches, "rotation"), z, code)
  np.testing.assert_array_equal(value, code)
  grad_z, grad_code = pullback(cotangent)
  plain = jax.vjp(lambda z: rotation(z, code), z)[1](cotangent)[0]
  of_latent, of_code = (1.0, 0.3) if reaches == "code" else (1.3, 0.0)
  np.testing.assert_allclose(grad_z, of_latent * plain, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(grad_code, of_code * cotangent, rtol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "angular"])
def test_soft_assignment_is_the_gradient_of_the_soft_path(metric, rng):
  """The value is the code; its gradient is that of softmax(logits / T) C in the latent, and
  in the codes that of the look-up and of the logits."""
  z = jax.random.normal(rng, (3, 4))
  codes, cotangent = jax.random.normal(jax.random.key(1), (5, 4)), jnp.ones((3, 4))
  cotangent = cotangent.at[1].set(jnp.asarray([0.5, -2.0, 0.1, 3.0]))
  ids = jnp.asarray([4, 0, 2])
  estimator = SoftAssignment(0.7)

  def value(z, codes):
    return estimator(similarity(z, codes, metric), codes, ids)

  def soft_path(z, codes):
    fixed = jax.lax.stop_gradient(jax.random.normal(jax.random.key(1), (5, 4)))
    soft = jax.nn.softmax(similarity(z, codes, metric) / 0.7, axis=-1)
    return jnp.sum(cotangent * (jnp.dot(soft, fixed) + codes[ids]))

  def total(z, codes):
    found = value(z, codes)
    return jnp.sum(cotangent * found), found

  soft_path = jax.jit(soft_path)
  grads, found = jax.jit(jax.grad(total, (0, 1), has_aux=True))(z, codes)
  np.testing.assert_array_equal(found, np.asarray(codes)[np.asarray(ids)])
  by_z = differences(lambda z: soft_path(z, codes), z)
  by_codes = differences(lambda codes: soft_path(z, codes), codes)
  np.testing.assert_allclose(grads[0], by_z, atol=3e-3)
  np.testing.assert_allclose(grads[1], by_codes, atol=3e-3)
  assert np.abs(grads[0]).max() > 0.05
  assert np.abs(np.asarray(grads[1])[[1, 3]]).max() > 1e-3, "codes not chosen learn too"


def test_gumbel_draws_from_the_softmax():
  logits = jnp.log(jnp.asarray([0.5, 0.3, 0.2])) * 2.0
  drawn = Gumbel(2.0)(jnp.tile(logits, (20_000, 1)), jax.random.key(0))
  share = np.bincount(drawn, minlength=3) / 20_000
  np.testing.assert_allclose(share, [0.5, 0.3, 0.2], atol=0.02)


def test_sampling_is_for_training_only(rng):
  """What is drawn is used throughout: value, id, commitment and the moving averages."""
  quantizer = VectorQuantizer(16, 3, update=Ema(0.5), sampling=Gumbel(1.0))
  z = jax.random.normal(rng, (4, 50, 3))
  variables = jax.jit(quantizer.init)(rng, z)
  codes = np.asarray(variables["codebook"]["codes"])
  nearest = jax.jit(quantizer.apply)(variables, z)
  drawn, after = jax.jit(
    lambda z: quantizer.apply(
      variables, z, train=True, mutable=["codebook"], rngs={"codebook": rng}
    )
  )(z)
  plain = jax.jit(VectorQuantizer(16, 3, update=Ema(0.5)).apply)(variables, z)
  np.testing.assert_array_equal(nearest.ids, plain.ids)
  assert 0.1 < np.mean(np.asarray(drawn.ids) != np.asarray(nearest.ids)) < 1
  found = codes[np.asarray(drawn.ids)]
  np.testing.assert_array_equal(drawn.values, found)
  error = np.mean((np.asarray(z) - found) ** 2)
  assert drawn.losses["commitment"] == pytest.approx(error, rel=1e-5)
  counts = 0.5 + 0.5 * np.bincount(np.asarray(drawn.ids).ravel(), minlength=16)
  np.testing.assert_allclose(after["codebook"]["counts"], counts)


def test_estimators_that_train_codes_do_so_in_the_layer(rng):
  """The chosen codes of every estimator get the gradient that it promises them."""
  z = jax.random.normal(rng, (2, 6, 3))
  for gradient, share in ((SyncUpdate(0.25), 0.25), (SoftAssignment(1e-3), 1.0)):
    quantizer = VectorQuantizer(9, 3, gradient=gradient, update=None)
    variables = jax.jit(quantizer.init)(rng, z)

    def total(params, quantizer=quantizer):
      quantized = quantizer.apply(params, z, train=True)
      return jnp.sum(quantized.values), quantized.stats["counts"]

    grads, counts = jax.jit(jax.grad(total, has_aux=True))(variables)
    grad, counts = np.asarray(grads["params"]["codes"]), np.asarray(counts)
    expected = np.repeat(counts[:, None] * share, 3, axis=1)
    np.testing.assert_allclose(grad, expected, atol=2e-3)


def test_what_does_not_go_together_is_refused():
  with pytest.raises(TokzooError, match=r"Directional.*update=None"):
    VectorQuantizer(4, 2, gradient=Directional())
  with pytest.raises(TokzooError, match=r"Orthogonal.*update=None"):
    VectorQuantizer(4, 2, regularizers=(Orthogonal(),))
  with pytest.raises(ValueError, match="codes of 2 features, latents of 3"):
    quantizer = VectorQuantizer(4, 2, gradient=Directional(), update=None)
    jax.eval_shape(quantizer.init, jax.random.key(0), jnp.ones((1, 1, 3)))
