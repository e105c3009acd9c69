"""Rectified flow: straight paths from data to noise, Euler's method, and guidance.

Liu et al., "Flow Straight and Fast" (arXiv 2209.03003); times as in Esser et al. (arXiv
2403.03206). With data x, noise e ~ N(0, 1) and a time t in [0, 1]:

  x_t = t e + (1 - t) x,   velocity v = e - x,   from t = 1 (noise) down to t = 0 (data)

Adaptive projected guidance is Sadat et al., "Eliminating Oversaturation and Artifacts of High
Guidance Scales" (arXiv 2410.02416), here of velocities, as FlexTok has it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def logit_normal(rng: PRNGKeyArray, batch: int) -> Float[Array, "B"]:
  """Times of a training step, sigmoid of N(0, 1): float32 in (0, 1)."""
  return jax.nn.sigmoid(jax.random.normal(rng, (batch,)))


def noised(
  x: Float[Array, "B ..."], noise: Float[Array, "B ..."], t: Float[Array, "B"]
) -> Float[Array, "B ..."]:
  """x_t = t e + (1 - t) x, one time a row."""
  t = t.reshape(-1, *(1,) * (x.ndim - 1))
  return t * noise + (1 - t) * x


def euler(
  velocity: Callable[[Array, Array, Any], tuple[Array, Any]],
  noise: Float[Array, "B ..."],
  steps: int,
  memory: Any = None,
) -> Float[Array, "B ..."]:
  """Integrates from noise to data in one `lax.scan`: x <- x - v / T at t = 1, ..., 1 / T.

  Args:
    velocity: (x_t, t float32[B], memory) -> velocity, and the memory of the next step.
    noise: x at t = 1.
    steps: T, at least 1.
    memory: what `velocity` remembers of the step before, such as a running mean.
  """

  def step(carry, i):
    x, memory = carry
    t = jnp.full(x.shape[:1], i / steps, jnp.float32)
    v, memory = velocity(x, t, memory)
    return (x - v / steps, memory), None

  times = jnp.arange(steps, 0, -1, dtype=jnp.float32)
  (x, _), _ = jax.lax.scan(step, (noise, memory), times)
  return x


def adaptive_projected(
  conditional: Float[Array, "B ..."],
  unconditional: Float[Array, "B ..."],
  scale: float | Float[Array, ""],
  running: Float[Array, "B ..."],
  *,
  momentum: float = -0.5,
  threshold: float = 2.5,
  eta: float = 0.0,
) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."]]:
  """Adaptive projected guidance: c + (s - 1) d, d the tamed difference of c and u.

  The difference c - u joins a running sum with negative momentum, is scaled down to a norm
  of at most `threshold`, and loses (but for `eta` of it) its part parallel to c, which is
  what oversaturates. Norms and products are over all axes but the first.

  Args:
    conditional: c, float32.
    unconditional: u.
    scale: s; 1 is none.
    running: sum of the step before; zeros at first.
    momentum: of the running sum.
    threshold: largest norm of a row.
    eta: how much of the parallel part is kept.

  Returns:
    The guided prediction, and the running sum for the next step.
  """
  axes = tuple(range(1, conditional.ndim))
  running = (conditional - unconditional) + momentum * running
  norm = jnp.sqrt(jnp.sum(jnp.square(running), axes, keepdims=True))
  # Where the difference is nothing there is nothing to scale down.
  tamed = running * jnp.minimum(1.0, threshold / jnp.maximum(norm, 1e-12))
  length = jnp.sqrt(jnp.sum(jnp.square(conditional), axes, keepdims=True))
  direction = conditional / jnp.maximum(length, 1e-12)
  parallel = jnp.sum(tamed * direction, axes, keepdims=True) * direction
  return conditional + (scale - 1) * (tamed - parallel + eta * parallel), running
