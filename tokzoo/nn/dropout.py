"""Dropout of modules that are in training exactly when they get the rng stream `dropout`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tokzoo.nn.layers import attend


def dropped(module: nn.Module, x: Float[Array, "..."], rate: float) -> Array:
  """`x` with dropout, if `module` is in training."""
  if not rate or not module.has_rng("dropout"):
    return x
  keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def attend_dropping(
  module: nn.Module,
  q: Float[Array, "B Q H d"],
  k: Float[Array, "B K H d"],
  v: Float[Array, "B K H d"],
  mask: Bool[Array, "#B 1 #Q K"] | None,
  rate: float,
) -> Float[Array, "B Q H d"]:
  """As `attend`, with dropout on the attention's weights if `module` is in training."""
  if not rate or not module.has_rng("dropout"):
    return attend(q, k, v, mask)
  scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32)
  scores = scores * q.shape[-1] ** -0.5
  if mask is not None:
    scores = jnp.where(mask, scores, -jnp.inf)
  weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
  return jnp.einsum("bhqk,bkhd->bqhd", dropped(module, weights, rate), v)
