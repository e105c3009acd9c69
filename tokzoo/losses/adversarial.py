"""Losses of two players: logits of a discriminator, high for real. Means over all logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def hinge_discriminator(real: Array, fake: Array) -> Float[Array, ""]:
  """(max(0, 1 - real) + max(0, 1 + fake)) / 2 (as in taming-transformers)."""
  real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
  return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def hinge_generator(fake: Array) -> Float[Array, ""]:
  """-fake."""
  return -fake.astype(jnp.float32).mean()


def non_saturating_discriminator(real: Array, fake: Array) -> Float[Array, ""]:
  """-log sigmoid(real) - log sigmoid(-fake)."""
  real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
  return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


def non_saturating_generator(fake: Array) -> Float[Array, ""]:
  """-log sigmoid(fake)."""
  return jax.nn.softplus(-fake.astype(jnp.float32)).mean()


def lecam(
  real: Array, fake: Array, real_average: Array, fake_average: Array
) -> Float[Array, ""]:
  """LeCam regulariser (arXiv 2104.03310): keeps each side near the other's running mean.

  max(0, real - fake_average)^2 + max(0, real_average - fake)^2, means over the logits.
  """
  real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
  above = jnp.square(jax.nn.relu(real - fake_average)).mean()
  return above + jnp.square(jax.nn.relu(real_average - fake)).mean()


def gradient_penalty(judge: Callable[[Array], Array], real: Array) -> Float[Array, ""]:
  """R1 (arXiv 1801.04406): the mean over pictures of |gradient of the logits by the pixels|^2.

  Args:
    judge: pictures -> logits, each picture's of itself alone.
    real: [B, H, W, C].
  """
  logits, pull = jax.vjp(judge, jax.lax.stop_gradient(real))
  (slope,) = pull(jnp.ones_like(logits))
  return jnp.square(slope.astype(jnp.float32)).sum((1, 2, 3)).mean()


def adaptive_weight(
  reconstruct: Callable[[Array], Array],
  kernel: Array,
  felt: Callable[[Array], Array],
  fooling: Callable[[Array], Array],
) -> Float[Array, ""]:
  """|gradient of the other losses| / |gradient of the adversarial one|, both of the decoder's
  last kernel (taming-transformers): at most 1e4, and itself without a gradient.

  Args:
    reconstruct: last kernel -> pictures.
    kernel: where the gradients are taken.
    felt: pictures -> the other losses.
    fooling: pictures -> the adversarial loss.
  """
  # Of the whole network only its last layer depends on the kernel: one short backward pass.
  shown, pull = jax.vjp(reconstruct, kernel)
  norms = [
    jnp.linalg.norm(pull(jax.grad(loss)(shown))[0].astype(jnp.float32).ravel())
    for loss in (felt, fooling)
  ]
  return jax.lax.stop_gradient(jnp.clip(norms[0] / (norms[1] + 1e-4), 0, 1e4))


def least_squares_discriminator(real: Array, fake: Array) -> Float[Array, ""]:
  """(1 - real)^2 + fake^2 (LSGAN, arXiv 1611.04076)."""
  real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
  return jnp.square(1 - real).mean() + jnp.square(fake).mean()


def least_squares_generator(fake: Array) -> Float[Array, ""]:
  """(1 - fake)^2."""
  return jnp.square(1 - fake.astype(jnp.float32)).mean()


def margin_discriminator(real: Array, fake: Array) -> Float[Array, ""]:
  """max(0, 1 - real) + max(0, 1 + fake): the hinge without the half (EnCodec)."""
  return 2.0 * hinge_discriminator(real, fake)


def margin_generator(fake: Array) -> Float[Array, ""]:
  """max(0, 1 - fake): a generator's hinge that stops at the margin (EnCodec)."""
  return jax.nn.relu(1 - fake.astype(jnp.float32)).mean()
