"""Parts of decoder-only transformers: the cache of keys and values, and Llama's blocks.

Touvron et al., "LLaMA" (arXiv 2302.13971), as the image generators of LlamaGen and of
Open-MAGVIT2 have it: RMSNorm, SwiGLU, rotary positions on interleaved pairs, no biases, one
packed projection. A block gives back what it remembers: a full pass fills a cache (prefill),
a step extends it, and the result has the same form in both.

A module is in training exactly when its caller gives the rng stream `dropout`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from tokzoo.nn.dropout import dropped
from tokzoo.nn.layers import (
  GatedMLP,
  attend,
  merge_heads,
  rows_dot_general,
  split_heads,
)
from tokzoo.nn.rotary import Rotary

_INIT = nn.initializers.normal(0.02)


class KeyValues(struct.PyTreeNode):
  """What one attention remembers: `[B, L, H, d]`, row i of sequence place i."""

  keys: Float[Array, "B L H d"]
  values: Float[Array, "B L H d"]

  def padded(self, length: int) -> "KeyValues":
    """The same with room for `length` places."""
    widths = ((0, 0), (0, length - self.keys.shape[1]), (0, 0), (0, 0))
    return KeyValues(jnp.pad(self.keys, widths), jnp.pad(self.values, widths))

  def extended(self, keys: Array, values: Array, start: Int[Array, ""]) -> "KeyValues":
    """The same with the places from `start` on overwritten."""
    write = jax.lax.dynamic_update_slice_in_dim
    return KeyValues(
      write(self.keys, keys.astype(self.keys.dtype), start, axis=1),
      write(self.values, values.astype(self.values.dtype), start, axis=1),
    )


Memory = tuple[KeyValues, ...]
"""The cache of a stack: one entry a block."""


def padded(memory: Memory, length: int) -> Memory:
  """A cache that a prefill filled, with room for `length` places."""
  return tuple(each.padded(length) for each in memory)


def remember(
  keys: Array, values: Array, memory: KeyValues | None, start: Int[Array, ""] | None
) -> KeyValues:
  """New keys and values: alone (a full pass), or written into `memory` from `start` on."""
  if memory is None:
    return KeyValues(keys, values)
  assert start is not None
  return memory.extended(keys, values, start)


def causal(length: int) -> Bool[Array, "1 1 L L"]:
  """Every place sees itself and the places before it."""
  return jnp.tril(jnp.ones((length, length), bool))[None, None]


def so_far(place: Int[Array, ""], length: int) -> Bool[Array, "1 1 1 L"]:
  """What a single query at `place` sees of a cache of `length` places."""
  return (jnp.arange(length) <= place)[None, None, None]


def dense(features: int, name: str, init=_INIT) -> nn.Dense:
  """A linear layer without bias, N(0, 0.02)."""
  return nn.Dense(
    features,
    use_bias=False,
    kernel_init=init,
    dot_general=rows_dot_general,
    name=name,
  )


class LlamaAttention(nn.Module):
  """Causal self-attention with rotary positions.

  heads:    of the attention; the width is a multiple
  dropout:  on the output, in training
  """

  heads: int
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B Q D"],
    rotary: Rotary,
    mask: Bool[Array, "#B 1 Q K"],
    memory: KeyValues | None = None,
    start: Int[Array, ""] | None = None,
  ) -> tuple[Float[Array, "B Q D"], KeyValues]:
    width = x.shape[-1]
    q, k, v = (
      split_heads(part, width // self.heads)
      for part in jnp.split(dense(3 * width, "wqkv")(x), 3, axis=-1)
    )
    memory = remember(rotary.turn(k), v, memory, start)
    attended = attend(rotary.turn(q), memory.keys, memory.values, mask)
    return dropped(
      self, dense(width, "wo")(merge_heads(attended)), self.dropout
    ), memory


class LlamaBlock(nn.Module):
  """x += attention(norm(x)); x += W2(silu(W1 norm(x)) * W3 norm(x)).

  heads:    of the attention
  hidden:   features between W1, W3 and W2
  eps:      of the norms
  dropout:  on both branches, in training
  """

  heads: int
  hidden: int
  eps: float = 1e-5
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B Q D"],
    rotary: Rotary,
    mask: Bool[Array, "#B 1 Q K"],
    memory: KeyValues | None = None,
    start: Int[Array, ""] | None = None,
  ) -> tuple[Float[Array, "B Q D"], KeyValues]:
    h = nn.RMSNorm(self.eps, name="attention_norm")(x)
    attention = LlamaAttention(self.heads, self.dropout, name="attention")
    attended, memory = attention(h, rotary, mask, memory, start)
    x = x + attended
    mlp = GatedMLP(self.hidden, _INIT, name="feed_forward")
    h = mlp(nn.RMSNorm(self.eps, name="ffn_norm")(x))
    return checkpoint_name(x + dropped(self, h, self.dropout), "block"), memory


class LlamaStack(nn.Module):
  """Blocks one after another, `block_{i}`; fields as of `LlamaBlock`."""

  layers: int
  heads: int
  hidden: int
  eps: float = 1e-5
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B Q D"],
    rotary: Rotary,
    mask: Bool[Array, "#B 1 Q K"],
    memory: Memory | None = None,
    start: Int[Array, ""] | None = None,
  ) -> tuple[Float[Array, "B Q D"], Memory]:
    """One pass over Q places.

    Args:
      x: what stands there.
      rotary: their rows of the rotary table.
      mask: True where a key is seen; K is Q, or the length of `memory`.
      memory: the cache that the pass extends; None: the pass fills one of its own.
      start: place of the first row of `x` in `memory`.
    """
    found = []
    for i in range(self.layers):
      block = LlamaBlock(
        self.heads, self.hidden, self.eps, self.dropout, name=f"block_{i}"
      )
      x, kept = block(x, rotary, mask, None if memory is None else memory[i], start)
      found.append(kept)
    return x, tuple(found)


def llama_hidden(width: int, multiple_of: int) -> int:
  """Hidden features of Llama's feed-forward: 8/3 of the width, rounded up to a multiple."""
  return -(-int(8 * width / 3) // multiple_of) * multiple_of
