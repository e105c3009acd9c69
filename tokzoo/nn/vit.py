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

# torch's trunc_normal_ cuts at +-2, which is 100 deviations: a plain normal.
_INIT = nn.initializers.normal(0.02)

# Variances as a mean of squared distances: what torch computes, and no cancellation.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)
"""Layer norm over the features, eps 1e-5."""

Dense = functools.partial(nn.Dense, kernel_init=_INIT, dot_general=rows_dot_general)
"""Linear layer with bias, initialised as in the block."""


class PackedAttention(nn.Module):
  """Self-attention whose queries, keys and values come from one projection."""

  heads: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], mask: Bool[Array, "#B 1 #L L"] | None = None
  ) -> Float[Array, "B L D"]:
    width = x.shape[-1]
    # MultiheadAttention draws its packed matrix by Xavier, which no later init touches.
    packed = Dense(
      3 * width, kernel_init=nn.initializers.xavier_uniform(), name="in_proj"
    )(x)
    q, k, v = (
      split_heads(part, width // self.heads) for part in jnp.split(packed, 3, axis=-1)
    )
    return Dense(width, name="out_proj")(merge_heads(attend(q, k, v, mask)))


class ViTBlock(nn.Module):
  """x += attention(norm(x)); x += W2 gelu(W1 norm(x)).

  heads:      of the attention; the width is a multiple
  mlp_ratio:  hidden features of the MLP over the width
  """

  heads: int
  mlp_ratio: float = 4.0

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], mask: Bool[Array, "#B 1 #L L"] | None = None
  ) -> Float[Array, "B L D"]:
    """One block; True in `mask` lets a key be seen, every query must see one."""
    width = x.shape[-1]
    x = x + PackedAttention(self.heads, name="attn")(LayerNorm(name="ln_1")(x), mask)
    hidden = Dense(int(width * self.mlp_ratio), name="c_fc")(LayerNorm(name="ln_2")(x))
    x = x + Dense(width, name="c_proj")(nn.gelu(hidden, approximate=False))
    return checkpoint_name(x, "block")


class ViT(nn.Module):
  """Blocks one after another, `blocks_{i}`."""

  layers: int
  heads: int
  mlp_ratio: float = 4.0

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], mask: Bool[Array, "#B 1 #L L"] | None = None
  ) -> Float[Array, "B L D"]:
    for i in range(self.layers):
      x = ViTBlock(self.heads, self.mlp_ratio, name=f"blocks_{i}")(x, mask)
    return x
