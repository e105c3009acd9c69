"""MaskBit's discriminator, of TiTok and Open-MAGVIT2: convolutions, blurred down-sampling.

`modeling/modules/discriminator.py` of bytedance/1d-tokenizer @ 942a96f, after StyleGAN's:
anti-aliased strides (Zhang, arXiv 1904.11486) and a pool to one size of logits map. In
TencentARC/SEED-Voken @ b9a17ea (`src/Open_MAGVIT2/modules/discriminator/model.py`) the same
layers have no pool and read [-1, 1].

  image   float[B, H, W, C] in [-1, 1]
  logits  float[B, h, w, 1], high means real
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tokzoo.nn.group_norm import GroupNorm
from tokzoo.weights import Table, conv2d_rules, norm_rules


class BlurDiscriminator(nn.Module):
  """Images to one logit per place of a grid.

  width:         features of the first layer and stage, doubled by each further stage
  stages:        convolution, blurred halving, group norm; 3 as published
  pool:          side of the grid, 16 in TiTok; None: what the stages leave, as in Open-MAGVIT2
  is_unit_range: whether the network works in [0, 1], to which it converts at its door (TiTok),
                 or in the [-1, 1] that comes (Open-MAGVIT2)
  """

  width: int = 128
  stages: int = 3
  pool: int | None = 16
  is_unit_range: bool = True

  @nn.compact
  def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B h w 1"]:
    shown = (image + 1) / 2 if self.is_unit_range else image
    # As torch's "same": XLA puts the odd row and column at the bottom and right, too.
    x = nn.Conv(self.width, (5, 5), name="conv_in")(shown)
    x = nn.leaky_relu(x, 0.1)
    for i in range(self.stages):
      x = nn.Conv(self.width * 2**i, (3, 3), name=f"conv_{i}")(x)
      norm = GroupNorm(32, epsilon=1e-5, name=f"norm_{i}")
      x = nn.leaky_relu(norm(blur_and_halve(x)), 0.1)
    if self.pool is not None:
      x = adaptive_max_pool(x, self.pool)
    x = nn.leaky_relu(nn.Conv(x.shape[-1], (1, 1), name="logits_0")(x), 0.1)
    return nn.Conv(1, (5, 5), name="logits_1")(x)


def blur_and_halve(x: Float[Array, "B H W D"]) -> Float[Array, "B h w D"]:
  """Each channel with the kernel [1, 3, 3, 1] along both axes, stride 2, zeros outside."""
  taps = np.array([1, 3, 3, 1], np.float32)
  kernel = np.outer(taps, taps) / taps.sum() ** 2
  return jax.lax.conv_general_dilated(
    x,
    jnp.broadcast_to(
      jnp.asarray(kernel, x.dtype)[..., None, None], (4, 4, 1, x.shape[-1])
    ),
    window_strides=(2, 2),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


def adaptive_max_pool(x: Float[Array, "B H W D"], side: int) -> Float[Array, "B s s D"]:
  """The largest value of each of side x side windows that cover the map (torch's rule).

  Window i of n places is floor(i n / side) to ceil((i + 1) n / side): windows overlap where
  n is no multiple, and repeat where it is smaller.
  """
  for axis in (1, 2):
    size = x.shape[axis]
    first = np.arange(side) * size // side
    last = -(-(np.arange(side) + 1) * size // side) - 1
    widest = int((last - first).max()) + 1
    # Windows of one width: shorter ones repeat their last place.
    places = np.minimum(first[:, None] + np.arange(widest)[None], last[:, None])
    windows = jnp.take(x, jnp.asarray(places.ravel()), axis=axis)
    shape = (*x.shape[:axis], side, widest, *x.shape[axis + 1 :])
    x = windows.reshape(shape).max(axis + 1)
  return x


WEIGHTS = Table(
  rules=(
    *conv2d_rules("block_in.0", "params/conv_in"),
    *conv2d_rules("blocks.{i}.0", "params/conv_{i}"),
    *norm_rules("blocks.{i}.2", "params/norm_{i}"),
    *conv2d_rules("to_logits.0", "params/logits_0"),
    *conv2d_rules("to_logits.2", "params/logits_1"),
  ),
  ignore=(r"blocks\.\d+\.1\.kernel",),  # the blur, a buffer that never changes
)
