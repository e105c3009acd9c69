"""The pre-norm ViT block of CLIP and of the tokenizers that descend from it.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv 2010.11929), as in the code of
TiTok, One-D-Piece, KARL and ALIT: one packed projection to queries, keys and values (torch's
`MultiheadAttention`), the exact GELU, layer norms with eps 1e-5, biases everywhere, no
dropout. The rules for its published weights are `tokzoo.weights.vit_block_rules`.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from tokzoo.nn.layers import attend, merge_heads, rows_dot_general, split_heads

INIT_STD = 0.02
"""Deviation of the weights' first values, as published: for widths of 512 and more. A layer
keeps width * INIT_STD^2 of the variance it is given, so that narrow ones begin nearly mute."""

# Variances as a mean of squared distances: what torch computes, and no cancellation.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)
"""Layer norm over the features, eps 1e-5."""


def dense(features: int, init_std: float = INIT_STD, **settings) -> nn.Dense:
  """Linear layer with bias, initialised as in the block."""
  # torch's trunc_normal_ cuts at +-2, which is 100 deviations: a plain normal.
  init = {"kernel_init": nn.initializers.normal(init_std), **settings}
  return nn.Dense(features, dot_general=rows_dot_general, **init)


class PackedAttention(nn.Module):
  """Self-attention whose queries, keys and values come from one projection."""

  heads: int
  init_std: float = INIT_STD

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], mask: Bool[Array, "#B 1 #L L"] | None = None
  ) -> Float[Array, "B L D"]:
    width = x.shape[-1]
    # MultiheadAttention draws its packed matrix by Xavier, which no later init touches.
    packed = dense(
      3 * width, kernel_init=nn.initializers.xavier_uniform(), name="in_proj"
    )(x)
    q, k, v = (
      split_heads(part, width // self.heads) for part in jnp.split(packed, 3, axis=-1)
    )
    return dense(width, self.init_std, name="out_proj")(
      merge_heads(attend(q, k, v, mask))
    )


class ViTBlock(nn.Module):
  """x += attention(norm(x)); x += W2 gelu(W1 norm(x)).

  heads:      of the attention; the width is a multiple
  mlp_ratio:  hidden features of the MLP over the width
  init_std:   deviation of the weights' first values
  """

  heads: int
  mlp_ratio: float = 4.0
  init_std: float = INIT_STD

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], mask: Bool[Array, "#B 1 #L L"] | None = None
  ) -> Float[Array, "B L D"]:
    """One block; True in `mask` lets a key be seen, every query must see one."""
    width = x.shape[-1]
    attention = PackedAttention(self.heads, self.init_std, name="attn")
    x = x + attention(LayerNorm(name="ln_1")(x), mask)
    hidden = dense(int(width * self.mlp_ratio), self.init_std, name="c_fc")
    hidden = nn.gelu(hidden(LayerNorm(name="ln_2")(x)), approximate=False)
    x = x + dense(width, self.init_std, name="c_proj")(hidden)
    return checkpoint_name(x, "block")


class ViT(nn.Module):
  """Blocks one after another, `blocks_{i}`."""

  layers: int
  heads: int
  mlp_ratio: float = 4.0
  init_std: float = INIT_STD

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], mask: Bool[Array, "#B 1 #L L"] | None = None
  ) -> Float[Array, "B L D"]:
    for i in range(self.layers):
      block = ViTBlock(self.heads, self.mlp_ratio, self.init_std, name=f"blocks_{i}")
      x = block(x, mask)
    return x
