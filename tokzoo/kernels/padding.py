"""Padding to whole tiles."""

import jax.numpy as jnp
from jaxtyping import Array


def pad_to(array: Array, axis: int, multiple: int, value: float = 0) -> Array:
  """Appends `value` along an axis until its size is a multiple of `multiple`."""
  short = -array.shape[axis] % multiple
  if not short:
    return array
  widths = [(0, short if i == axis else 0) for i in range(array.ndim)]
  return jnp.pad(array, widths, constant_values=value)
