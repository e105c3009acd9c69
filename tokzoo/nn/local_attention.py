"""Attention over a neighbourhood: causal and sliding (Mimi), or in separate windows (SNAC).

Both cost time and memory in proportion to the sequence: the sliding one is computed in blocks
of one window, each of which sees itself and the block before.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tokzoo.nn.layers import attend, merge_heads, split_heads
from tokzoo.nn.rotary import axis_angles, rotate_split_half


def sliding_attention(
  q: Float[Array, "B Q H d"],
  k: Float[Array, "B K H d"],
  v: Float[Array, "B K H d"],
  window: int,
  seen: Int[Array, ""] | int | None = None,
) -> Float[Array, "B Q H d"]:
  """Attention of each place to itself and the window - 1 before.

  Args:
    q: the last Q of the K places.
    k, v: of all K places, which may begin with K - Q from the past.
    window: places that a query sees.
    seen: of the past places, how many hold something, the last ones; None: all. May be
      traced.
  """
  length, past = q.shape[1], k.shape[1] - q.shape[1]
  if past == 0 and length > 2 * window:
    return _in_blocks(q, k, v, window)
  at = np.arange(length)[:, None] + past
  key = np.arange(k.shape[1])[None]
  mask = jnp.asarray((key <= at) & (key > at - window))
  if seen is not None:
    mask = mask & (jnp.arange(k.shape[1])[None] >= past - seen)
  return attend(q, k, v, mask[None, None])


def _in_blocks(q: Array, k: Array, v: Array, window: int) -> Array:
  batch, length, heads, dim = q.shape
  blocks = -(-length // window)
  missing = blocks * window - length
  widths = ((0, 0), (0, missing), (0, 0), (0, 0))
  q, k, v = (
    jnp.pad(x, widths).reshape(batch, blocks, window, heads, dim) for x in (q, k, v)
  )
  before = ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0))
  k, v = (
    jnp.concatenate([jnp.pad(x, before)[:, :-1], x], axis=2).reshape(
      batch * blocks, 2 * window, heads, dim
    )
    for x in (k, v)
  )
  at, key = np.arange(window)[:, None] + window, np.arange(2 * window)[None]
  inside = (key <= at) & (key > at - window)
  # The first block has nothing before it.
  mask = np.broadcast_to(inside, (blocks, window, 2 * window)).copy()
  mask[0] &= key >= window
  mask = jnp.tile(jnp.asarray(mask), (batch, 1, 1))[:, None]
  y = attend(q.reshape(batch * blocks, window, heads, dim), k, v, mask)
  return y.reshape(batch, blocks * window, heads, dim)[:, :length]


class WindowAttention(nn.Module):
  """x + attention inside windows that do not overlap, after a LayerNorm; no look out of them.

  window:    places of a window, which T must be a multiple of
  head_dim:  features a head; positions turn by rotation, counted from each window's start
  """

  window: int
  head_dim: int = 64

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    batch, length, features = x.shape
    y = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(x)
    y = nn.Dense(3 * features, use_bias=False, name="to_qkv")(y)
    y = y.reshape(batch * (length // self.window), self.window, 3 * features)
    q, k, v = (split_heads(part, self.head_dim) for part in jnp.split(y, 3, axis=-1))
    places = np.arange(self.window, dtype=np.float64)[:, None]
    angles = np.tile(axis_angles(places, (self.head_dim,), 10_000.0), (1, 2))
    cos, sin = (jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))
    q, k = rotate_split_half(q, cos, sin), rotate_split_half(k, cos, sin)
    y = merge_heads(attend(q, k, v)).reshape(batch, length, features)
    return x + nn.Dense(features, use_bias=False, name="to_out")(y)
