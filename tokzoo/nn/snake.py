"""Snake, the periodic activation of audio networks (Ziyin et al., arXiv 2006.08195)."""

import flax.linen as nn
import jax.numpy as jnp
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
    wide = wide + jnp.square(jnp.sin(alpha * wide)) / (alpha + 1e-9)
    return wide.astype(x.dtype)
