"""Gradient estimators: how a gradient passes from a code back to the latent it replaced.

Each is a function (z, code) -> value, where the value is exactly `code` and its gradient
with respect to z is the estimator's. `code` itself gets no gradient: a codebook that is
learnt by gradient descent learns from its own loss.

  straight_through  dv/dz = I                        (Bengio et al. 2013, arXiv 1308.3432)
  rotation          dv/dz = |q| / |z| R, R z/|z| = q/|q|   (Fifty et al., arXiv 2410.06424)
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Gradient = Literal["straight_through", "rotation"]

# Below this a vector has no direction.
_TINY_NORM = 1e-6


def unit(x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
  """`x / max(|x|, 1e-6)` along the last axis; the zero vector stays zero.

  Its gradient is finite everywhere, also at zero.
  """
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  is_short = square < _TINY_NORM**2
  norm = jnp.where(is_short, _TINY_NORM, jnp.sqrt(jnp.where(is_short, 1.0, square)))
  return x / norm


def straight_through(
  z: Float[Array, "*N D"], code: Float[Array, "*N D"]
) -> Float[Array, "*N D"]:
  """`code`, with the gradient of the identity in `z`."""
  # z - z is exactly 0, so that the value is the code to the last bit; the more usual
  # z + (code - z) is off by a rounding error, and a rounded code is no longer a code.
  return jax.lax.stop_gradient(code) + (z - jax.lax.stop_gradient(z))


def rotation(
  z: Float[Array, "*N D"], code: Float[Array, "*N D"]
) -> Float[Array, "*N D"]:
  """`code`, with the gradient of the rotation and scaling that takes `z` onto it."""
  fixed, target = jax.lax.stop_gradient((z, code))
  z_unit, code_unit = unit(fixed), unit(target)
  middle = unit(z_unit + code_unit)
  stretch = jnp.linalg.norm(target, axis=-1, keepdims=True) / jnp.maximum(
    jnp.linalg.norm(fixed, axis=-1, keepdims=True), _TINY_NORM
  )
  along = jnp.sum(z * middle, axis=-1, keepdims=True)
  ahead = jnp.sum(z * z_unit, axis=-1, keepdims=True)
  rotated = stretch * (z - 2 * along * middle + 2 * ahead * code_unit)
  return straight_through(rotated, code)


GRADIENTS: dict[Gradient, Callable[[Array, Array], Array]] = {
  "straight_through": straight_through,
  "rotation": rotation,
}
