"""Snake, the periodic activation of audio networks (Ziyin et al., arXiv 2006.08195)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tokzoo.weights import Rule, Transform

ALPHA = Transform(
  "[1, D, 1] -> [D]", lambda x: x.reshape(-1), lambda x: x[None, :, None]
)


def snake_rules(key: str, path: str) -> tuple[Rule]:
  """A published Snake's `alpha` and ours."""
  return (Rule(f"{key}.alpha", f"{path}/alpha", ALPHA),)


class Snake(nn.Module):
  """x + sin^2(alpha x) / (alpha + 1e-9), alpha of each feature learnt, 1 at first.

  In float32 whatever comes in: bfloat16 leaves of the sine's argument little more than its
  sign. The dtype of `x` is kept.
  """

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    alpha = self.param("alpha", nn.initializers.ones, (x.shape[-1],))
    alpha = alpha.astype(jnp.float32)[None, None]
    wide = x.astype(jnp.float32)
    return (wide + square_of_sine(alpha * wide) / (alpha + 1e-9)).astype(x.dtype)


def square_of_sine(y: Float[Array, "*N"]) -> Float[Array, "*N"]:
  """sin^2(y) to 3e-7 for |y| up to 10,000, where float32 itself has a digit or two left.

  XLA's sine is right for arguments of any size, for which it pays on CPUs with a scalar loop:
  in DAC's decoder it takes as long as the convolutions. Here multiples of pi, which sin^2 does
  not see, are taken off in three parts, and what is left goes through a polynomial.
  """
  turns = jnp.round(y * np.float32(1 / np.pi))
  for part in _PI:
    y = y - turns * part
  square = y * y
  slope = jnp.full_like(y, _SINE[0])
  for factor in _SINE[1:]:
    slope = slope * square + factor
  return jnp.square(y + y * square * slope)


_PI = tuple(np.float32(part) for part in (3.140625, 9.670257568e-4, 6.277114153e-7))
"""The first two with so few bits that their multiples are exact."""

_SINE = tuple(
  np.float32(factor)
  for factor in (2.6083159e-6, -1.981069071e-4, 8.33307858556e-3, -1.66666597128e-1)
)
"""sin y = y + y^3 p(y^2) in +-pi / 2, the highest power first."""
