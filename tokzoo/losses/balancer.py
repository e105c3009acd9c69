"""EnCodec's loss balancer (arXiv 2210.13438, section 3.4): weights that mean what they say.

A loss's weight is usually at the mercy of its gradient's size. Here each loss l_i has a gradient
g_i with respect to the reconstruction, whose norm (of each row, mean over rows) is averaged over
steps; what goes back into the decoder is

  sum_i  w_i / (sum_j w_j)  g_i / (averaged norm_i + 1e-12)

so that w_i is the share of loss i in the gradient, whatever its scale.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

State = dict[str, Any]
"""Loss name -> {"total", "count"}: float32 scalars of the bias-corrected average."""


def first_state(weights: Mapping[str, float]) -> State:
  """The state before the first step."""
  zero = jnp.zeros((), jnp.float32)
  return {name: {"total": zero, "count": zero} for name in weights}


def balance(
  gradients: Mapping[str, Float[Array, "B ..."]],
  weights: Mapping[str, float],
  state: State,
  decay: float = 0.999,
) -> tuple[Float[Array, "B ..."], State, dict[str, Float[Array, ""]]]:
  """The balanced gradient with respect to the reconstruction.

  Args:
    gradients: of every loss with respect to the reconstruction, by name.
    weights: of the same names.
    state: of the step before.
    decay: of the averaged norms.

  Returns:
    The gradient to send back, the new state, and the averaged norms to log.
  """
  if set(gradients) != set(weights):
    raise ValueError(f"gradients of {set(gradients)} for weights of {set(weights)}")
  whole = sum(weights.values())
  sent = jnp.zeros((), jnp.float32)
  new, norms = {}, {}
  for name, gradient in gradients.items():
    gradient = gradient.astype(jnp.float32)
    rows = gradient.reshape(gradient.shape[0], -1)
    total = decay * state[name]["total"] + jnp.linalg.norm(rows, axis=1).mean()
    count = decay * state[name]["count"] + 1.0
    new[name] = {"total": total, "count": count}
    norms[name] = total / count
    sent = sent + weights[name] / whole * gradient / (norms[name] + 1e-12)
  return sent, jax.lax.stop_gradient(new), norms


def sent_back(
  reconstruction: Float[Array, "B ..."], gradient: Float[Array, "B ..."]
) -> Float[Array, ""]:
  """A scalar whose gradient with respect to the reconstruction is the given one."""
  gradient = jax.lax.stop_gradient(gradient)
  return jnp.sum(reconstruction.astype(jnp.float32) * gradient)
