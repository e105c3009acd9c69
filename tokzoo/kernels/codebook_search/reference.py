"""Codebook search spelt out: the whole [N, K] matrix of scores. The specification."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def search(
  x: Float[Array, "H N D"],
  codebook: Float[Array, "H K D"],
  bias: Float[Array, "H K"],
  *,
  top_k: int,
) -> tuple[Int[Array, "H N T"], Float[Array, "H N T"]]:
  """The `top_k` codes of the largest score `x . c - bias`, for each of H codebooks.

  Args:
    x: float32, finite.
    codebook: float32, finite.
    bias: float32; +inf for a code that is never chosen.
    top_k: at most K.

  Returns:
    int32 ids by falling score, the lowest id first where scores are equal, and the float32
    scores. What is left where fewer than `top_k` codes may be chosen has score -inf.
  """
  scores = jnp.einsum("hnd,hkd->hnk", x, codebook, precision=jax.lax.Precision.HIGHEST)
  values, ids = jax.lax.top_k(scores - bias[:, None, :], top_k)
  return ids.astype(jnp.int32), values
