"""The parts of FlexTok's two transformers: blocks, masks, positions, time, patches."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from tokzoo.nn.layers import (
  GatedMLP,
  attend,
  merge_heads,
  rows_dot_general,
  split_heads,
)

norm = functools.partial(
  nn.LayerNorm,
  epsilon=1e-5,
  use_bias=False,
  use_scale=False,
  use_fast_variance=False,
)
"""Layer norm without weights, in float32."""


def dense(
  features: int, name: str, use_bias: bool = True, is_zero: bool = False
) -> nn.Dense:
  """A linear layer, Xavier's initialisation or zeros."""
  init = nn.initializers.zeros if is_zero else nn.initializers.xavier_uniform()
  return nn.Dense(
    features,
    use_bias=use_bias,
    kernel_init=init,
    dot_general=rows_dot_general,
    name=name,
  )


class Attention(nn.Module):
  """Self-attention of normed queries and keys."""

  head_dim: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], mask: Bool[Array, "1 1 L L"] | None
  ) -> Float[Array, "B L D"]:
    width = x.shape[-1]
    q, k, v = (
      split_heads(dense(width, name, use_bias=False)(x), self.head_dim)
      for name in ("wq", "wk", "wv")
    )
    # Scores are scaled by 8 / d, not by d^-1/2 as `attend` has it; the same at d = 64.
    q = norm(name="norm_q")(q) * (8 / self.head_dim**0.5)
    attended = attend(q, norm(name="norm_k")(k), v, mask)
    return dense(width, "proj", use_bias=False)(merge_heads(attended))


def _mlp(width: int) -> GatedMLP:
  return GatedMLP(int(2 * 4 * width / 3), nn.initializers.xavier_uniform(), name="mlp")


class EncoderBlock(nn.Module):
  """x += attention(norm(x)); x += mlp(norm(x))."""

  head_dim: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], mask: Bool[Array, "1 1 L L"]
  ) -> Float[Array, "B L D"]:
    x = x + Attention(self.head_dim, name="attn")(norm(name="norm1")(x), mask)
    x = x + _mlp(x.shape[-1])(norm(name="norm2")(x))
    return checkpoint_name(x, "block")


class DecoderBlock(nn.Module):
  """The same, shifted, scaled and gated by the time: patches and registers differently."""

  head_dim: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], time: Float[Array, "B D"], patches: int
  ) -> Float[Array, "B L D"]:
    width = x.shape[-1]
    modulation = dense(12 * width, "adaLN_modulation", is_zero=True)(nn.silu(time))

    def per_token(pair: Float[Array, "B 2 D"]) -> Float[Array, "B L D"]:
      first, second = jnp.split(pair, 2, axis=1)
      first = jnp.broadcast_to(first, (len(x), patches, width))
      second = jnp.broadcast_to(second, (len(x), x.shape[1] - patches, width))
      return jnp.concatenate([first, second], axis=1)

    six = modulation.reshape(-1, 2, 6, width)
    gate, mlp_gate, shift, scale, mlp_shift, mlp_scale = (
      per_token(six[:, :, i]) for i in range(6)
    )
    h = norm(name="norm1")(x) * (1 + scale) + shift
    x = x + gate * Attention(self.head_dim, name="attn")(h, None)
    h = norm(name="norm2")(x) * (1 + mlp_scale) + mlp_shift
    return checkpoint_name(x + mlp_gate * _mlp(width)(h), "block")


def to_patches(x: Float[Array, "B H W C"], patch: int) -> Float[Array, "B P ppC"]:
  """Square patches, row by row; inside a patch row, column, channel."""
  return rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def from_patches(
  x: Float[Array, "B P ppC"], patch: int, side: int
) -> Float[Array, "B H W C"]:
  """The inverse of `to_patches`, of `side` rows of patches."""
  return rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=side, p=patch, q=patch)


def causal_last(patches: int, registers: int) -> Bool[Array, "1 1 L L"]:
  """Everybody sees the patches; registers also see registers up to themselves."""
  length = patches + registers
  seen = np.tril(np.ones((length, length), bool))
  seen[:, :patches] = True
  return jnp.asarray(seen)[None, None]


def time_waves(
  t: Float[Array, "B"], features: int, max_time: float, max_period: float
) -> Float[Array, "B F"]:
  """Cosines, then sines of the time at geometric frequencies, float32."""
  half = features // 2
  frequencies = max_period ** -(np.arange(half) / half) * 1000 / max_time
  angles = t.astype(jnp.float32)[:, None] * frequencies.astype(np.float32)[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_table(side: int, width: int) -> Float[np.ndarray, "S S D"]:
  """Fixed positions: sin and cos of the row, then of the column, a quarter each."""
  frequencies = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
  angles = np.arange(side)[:, None] * frequencies
  waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
  rows = np.broadcast_to(waves[:, None], (side, *waves.shape))
  columns = np.broadcast_to(waves[None], (side, *waves.shape))
  return np.concatenate([rows, columns], axis=-1).astype(np.float32)
