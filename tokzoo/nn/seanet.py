"""SEANet, the convolutional encoder and decoder of EnCodec and its descendants.

Tagliasacchi et al., "SEANet" (arXiv 2009.02095), as in "High Fidelity Neural Audio
Compression" (arXiv 2210.13438), SpeechTokenizer, DM-Codec, Mimi and WavTokenizer's encoder,
whose differences are the switches of `SEANet`. Sequences are float[B, T, C].

Convolution of kernel k, stride s and dilation d, with e = (k - 1) d + 1 and P = e - s zeros or
reflected samples: causal ones get all P on the left, others P - P // 2 there and P // 2 on
the right; both as many more on the right as the last frame wants, so that T samples give
ceil(T / s) frames. A transposed convolution gives s T samples: its P = k - s too many are cut
from the end (causal), or from both sides.

Layers bear the number that they have in the published nn.Sequential (activations count), so
that one rule maps a kind of layer whatever the depth.

Streaming (`stream`): a causal layer keeps its last P inputs, or its last ceil(k / s) - 1 when
transposed. Reflection at the very start looks P samples ahead, so the first piece of a stream
must hold more than P at each layer.

Differences from the published training code: weights are those that weight normalisation
gives, which is folded at conversion and not a way of training here; biases start at zero.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from tokzoo.errors import TokzooError
from tokzoo.nn.conv1d import (
  CONV1D,
  PadMode,
  conv1d,
  conv_transpose1d,
  conv_transpose1d_valid,
  pad1d,
  torch_init,
)
from tokzoo.nn.group_norm import GroupNorm
from tokzoo.nn.lstm import LSTM
from tokzoo.nn.snake import Snake, snake_rules
from tokzoo.nn.streaming import Stream
from tokzoo.weights import Rule, norm_rules


@dataclasses.dataclass(frozen=True)
class SEANet:
  """Sizes and switches; the defaults are EnCodec's at 24 kHz."""

  channels: int = 1
  """C of the audio."""
  dim: int = 128
  """D of the latents."""
  filters: int = 32
  """Features at the audio's rate; doubled with every stride."""
  ratios: tuple[int, ...] = (8, 5, 4, 2)
  """Strides of the decoder, first to last; the encoder's are the reverse."""
  residual_layers: int = 1
  """Residual blocks a stride."""
  kernel: int = 7
  """Taps of the first convolution on either side."""
  last_kernel: int = 7
  """Taps of the last one."""
  residual_kernel: int = 3
  """Taps inside a residual block."""
  dilation_base: int = 2
  """Dilation of the j-th residual block: its j-th power."""
  compress: int = 2
  """Features over those inside a residual block."""
  is_causal: bool = True
  """No look ahead, except for reflection at the very start."""
  pad_mode: PadMode = "reflect"
  """What lies beyond the ends."""
  trim_right_ratio: float = 1.0
  """Of the surplus of a causal transposed convolution, the share cut from the end."""
  norm: Literal["none", "time_group"] = "none"
  """GroupNorm of one group over time and features after each convolution, or nothing."""
  lstm_layers: int = 2
  """At the latents' rate; 0: none."""
  is_bidirectional: bool = False
  """The encoder's LSTM runs both ways; its input, added, is repeated."""
  true_skip: bool = False
  """A residual block adds its input itself, not a 1x1 convolution of it."""
  activation: Literal["elu", "snake"] = "elu"
  """Between convolutions."""

  @property
  def hop(self) -> int:
    """Samples a frame of latents."""
    return math.prod(self.ratios)


class Conv(nn.Module):
  """A convolution with SEANet's padding.

  net:       the switches
  features:  D
  kernel, stride, dilation: in samples
  pad_mode:  in place of the net's
  """

  net: SEANet
  features: int
  kernel: int
  stride: int = 1
  dilation: int = 1
  use_bias: bool = True
  pad_mode: PadMode | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T C"], stream: Stream | None = None
  ) -> Float[Array, "B t D"]:
    shape = (self.kernel, x.shape[-1], self.features)
    kernel = self.param("kernel", torch_init, shape)
    bias = None
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=None)
    y = conv1d(self._padded(x, stream), kernel, self.stride, self.dilation)
    y = y if bias is None else y + bias[None, None]
    return _normed(self.net, y)

  def _padded(self, x: Array, stream: Stream | None) -> Array:
    extent = (self.kernel - 1) * self.dilation + 1
    surplus = extent - self.stride
    mode = self.pad_mode or self.net.pad_mode
    if stream is None:
      extra = -x.shape[1] % self.stride
      right = 0 if self.net.is_causal else surplus // 2
      return pad1d(x, surplus - right, right + extra, mode)
    if x.shape[1] % self.stride or not self.net.is_causal:
      raise ValueError("a stream comes in whole hops, through causal layers.")
    if surplus == 0:
      return x
    past = stream.take(self)
    if past is None:
      x = pad1d(x, surplus, 0, mode)
    else:
      x = jnp.concatenate([past.astype(x.dtype), x], axis=1)
    stream.leave(self, x[:, -surplus:])
    return x


class ConvTranspose(nn.Module):
  """A transposed convolution with SEANet's cut.

  net:            the switches
  features:       D
  kernel, stride: k and s
  is_depthwise:   each feature by itself
  """

  net: SEANet
  features: int
  kernel: int
  stride: int
  is_depthwise: bool = False
  use_bias: bool = True

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T C"], stream: Stream | None = None
  ) -> Float[Array, "B t D"]:
    outputs = 1 if self.is_depthwise else self.features
    kernel = self.param("kernel", torch_init, (self.kernel, outputs, x.shape[-1]))
    bias = None
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=None)
    surplus = self.kernel - self.stride
    if stream is not None:
      return self._streamed(x, kernel, bias, stream)
    y = conv_transpose1d(x, kernel, self.stride)
    y = y if bias is None else y + bias[None, None]
    # The norm sees the surplus as well: it is cut afterwards.
    y = _normed(self.net, y)
    ratio = self.net.trim_right_ratio
    right = math.ceil(surplus * ratio) if self.net.is_causal else surplus // 2
    return y[:, surplus - right : y.shape[1] - right]

  def _streamed(self, x: Array, kernel: Array, bias: Array | None, stream: Stream):
    if self.net.trim_right_ratio != 1 or self.net.norm != "none":
      raise ValueError("a stream needs a causal cut and no norm over time.")
    kept = math.ceil(self.kernel / self.stride) - 1
    if kept:
      past = stream.take(self)
      if past is None:
        x = jnp.pad(x, ((0, 0), (kept, 0), (0, 0)))
      else:
        x = jnp.concatenate([past.astype(x.dtype), x], axis=1)
      stream.leave(self, x[:, -kept:])
    y = conv_transpose1d_valid(x, kernel, self.stride)
    return y if bias is None else y + bias[None, None]


def _normed(net: SEANet, y: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  if net.norm == "none":
    return y
  return GroupNorm(1, epsilon=1e-5, name="norm")(y)


class ResBlock(nn.Module):
  """Two convolutions around a bottleneck, and a shortcut."""

  net: SEANet
  dilation: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], stream: Stream | None = None
  ) -> Float[Array, "B T D"]:
    c, features = self.net, x.shape[-1]
    inner = features // c.compress
    y = _activate(c, x, "block_0")
    y = Conv(c, inner, c.residual_kernel, dilation=self.dilation, name="block_1")(
      y, stream
    )
    y = _activate(c, y, "block_2")
    y = Conv(c, features, 1, name="block_3")(y, stream)
    if not c.true_skip:
      x = Conv(c, features, 1, name="shortcut")(x, stream)
    return checkpoint_name(x + y, "block")


def _activate(net: SEANet, x: Array, name: str) -> Array:
  return nn.elu(x) if net.activation == "elu" else Snake(name=name)(x)


class SkipLSTM(nn.Module):
  """LSTM(x) + x; in two directions x is repeated to meet both."""

  layers: int
  is_bidirectional: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], stream: Stream | None = None
  ) -> Float[Array, "B T E"]:
    before = None if stream is None else stream.take(self)
    y, state = LSTM(self.layers, self.is_bidirectional, name="lstm")(x, before)
    if stream is not None:
      stream.leave(self, state)
    return y + (jnp.concatenate([x, x], axis=-1) if self.is_bidirectional else x)


class Encoder(nn.Module):
  """Audio to latents, ceil(T / hop) frames."""

  net: SEANet

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T C"], stream: Stream | None = None
  ) -> Float[Array, "B L D"]:
    c = self.net
    place = 0
    features = c.filters
    x = Conv(c, features, c.kernel, name="layer_0")(x, stream)
    for ratio in reversed(c.ratios):
      for j in range(c.residual_layers):
        place += 1
        x = ResBlock(c, c.dilation_base**j, name=f"layer_{place}")(x, stream)
      features *= 2
      x = _activate(c, x, f"layer_{place + 1}")
      place += 2
      x = Conv(c, features, 2 * ratio, ratio, name=f"layer_{place}")(x, stream)
    if c.lstm_layers:
      place += 1
      lstm = SkipLSTM(c.lstm_layers, c.is_bidirectional, name=f"layer_{place}")
      x = lstm(x, stream)
    x = _activate(c, x, f"layer_{place + 1}")
    return Conv(c, c.dim, c.last_kernel, name=f"layer_{place + 2}")(x, stream)


class Decoder(nn.Module):
  """Latents to audio, hop samples a frame, not bounded."""

  net: SEANet

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], stream: Stream | None = None
  ) -> Float[Array, "B T C"]:
    c = self.net
    place = 0
    features = c.filters * 2 ** len(c.ratios)
    x = Conv(c, features, c.kernel, name="layer_0")(x, stream)
    if c.lstm_layers:
      place += 1
      x = SkipLSTM(c.lstm_layers, name=f"layer_{place}")(x, stream)
    for ratio in c.ratios:
      features //= 2
      x = _activate(c, x, f"layer_{place + 1}")
      place += 2
      up = ConvTranspose(c, features, 2 * ratio, ratio, name=f"layer_{place}")
      x = up(x, stream)
      for j in range(c.residual_layers):
        place += 1
        x = ResBlock(c, c.dilation_base**j, name=f"layer_{place}")(x, stream)
    x = _activate(c, x, f"layer_{place + 1}")
    return Conv(c, c.channels, c.last_kernel, name=f"layer_{place + 2}")(x, stream)


def first_hops(net: SEANet) -> int:
  """Hops that the first piece of a stream must hold, for the reflection at the start."""
  if not net.is_causal or net.norm != "none":
    raise TokzooError(
      "this model looks ahead or normalises over time, so it cannot stream: choose a causal "
      "one (encodec-24khz, mimi)."
    )
  if net.pad_mode != "reflect":
    return 1
  # More than P samples at each layer: at the latents' rate, and before each stride.
  deepest = (net.residual_kernel - 1) * net.dilation_base ** (net.residual_layers - 1)
  need, rate = max(net.kernel, net.last_kernel), 1
  for ratio in reversed(net.ratios):
    need = max(need, math.ceil((max(deepest, ratio) + 1) * rate / net.hop))
    rate *= ratio
  return need


def seanet_rules(
  key: str, path: str, form: Literal["hf", "original"]
) -> tuple[Rule, ...]:
  """The rules of an encoder or decoder.

  Args:
    key: the authors' prefix, "encoder" or "decoder" and what stands before.
    path: ours, e.g. "params/encoder".
    form: of the names: transformers' "encoder.layers.{i}.conv", or EnCodec's own
      "encoder.model.{i}.conv.conv". Weight norm is folded before (`WeightNorm`).
  """
  layer = f"{path}/layer_{{i}}"
  if form == "hf":
    stem = f"{key}.layers.{{i}}"
    names = [
      ("conv", ""),
      ("block.{j}.conv", "/block_{j}"),
      ("shortcut.conv", "/shortcut"),
    ]
    norms = [
      ("norm", ""),
      ("block.{j}.norm", "/block_{j}"),
      ("shortcut.norm", "/shortcut"),
    ]
  else:
    stem = f"{key}.model.{{i}}"
    names = [
      ("conv.conv", ""),
      ("convtr.convtr", ""),
      ("block.{j}.conv.conv", "/block_{j}"),
      ("shortcut.conv.conv", "/shortcut"),
    ]
    norms = [(name.rpartition(".")[0] + ".norm", ours) for name, ours in names]
  rules: list[Rule] = []
  for name, ours in names:
    rules.append(Rule(f"{stem}.{name}.weight", f"{layer}{ours}/kernel", CONV1D))
    rules.append(Rule(f"{stem}.{name}.bias", f"{layer}{ours}/bias"))
  for name, ours in norms:
    rules += norm_rules(f"{stem}.{name}", f"{layer}{ours}/norm")
  return (
    *rules,
    *snake_rules(stem, layer),
    *snake_rules(f"{stem}.block.{{j}}", f"{layer}/block_{{j}}"),
    Rule(f"{stem}.lstm.{{x}}", f"{layer}/lstm/{{x}}"),
  )


class TransposedNames:
  """A step of a table that writes EnCodec's own names: which convolutions are transposed.

  Both kinds have one name in ours. Of the decoder's outermost convolutions all but the first
  and the last are transposed.
  """

  def to_ours(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same: either name is read."""
    return dict(state)

  def to_authors(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state with `convtr.convtr` where it stands in published files."""
    outer = r"decoder\.model\.(\d+)\.conv\.(conv|norm)\."
    places = {int(m[1]) for key in state if (m := re.match(outer, key))}
    told = {}
    for key, array in state.items():
      found = re.match(outer, key)
      if found and min(places) < int(found[1]) < max(places):
        name = {"conv": "convtr.convtr", "norm": "convtr.norm"}[found[2]]
        key = f"decoder.model.{found[1]}.{name}." + key[found.end() :]
      told[key] = array
    return told
