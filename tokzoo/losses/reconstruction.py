"""Distances between a reconstruction and its original, in float32.

Every function takes `reduction`: a mean in the wrong place is the commonest difference
between a paper and its code.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Reduction = Literal["mean", "sum", "rows", "none"]
"""`mean` and `sum` run over all elements; `rows` is the mean over all axes but the first,
the batch; `none` keeps the elements."""


def l1(x: Array, y: Array, reduction: Reduction = "mean") -> Float[Array, "..."]:
  """|x - y|."""
  return reduce(jnp.abs(_difference(x, y)), reduction)


def l2(x: Array, y: Array, reduction: Reduction = "mean") -> Float[Array, "..."]:
  """(x - y)^2."""
  return reduce(jnp.square(_difference(x, y)), reduction)


def smooth_l1(
  x: Array, y: Array, beta: float = 1.0, reduction: Reduction = "mean"
) -> Float[Array, "..."]:
  """Quadratic below `beta`, linear above (torch's smooth_l1_loss): d^2 / (2 beta), d - beta/2."""
  distance = jnp.abs(_difference(x, y))
  near = 0.5 * jnp.square(distance) / beta
  return reduce(jnp.where(distance < beta, near, distance - 0.5 * beta), reduction)


def binary_cross_entropy(
  logits: Array, target: Array, reduction: Reduction = "mean"
) -> Float[Array, "..."]:
  """Cross-entropy in nats of targets in [0, 1], or bools, under sigmoid(logits)."""
  _require_same_shape(logits, target)
  logits, target = logits.astype(jnp.float32), target.astype(jnp.float32)
  return reduce(optax.sigmoid_binary_cross_entropy(logits, target), reduction)


def commitment(
  latents: Array, codes: Array, reduction: Reduction = "mean"
) -> Float[Array, "..."]:
  """(latents - sg(codes))^2: draws latents to their codes and leaves the codes alone."""
  return l2(latents, jax.lax.stop_gradient(codes), reduction)


def reduce(values: Array, reduction: Reduction) -> Float[Array, "..."]:
  """Element-wise values as `reduction` says."""
  match reduction:
    case "mean":
      return values.mean()
    case "sum":
      return values.sum()
    case "rows":
      return values.reshape(values.shape[0], -1).mean(1)
    case "none":
      return values
  raise ValueError(f"reduction is mean, sum, rows or none, not {reduction!r}")


def _difference(x: Array, y: Array) -> Float[Array, "..."]:
  _require_same_shape(x, y)
  return x.astype(jnp.float32) - y.astype(jnp.float32)


def _require_same_shape(x: Array, y: Array) -> None:
  # Broadcasting [B] against [B, 1] gives a loss that falls and means nothing.
  if x.shape != y.shape:
    raise ValueError(f"the shapes {x.shape} and {y.shape} differ")
