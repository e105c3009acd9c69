"""DINOv2, the frozen network whose patch features representation alignment looks at.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision" (arXiv
2304.07193), in the layout and sizes of facebookresearch/dinov2 (`dinov2_vitl14_pretrain.pth`,
304 M). Weights are not packaged. Alignment of a generator's features with it is REPA (Yu et
al., arXiv 2410.06940).

  pictures  float[B, H, W, 3] in [-1, 1], any size; resized to 14 pixels a patch
  features  float32[B, side, side, D], behind the last norm
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tokzoo.nn.layers import attend, merge_heads, rows_dot_general, split_heads
from tokzoo.weights import Rule, Table, conv2d_rules, linear_rules, norm_rules

# Of ImageNet, for pictures in [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


class Block(nn.Module):
  """x += s1 attention(norm(x)); x += s2 mlp(norm(x)), a scale for every feature."""

  heads: int

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    width = x.shape[-1]

    def dense(features: int, name: str) -> nn.Dense:
      return nn.Dense(features, dot_general=rows_dot_general, name=name)

    def scaled(h: Array, name: str) -> Array:
      return h * self.param(name, nn.initializers.constant(1e-5), (width,))[None, None]

    h = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="norm1")(x)
    packed = jnp.split(dense(3 * width, "qkv")(h), 3, axis=-1)
    q, k, v = (split_heads(part, width // self.heads) for part in packed)
    x = x + scaled(dense(width, "proj")(merge_heads(attend(q, k, v))), "scale1")
    h = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="norm2")(x)
    h = nn.gelu(dense(4 * width, "fc1")(h), approximate=False)
    return x + scaled(dense(width, "fc2")(h), "scale2")


class DINOv2(nn.Module):
  """Pictures to patch features; the sizes are those of ViT-L/14.

  width:    features
  layers:   blocks
  heads:    of the attention
  patch:    side of a patch in pixels
  table:    side of the table of positions, in patches
  """

  width: int = 1024
  layers: int = 24
  heads: int = 16
  patch: int = 14
  table: int = 37

  @nn.compact
  def __call__(
    self, images: Float[Array, "B H W 3"], side: int = 16
  ) -> Float[Array, "B s s D"]:
    """Features of `side` x `side` patches."""
    pixels = side * self.patch
    square = (images.shape[0], pixels, pixels, images.shape[3])
    x = jax.image.resize((images.astype(jnp.float32) + 1) / 2, square, "bicubic")
    x = (x - _MEAN[None, None, None]) / _DEVIATION[None, None, None]
    size = (self.patch, self.patch)
    x = nn.Conv(self.width, size, size, padding="VALID", name="patch_embed")(x)
    normal = nn.initializers.normal(0.02)
    cls = self.param("cls_token", normal, (1, 1, self.width))
    # Of masked training only, but part of the file.
    self.param("mask_token", nn.initializers.zeros, (1, self.width))
    positions = self.param("pos_embed", normal, (1, self.table**2 + 1, self.width))
    grid = positions[0, 1:].reshape(self.table, self.table, self.width)
    weights = jnp.asarray(_bicubic(self.table, side))
    grid = jnp.einsum("ri,cj,ijd->rcd", weights, weights, grid)
    x = (x + grid[None]).reshape(len(x), side**2, self.width)
    first = jnp.broadcast_to(cls + positions[:, :1], (len(x), 1, self.width))
    x = jnp.concatenate([first, x], axis=1)
    for i in range(self.layers):
      x = Block(self.heads, name=f"blocks_{i}")(x)
    x = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="norm")(x[:, 1:])
    return x.reshape(len(x), side, side, self.width)


def _bicubic(table: int, side: int) -> Float[np.ndarray, "s t"]:
  """How the source interpolates its table: torch's bicubic (a = -0.75, not antialiased) with
  a scale of (side + 0.1) / table, an offset that it keeps for old rounding's sake."""
  if side == table:
    return np.eye(table, dtype=np.float32)
  places = (np.arange(side) + 0.5) * table / (side + 0.1) - 0.5
  weights = np.zeros((side, table), np.float32)
  a = -0.75
  for row, place in enumerate(places):
    for near in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
      d = abs(place - near)
      inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
      outer = a * (d**3 - 5 * d**2 + 8 * d - 4)
      weights[row, np.clip(near, 0, table - 1)] += inner if d <= 1 else outer
  return weights


_BLOCK, _PATH = "blocks.{i}", "params/blocks_{i}"

WEIGHTS = Table(
  rules=(
    *(
      Rule(name, f"params/{name}") for name in ("cls_token", "mask_token", "pos_embed")
    ),
    *conv2d_rules("patch_embed.proj", "params/patch_embed"),
    *norm_rules(f"{_BLOCK}.norm{{n}}", f"{_PATH}/norm{{n}}"),
    *linear_rules(f"{_BLOCK}.attn.qkv", f"{_PATH}/qkv"),
    *linear_rules(f"{_BLOCK}.attn.proj", f"{_PATH}/proj"),
    *linear_rules(f"{_BLOCK}.mlp.fc{{n}}", f"{_PATH}/fc{{n}}"),
    Rule(f"{_BLOCK}.ls{{n}}.gamma", f"{_PATH}/scale{{n}}"),
    *norm_rules("norm", "params/norm"),
  )
)
