"""Inception-v3 of the FID: the network whose features make a Fréchet distance an FID.

Heusel et al. 2017 (arXiv 1706.08500) took the graph `inception-2015-12-05` of TensorFlow:
2,048 features of the last pooling, 1,008 classes. Its weights are published for torch as
`pt_inception-2015-12-05-6726825d.pth` (releases of mseitzer/pytorch-fid), and this module
reads that file. The network is not torchvision's Inception-v3: the average pools of the
blocks leave padding out of the average, and the last block has a max pool in their place.

Input: pictures in [-1, 1], RGB, any size; they are first rounded to 8 bits, as the published
tools read them from files. Two protocols resize them to 299 x 299, both bilinear without
antialiasing:

  pytorch-fid  half-pixel centres as in torch; x / 127.5 - 1 for an 8-bit x
  tensorflow   corner to corner as in TensorFlow 1, which the original FID code,
               torch-fidelity and the evaluation suite of guided-diffusion share;
               (x - 128) / 128
"""

from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tokzoo.errors import TokzooError
from tokzoo.metrics.features import FeatureNetwork, Features, round_to_8_bits
from tokzoo.weights import CONV2D, LINEAR, Rule, Table, read_state

Protocol = Literal["pytorch-fid", "tensorflow"]

FILE = "pt_inception-2015-12-05-6726825d.pth"
SIZE_PX = 299


class Conv(nn.Module):
  """Convolution without bias, normalisation with stored statistics, ReLU."""

  features: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "SAME"

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    x = nn.Conv(
      self.features,
      self.kernel,
      self.stride,
      self.padding,
      use_bias=False,
      name="conv",
    )(x)
    return nn.relu(nn.BatchNorm(True, epsilon=1e-3, name="bn")(x))


def _average(x: Array) -> Array:
  return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _shrink(x: Array) -> Array:
  return nn.max_pool(x, (3, 3), (2, 2))


class BlockA(nn.Module):
  """35 x 35."""

  pooled: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    five = Conv(48, name="branch5x5_1")(x)
    three = Conv(64, name="branch3x3dbl_1")(x)
    three = Conv(96, (3, 3), name="branch3x3dbl_2")(three)
    branches = (
      Conv(64, name="branch1x1")(x),
      Conv(64, (5, 5), name="branch5x5_2")(five),
      Conv(96, (3, 3), name="branch3x3dbl_3")(three),
      Conv(self.pooled, name="branch_pool")(_average(x)),
    )
    return jnp.concatenate(branches, axis=-1)


class BlockB(nn.Module):
  """35 x 35 to 17 x 17."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    double = Conv(64, name="branch3x3dbl_1")(x)
    double = Conv(96, (3, 3), name="branch3x3dbl_2")(double)
    branches = (
      Conv(384, (3, 3), 2, "VALID", name="branch3x3")(x),
      Conv(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double),
      _shrink(x),
    )
    return jnp.concatenate(branches, axis=-1)


class BlockC(nn.Module):
  """17 x 17, with convolutions of 7 pixels in one direction."""

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    once = Conv(self.width, name="branch7x7_1")(x)
    once = Conv(self.width, (1, 7), name="branch7x7_2")(once)
    twice = Conv(self.width, name="branch7x7dbl_1")(x)
    twice = Conv(self.width, (7, 1), name="branch7x7dbl_2")(twice)
    twice = Conv(self.width, (1, 7), name="branch7x7dbl_3")(twice)
    twice = Conv(self.width, (7, 1), name="branch7x7dbl_4")(twice)
    branches = (
      Conv(192, name="branch1x1")(x),
      Conv(192, (7, 1), name="branch7x7_3")(once),
      Conv(192, (1, 7), name="branch7x7dbl_5")(twice),
      Conv(192, name="branch_pool")(_average(x)),
    )
    return jnp.concatenate(branches, axis=-1)


class BlockD(nn.Module):
  """17 x 17 to 8 x 8."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    three = Conv(192, name="branch3x3_1")(x)
    seven = Conv(192, name="branch7x7x3_1")(x)
    seven = Conv(192, (1, 7), name="branch7x7x3_2")(seven)
    seven = Conv(192, (7, 1), name="branch7x7x3_3")(seven)
    branches = (
      Conv(320, (3, 3), 2, "VALID", name="branch3x3_2")(three),
      Conv(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven),
      _shrink(x),
    )
    return jnp.concatenate(branches, axis=-1)


class BlockE(nn.Module):
  """8 x 8; `is_last` has a max pool where the first has an average."""

  is_last: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    once = Conv(384, name="branch3x3_1")(x)
    twice = Conv(448, name="branch3x3dbl_1")(x)
    twice = Conv(384, (3, 3), name="branch3x3dbl_2")(twice)
    pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.is_last else _average(x)
    branches = (
      Conv(320, name="branch1x1")(x),
      Conv(384, (1, 3), name="branch3x3_2a")(once),
      Conv(384, (3, 1), name="branch3x3_2b")(once),
      Conv(384, (1, 3), name="branch3x3dbl_3a")(twice),
      Conv(384, (3, 1), name="branch3x3dbl_3b")(twice),
      Conv(192, name="branch_pool")(pooled),
    )
    return jnp.concatenate(branches, axis=-1)


class InceptionV3(nn.Module):
  """The network, from pictures in [-1, 1] on.

  protocol:  how pictures are resized and scaled, see above
  """

  protocol: Protocol = "pytorch-fid"

  @nn.compact
  def __call__(self, images: Float[Array, "B H W 3"]) -> Features:
    """Features float32[B, 2048] and logits float32[B, 1008].

    `score_logits` lack the bias of the last layer: the published Inception Score was
    computed without it.
    """
    x = self._prepare(images)
    x = Conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
    x = Conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
    x = _shrink(Conv(64, (3, 3), name="Conv2d_2b_3x3")(x))
    x = Conv(80, name="Conv2d_3b_1x1")(x)
    x = _shrink(Conv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
    for letter, pooled in (("b", 32), ("c", 64), ("d", 64)):
      x = BlockA(pooled, name=f"Mixed_5{letter}")(x)
    x = BlockB(name="Mixed_6a")(x)
    for letter, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
      x = BlockC(width, name=f"Mixed_6{letter}")(x)
    x = BlockD(name="Mixed_7a")(x)
    x = BlockE(is_last=False, name="Mixed_7b")(x)
    x = BlockE(is_last=True, name="Mixed_7c")(x)
    features = jnp.mean(x, axis=(1, 2))
    score_logits = nn.Dense(1008, use_bias=False, name="fc")(features)
    bias = self.param("fc_bias", nn.initializers.zeros, (1008,))
    return Features(features, score_logits + bias[None, :], score_logits)

  def _prepare(self, images: Array) -> Array:
    pixels = round_to_8_bits(images)
    is_torch = self.protocol == "pytorch-fid"
    for axis in (1, 2):
      rows = _bilinear(pixels.shape[axis], SIZE_PX, is_half_pixel=is_torch)
      pixels = jnp.moveaxis(
        jnp.tensordot(pixels, rows, (axis, 1), precision="highest"), -1, axis
      )
    return pixels / 127.5 - 1 if is_torch else (pixels - 128) / 128


def _bilinear(size: int, target: int, is_half_pixel: bool) -> Float[Array, "t s"]:
  """The weights that resize a row of `size` pixels to `target`, without antialiasing."""
  places = jnp.arange(target, dtype=jnp.float32)
  if is_half_pixel:
    places = jnp.maximum((places + 0.5) * (size / target) - 0.5, 0)
  else:
    places = places * (size / target)
  low = jnp.minimum(jnp.floor(places), size - 1)
  share = (places - low)[:, None]
  low = low.astype(jnp.int32)
  high = jnp.minimum(low + 1, size - 1)
  return (1 - share) * jax.nn.one_hot(low, size) + share * jax.nn.one_hot(high, size)


def _rules(ours: str, theirs: str) -> tuple[Rule, ...]:
  """The rules of one `Conv`."""
  return (
    Rule(f"{theirs}.conv.weight", f"params/{ours}/conv/kernel", CONV2D),
    Rule(f"{theirs}.bn.weight", f"params/{ours}/bn/scale"),
    Rule(f"{theirs}.bn.bias", f"params/{ours}/bn/bias"),
    Rule(f"{theirs}.bn.running_mean", f"batch_stats/{ours}/bn/mean"),
    Rule(f"{theirs}.bn.running_var", f"batch_stats/{ours}/bn/var"),
  )


WEIGHTS = Table(
  rules=(
    *_rules("{layer}", "{layer}"),
    *_rules("{block}/{branch}", "{block}.{branch}"),
    Rule("fc.weight", "params/fc/kernel", LINEAR),
    Rule("fc.bias", "params/fc_bias"),
  ),
  ignore=(r".*\.num_batches_tracked",),
)


def load_inception(
  path: str | Path, protocol: Protocol = "pytorch-fid"
) -> FeatureNetwork:
  """The network with its published weights.

  Args:
    path: the file `pt_inception-2015-12-05-6726825d.pth` (extra `torch`), or the same
      tensors as safetensors.
    protocol: how pictures are resized and scaled, see above.

  Raises:
    TokzooError: no such file, or one of another network.
  """
  path = Path(path)
  if not path.is_file():
    raise TokzooError(
      f"no Inception weights at {path}: FID needs {FILE}; download it from the release "
      "'fid_weights' of github.com/mseitzer/pytorch-fid and name its path."
    )
  module = InceptionV3(protocol)
  like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))
  return FeatureNetwork(
    name="Inception-v3 (2015-12-05, 2,048 features)",
    distance="FID",
    protocol=f"8-bit, bilinear to {SIZE_PX} px as in {protocol}",
    module=module,
    variables=jax.tree.map(jnp.asarray, WEIGHTS.to_ours(read_state(path), like)),
  )
