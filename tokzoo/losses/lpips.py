"""LPIPS: a learnt perceptual distance on the features of VGG16.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (arXiv
1801.03924), version 0.1 with VGG16 as in richzhang/PerceptualSimilarity and in the copy that
comes with taming-transformers. Weights are not packaged: the network's in torchvision's
layout (`features.{i}`; `classifier.*` is left aside) and the five linear layers
(`lin{k}.model.1.weight`), in one file or in two.

  pictures  float[B, H, W, 3] in [-1, 1], at least 16 x 16
  distance  float32[B]: the sum over five layers of the mean over places of the weighted
            squared differences of features that are scaled to unit norm

In the source a place whose features are all 0 has a gradient of NaN; here it is 0.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tokzoo.weights import POINTWISE, Rule, Table, conv2d_rules

# Features of each convolution; a pool before each group but the first. torchvision numbers
# convolutions, activations and pools in one row.
_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

# Of ImageNet, for pictures in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class LPIPS(nn.Module):
  """The distance of pairs of pictures."""

  @nn.compact
  def __call__(
    self, x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]
  ) -> Float[Array, "B"]:
    features = VGG16(name="net")
    total = jnp.zeros(x.shape[0], jnp.float32)
    pairs = zip(features(x), features(y), strict=True)
    for k, (a, b) in enumerate(pairs):
      squares = jnp.square(_unit(a) - _unit(b))
      # A 1x1 convolution to one feature, without bias.
      weights = self.param(f"lin_{k}", nn.initializers.ones, (a.shape[-1], 1))
      total += jnp.mean(squares @ weights, axis=(1, 2, 3))
    return total


class VGG16(nn.Module):
  """VGG16 (arXiv 1409.1556): the activations before each pool, and the last ones."""

  def setup(self):
    self.convs = [
      [nn.Conv(width, (3, 3), name=f"conv_{i}_{j}") for j, width in enumerate(group)]
      for i, group in enumerate(_GROUPS)
    ]

  def __call__(self, image: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w D"]]:
    x = (image.astype(jnp.float32) - _SHIFT[None, None, None]) / _SCALE[
      None, None, None
    ]
    maps = []
    for i, group in enumerate(self.convs):
      if i:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for conv in group:
        x = nn.relu(conv(x))
      maps.append(x)
    return maps


def _unit(x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  is_zero = square == 0
  norm = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))
  return x / (norm + 1e-10)


def _rules() -> tuple[Rule, ...]:
  rules: list[Rule] = []
  place = 0
  for i, group in enumerate(_GROUPS):
    for j in range(len(group)):
      rules += conv2d_rules(f"features.{place}", f"params/net/conv_{i}_{j}")
      place += 2  # the convolution and its activation
    place += 1  # the pool
  return tuple(rules)


WEIGHTS = Table(
  rules=(
    *_rules(),
    Rule("lin{k}.model.1.weight", "params/lin_{k}", POINTWISE),
  ),
  ignore=(r"classifier\..*", r"scaling_layer\..*"),
)
