"""Distances between a reconstruction and its original, in float32."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Reduction = Literal["mean", "sum", "none"]
"""`mean` and `sum` run over all elements; `none` keeps them."""


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


def reduce(values: Array, reduction: Reduction) -> Float[Array, "..."]:
  """Mean or sum over all elements, or the elements as they are."""
  match reduction:
    case "mean":
      return values.mean()
    case "sum":
      return values.sum()
    case "none":
      return values
  raise ValueError(f"reduction is mean, sum or none, not {reduction!r}")


def _difference(x: Array, y: Array) -> Float[Array, "..."]:
  if x.shape != y.shape:
    raise ValueError(f"the shapes {x.shape} and {y.shape} differ")
  return x.astype(jnp.float32) - y.astype(jnp.float32)
