"""Gradient estimators: how a gradient passes from a code back to the latent it replaced.

The two plain ones are functions (z, code) -> value, where the value is exactly `code`, its
gradient with respect to z is the estimator's, and `code` itself gets none: a codebook that
is learnt by gradient descent learns from its own loss.

  straight_through  dv/dz = I                        (Bengio et al. 2013, arXiv 1308.3432)
  rotation          dv/dz = |q| / |z| R, R z/|z| = q/|q|   (Fifty et al., arXiv 2410.06424)

The others have settings, and train the codes as well:

  Directional       v = z + sg(n / |n|) |q - z|, n = q - z + noise       (DiVeQ)
  SyncUpdate        v = estimator(z, q) + w (q - sg q)    (Huh et al., arXiv 2305.08842)
  SoftAssignment    v = (hard + p - sg p) C, p = softmax(logits / T)
                    (Gumbel-softmax: Jang et al., arXiv 1611.01144; without noise and with
                    logits z . c: index backpropagation, arXiv 2412.02692)

An estimator is for training: what a quantizer returns in evaluation is the code.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

Plain = Literal["straight_through", "rotation"]

# Below this a vector has no direction.
_TINY_NORM = 1e-6


def unit(x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
  """`x / max(|x|, 1e-6)` along the last axis; the zero vector stays zero.

  Its gradient is finite everywhere, also at zero.
  """
  return x / jnp.maximum(length(x), _TINY_NORM)


def length(x: Float[Array, "*N D"]) -> Float[Array, "*N 1"]:
  """|x| along the last axis, which is kept; its gradient at (almost) zero is 0."""
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  is_short = square < _TINY_NORM**2
  return jnp.where(is_short, 0.0, jnp.sqrt(jnp.where(is_short, 1.0, square)))


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


GRADIENTS: dict[Plain, Callable[[Array, Array], Array]] = {
  "straight_through": straight_through,
  "rotation": rotation,
}


@dataclasses.dataclass(frozen=True)
class Directional:
  """DiVeQ: a step from z of the true length |q - z| in a slightly wrong direction.

  Both z and the code get a true gradient, that of the distance, so there is no need of a
  commitment or codebook loss; a code that is never chosen gets none, so it needs a reset.
  (openreview KRVnpTbx7R. The value is `code` up to the noise, not to the last bit.)
  """

  variance: float = 5e-3
  """Of the noise on each component of q - z."""

  def __call__(
    self, z: Float[Array, "*N D"], code: Float[Array, "*N D"], key: PRNGKeyArray
  ) -> Float[Array, "*N D"]:
    """The value; the noise comes from `key`."""
    offset = code - z
    noise = self.variance**0.5 * jax.random.normal(key, z.shape)
    return z + jax.lax.stop_gradient(unit(offset + noise)) * length(offset)


@dataclasses.dataclass(frozen=True)
class SyncUpdate:
  """Adds a share of the value's gradient to what the plain estimator passes on.

  The codes move with the encoder in the same step instead of one step behind.
  """

  weight: float
  """The share, in [0, 1]."""
  reaches: Literal["code", "latent"] = "code"
  """Who gets it. The code, in the paper; vector_quantize_pytorch takes the share after its
  estimator, whose gradient reaches only the latent, so there the latent gets 1 + weight."""
  estimator: Plain = "straight_through"
  """What the latent gets apart from that."""

  def __call__(
    self, z: Float[Array, "*N D"], code: Float[Array, "*N D"]
  ) -> Float[Array, "*N D"]:
    """The value: exactly `code`."""
    value = GRADIENTS[self.estimator](z, code)
    source = code if self.reaches == "code" else value
    return value + self.weight * (source - jax.lax.stop_gradient(source))


@dataclasses.dataclass(frozen=True)
class SoftAssignment:
  """The gradient of the softmax over all codes, in place of the choice of one.

  It reaches the latent through the logits, the chosen code as in a look-up, and through
  the logits every code. Together with `Gumbel` sampling of the same temperature this is the
  straight-through Gumbel-softmax. (vector_quantize_pytorch 1.32 forms it and then discards
  it by a straight-through around the output; what it has in effect is
  `gradient="straight_through"` with that sampling.)
  """

  temperature: float = 1.0

  def __call__(
    self,
    logits: Float[Array, "N K"],
    codes: Float[Array, "K D"],
    ids: Int[Array, "N"],
  ) -> Float[Array, "N D"]:
    """The value: exactly `codes[ids]`."""
    soft = jax.nn.softmax(logits / self.temperature, axis=-1)
    # Zero, with the gradient of the logits: the codes themselves get theirs by the look-up.
    zero = soft - jax.lax.stop_gradient(soft)
    fixed = jax.lax.stop_gradient(codes)
    return codes[ids] + jnp.matmul(zero, fixed, precision=jax.lax.Precision.HIGHEST)


Gradient = Plain | Directional | SyncUpdate | SoftAssignment


@dataclasses.dataclass(frozen=True)
class Gumbel:
  """Draws the code from softmax(logits / T), by the largest of logits / T + Gumbel noise."""

  temperature: float = 1.0

  def __call__(self, logits: Float[Array, "N K"], key: PRNGKeyArray) -> Int[Array, "N"]:
    """int32[N], the ids drawn."""
    noise = jax.random.gumbel(key, logits.shape)
    drawn = jnp.argmax(logits / self.temperature + noise, axis=-1)
    return drawn.astype(jnp.int32)
