"""ConvNeXt-S, the ImageNet classifier whose logits TiTok's perceptual loss compares.

Liu et al., "A ConvNet for the 2020s" (arXiv 2201.03545), in torchvision's layout and sizes
(`convnext_small`, 50.2 M). Weights are not packaged. `modeling/modules/perceptual_loss.py` of
bytedance/1d-tokenizer: both pictures are resized to 224 x 224 (bilinear, antialiased) and
normalised by ImageNet's mean and deviation; the loss is the mean squared difference of logits.

  pictures  float[B, H, W, 3] in [-1, 1], any size
  logits    float32[B, 1000]
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tokzoo.nn.layers import rows_dot_general
from tokzoo.weights import (
  Rule,
  Table,
  Transform,
  conv2d_rules,
  linear_rules,
  norm_rules,
)

SIZE_PX = 224
_DEPTHS = (3, 3, 27, 3)
_WIDTHS = (96, 192, 384, 768)
# Of ImageNet, for pictures in [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


class Block(nn.Module):
  """Filter each channel 7 x 7, norm, widen, narrow, scale each channel."""

  @nn.compact
  def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
    width = x.shape[-1]
    h = nn.Conv(width, (7, 7), feature_group_count=width, name="depthwise")(x)
    h = nn.LayerNorm(epsilon=1e-6, name="norm")(h)
    h = nn.Dense(4 * width, dot_general=rows_dot_general, name="widen")(h)
    h = nn.gelu(h, approximate=False)
    h = nn.Dense(width, dot_general=rows_dot_general, name="narrow")(h)
    scale = self.param("scale", nn.initializers.constant(1e-6), (width,))
    return x + h * scale[None, None, None]


class ConvNeXt(nn.Module):
  """Pictures in [-1, 1] to ImageNet logits.

  depths:   blocks of each stage
  widths:   features of each stage
  """

  depths: tuple[int, ...] = _DEPTHS
  widths: tuple[int, ...] = _WIDTHS

  @nn.compact
  def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B 1000"]:
    square = (images.shape[0], SIZE_PX, SIZE_PX, images.shape[3])
    x = jax.image.resize((images.astype(jnp.float32) + 1) / 2, square, "bilinear")
    x = (x - _MEAN[None, None, None]) / _DEVIATION[None, None, None]
    for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
      if stage == 0:
        x = nn.Conv(width, (4, 4), 4, padding="VALID", name="stem")(x)
        x = nn.LayerNorm(epsilon=1e-6, name="stem_norm")(x)
      else:
        x = nn.LayerNorm(epsilon=1e-6, name=f"down_{stage}_norm")(x)
        x = nn.Conv(width, (2, 2), 2, padding="VALID", name=f"down_{stage}")(x)
      for j in range(depth):
        x = Block(name=f"stage_{stage}_block_{j}")(x)
    x = nn.LayerNorm(epsilon=1e-6, name="norm")(x.mean((1, 2)))
    return nn.Dense(1000, name="head")(x)


_CHANNELS = Transform(
  "[C, 1, 1] -> [C]", lambda x: x[:, 0, 0], lambda x: x[:, None, None]
)


def _rules() -> tuple[Rule, ...]:
  rules = [
    *conv2d_rules("features.0.0", "params/stem"),
    *norm_rules("features.0.1", "params/stem_norm"),
    *norm_rules("classifier.0", "params/norm"),
    *linear_rules("classifier.2", "params/head"),
  ]
  for stage in range(len(_DEPTHS)):
    theirs, ours = (
      f"features.{2 * stage + 1}.{{j}}",
      f"params/stage_{stage}_block_{{j}}",
    )
    rules += [
      *conv2d_rules(f"{theirs}.block.0", f"{ours}/depthwise"),
      *norm_rules(f"{theirs}.block.2", f"{ours}/norm"),
      *linear_rules(f"{theirs}.block.3", f"{ours}/widen"),
      *linear_rules(f"{theirs}.block.5", f"{ours}/narrow"),
      Rule(f"{theirs}.layer_scale", f"{ours}/scale", _CHANNELS),
    ]
    if stage:
      rules += norm_rules(f"features.{2 * stage}.0", f"params/down_{stage}_norm")
      rules += conv2d_rules(f"features.{2 * stage}.1", f"params/down_{stage}")
  return tuple(rules)


WEIGHTS = Table(rules=_rules())
