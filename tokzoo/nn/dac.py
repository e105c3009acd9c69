"""The convolutional encoder and decoder of the Descript Audio Codec and its descendants.

Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN" (arXiv 2306.06546); with
the switches of `DACNet` also those of SNAC and X-Codec. Sequences are float[B, T, C].

Convolutions are padded with zeros on both sides. A transposed one of an odd stride returns a
sample too few unless `output_padding` makes up for it, which DAC itself does not do.

Layers bear the names that transformers gives them (`block.{i}.res_unit{n}.conv1`); the
authors' nn.Sequential positions are translated to these first (`SequentialNames`).

Differences from the published training code: weights are those that weight normalisation
gives, which is folded at conversion and not a way of training here; initial weights are
uniform as torch's, not truncated normals.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from tokzoo.nn.conv1d import CONV1D, Conv1d, ConvTranspose1d, conv1d_rules
from tokzoo.nn.local_attention import WindowAttention
from tokzoo.nn.snake import Snake, snake_rules
from tokzoo.weights import LINEAR, Rule, norm_rules


@dataclasses.dataclass(frozen=True)
class DACNet:
  """Sizes and switches; the defaults are DAC's at 24 kHz."""

  encoder_dim: int = 64
  """Features at the audio's rate; doubled with every stride."""
  rates: tuple[int, ...] = (2, 4, 5, 8)
  """Strides of the encoder."""
  latent_dim: int | None = None
  """D of the latents; None: what the doubling arrives at."""
  decoder_dim: int = 1536
  """Features of the decoder at the latents' rate; halved with every stride."""
  decoder_rates: tuple[int, ...] | None = None
  """Strides of the decoder; None: the encoder's in reverse."""
  has_tanh: bool = True
  """Bounds the audio to (-1, 1)."""
  output_padding: bool = False
  """Odd strides give as many samples as even ones."""
  is_snac: bool = False
  """The encoder ends in a convolution of 7 taps instead of Snake and one of 3."""
  is_depthwise: bool = False
  """The wide convolutions of residual units treat each feature by itself (SNAC)."""
  has_noise: bool = False
  """Decoder blocks add noise in proportion to what comes in (SNAC)."""
  attention_window: int | None = None
  """Attention in windows of so many places at the latents' rate (SNAC); None: none."""

  @property
  def hop(self) -> int:
    """Samples a frame of latents."""
    return math.prod(self.rates)

  @property
  def dim(self) -> int:
    """D of the latents."""
    return self.latent_dim or self.encoder_dim * 2 ** len(self.rates)

  @property
  def up_rates(self) -> tuple[int, ...]:
    """Strides of the decoder."""
    return self.decoder_rates or self.rates[::-1]


class ResidualUnit(nn.Module):
  """x + convolution of 1 tap (Snake (convolution of 7 taps (Snake x)))."""

  dilation: int
  is_depthwise: bool

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    features = x.shape[-1]
    wide = Conv1d(
      features,
      7,
      dilation=self.dilation,
      padding=3 * self.dilation,
      groups=features if self.is_depthwise else 1,
      name="conv1",
    )
    y = wide(Snake(name="snake1")(x))
    y = Conv1d(features, 1, name="conv2")(Snake(name="snake2")(y))
    return checkpoint_name(x + y, "block")


class EncoderBlock(nn.Module):
  """Three residual units and a stride."""

  features: int
  stride: int
  is_depthwise: bool

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B t E"]:
    for n, dilation in enumerate((1, 3, 9), start=1):
      x = ResidualUnit(dilation, self.is_depthwise, name=f"res_unit{n}")(x)
    x = Snake(name="snake1")(x)
    s = self.stride
    return Conv1d(self.features, 2 * s, s, padding=math.ceil(s / 2), name="conv1")(x)


class Noise(nn.Module):
  """x + (one normal number a sample) * (a linear map of x)."""

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], rng: PRNGKeyArray | None
  ) -> Float[Array, "B T D"]:
    drive = Conv1d(x.shape[-1], 1, use_bias=False, name="linear")(x)
    if rng is None:
      return x
    return x + jax.random.normal(rng, (*x.shape[:2], 1), x.dtype) * drive


class DecoderBlock(nn.Module):
  """A stride up and three residual units."""

  net: DACNet
  features: int
  stride: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "B t E"], rng: PRNGKeyArray | None
  ) -> Float[Array, "B T D"]:
    c, s = self.net, self.stride
    x = ConvTranspose1d(
      self.features,
      2 * s,
      s,
      padding=math.ceil(s / 2),
      output_padding=s % 2 if c.output_padding else 0,
      name="conv_t1",
    )(Snake(name="snake1")(x))
    if c.has_noise:
      x = Noise(name="noise")(x, rng)
    for n, dilation in enumerate((1, 3, 9), start=1):
      x = ResidualUnit(dilation, c.is_depthwise, name=f"res_unit{n}")(x)
    return x


class Encoder(nn.Module):
  """Audio [B, T, 1], T a multiple of the hop, to latents."""

  net: DACNet

  @nn.compact
  def __call__(self, x: Float[Array, "B T 1"]) -> Float[Array, "B L D"]:
    c, features = self.net, self.net.encoder_dim
    x = Conv1d(features, 7, padding=3, name="conv1")(x)
    for i, rate in enumerate(c.rates):
      features *= 2
      x = EncoderBlock(features, rate, c.is_depthwise, name=f"block_{i}")(x)
    if c.attention_window:
      x = WindowAttention(c.attention_window, name="attention")(x)
    if c.is_snac:
      groups = c.dim if c.is_depthwise else 1
      return Conv1d(c.dim, 7, padding=3, groups=groups, name="conv2")(x)
    return Conv1d(c.dim, 3, padding=1, name="conv2")(Snake(name="snake1")(x))


class Decoder(nn.Module):
  """Latents to audio."""

  net: DACNet

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], rng: PRNGKeyArray | None = None
  ) -> Float[Array, "B T 1"]:
    c, features = self.net, self.net.decoder_dim
    if c.is_depthwise:
      x = Conv1d(c.dim, 7, padding=3, groups=c.dim, name="conv_depth")(x)
      x = Conv1d(features, 1, name="conv1")(x)
    else:
      x = Conv1d(features, 7, padding=3, name="conv1")(x)
    if c.attention_window:
      x = WindowAttention(c.attention_window, name="attention")(x)
    for i, rate in enumerate(c.up_rates):
      features //= 2
      own = None if rng is None else jax.random.fold_in(rng, i)
      x = DecoderBlock(c, features, rate, name=f"block_{i}")(x, own)
    x = Conv1d(1, 7, padding=3, name="conv2")(Snake(name="snake1")(x))
    return jnp.tanh(x) if c.has_tanh else x


def dac_rules(encoder: str, decoder: str, path: str) -> tuple[Rule, ...]:
  """The rules of encoder and decoder, in transformers' names.

  Args:
    encoder, decoder: the authors' prefixes.
    path: ours of what holds both, e.g. "params".
  """
  rules: list[Rule] = []
  for key, ours in ((encoder, f"{path}/encoder"), (decoder, f"{path}/decoder")):
    unit, own = f"{key}.block.{{i}}.res_unit{{n}}", f"{ours}/block_{{i}}/res_unit{{n}}"
    rules += conv1d_rules(f"{key}.conv_depth", f"{ours}/conv_depth")
    for n in (1, 2):
      rules += conv1d_rules(f"{key}.conv{n}", f"{ours}/conv{n}")
      rules += conv1d_rules(f"{unit}.conv{n}", f"{own}/conv{n}")
      rules += snake_rules(f"{unit}.snake{n}", f"{own}/snake{n}")
    for name in ("conv1", "conv_t1"):
      rules += conv1d_rules(f"{key}.block.{{i}}.{name}", f"{ours}/block_{{i}}/{name}")
    rules += snake_rules(f"{key}.block.{{i}}.snake1", f"{ours}/block_{{i}}/snake1")
    rules += snake_rules(f"{key}.snake1", f"{ours}/snake1")
    noise, own = f"{key}.block.{{i}}.noise.linear", f"{ours}/block_{{i}}/noise/linear"
    rules.append(Rule(f"{noise}.weight", f"{own}/kernel", CONV1D))
    rules += norm_rules(f"{key}.attention.norm", f"{ours}/attention/norm")
    for name in ("to_qkv", "to_out"):
      linear = f"{ours}/attention/{name}/kernel"
      rules.append(Rule(f"{key}.attention.{name}.weight", linear, LINEAR))
  return tuple(rules)


@dataclasses.dataclass(frozen=True)
class SequentialNames:
  """A step of a `Table`: the authors' positions in nn.Sequential to transformers' names.

  Which position is what follows from the keys themselves. States in transformers' names pass
  unchanged.

  is_written:  translates back on the way out; else transformers' names are written
  """

  is_written: bool = False

  def to_ours(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state in transformers' names."""
    if not any(key.startswith("decoder.model.") for key in state):
      return dict(state)
    names = [pair for side in _STEMS for pair in _pairs(side, state, _STEMS[side])]
    return _renamed(state, names)

  def to_authors(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state in the authors' names."""
    if not self.is_written:
      return dict(state)
    names = [(b, a) for side in _STEMS for a, b in _pairs(side, state, side)]
    return _renamed(state, names)


_STEMS = {"encoder": "encoder.block", "decoder": "decoder.model"}


def _renamed(state: Mapping[str, np.ndarray], names: list[tuple[str, str]]):
  """Each key with the first prefix that fits replaced."""
  renamed = {}
  for key, array in state.items():
    old, new = next((p for p in names if key.startswith(p[0])), ("", ""))
    renamed[new + key.removeprefix(old)] = array
  return renamed


def _pairs(
  side: str, state: Mapping[str, np.ndarray], stem: str
) -> list[tuple[str, str]]:
  """(the authors' prefix, transformers' prefix) of every layer of an encoder or decoder.

  Args:
    side: "encoder" or "decoder".
    state: of keys in either's names, which tell what there is.
    stem: what the keys of this side begin with in these names.
  """
  keys = [key.removeprefix(f"{stem}.") for key in state if key.startswith(f"{stem}.")]
  is_ours = stem == side
  block = r"block\.(\d+)\." if is_ours else r"(\d+)\.block\."
  blocks = {found[1] for key in keys if (found := re.match(block, key))}
  attention = ["attention"] if any("to_qkv" in key for key in keys) else []
  named = [f"block.{i}" for i in range(len(blocks))]
  if side == "encoder":
    end = "snake1.alpha" if is_ours else f"{len(blocks) + 1}.alpha"
    layers = ["conv1", *named, *attention]
    inner = ["res_unit1", "res_unit2", "res_unit3", "snake1", "conv1"]
  else:
    end = "snake1.alpha" if is_ours else ".alpha"
    depth = "conv_depth.bias" if is_ours else "1.bias"
    layers = [*(["conv_depth"] if depth in keys else []), "conv1", *attention, *named]
    noise = ["noise"] if any(".linear." in key for key in keys) else []
    inner = ["snake1", "conv_t1", *noise, "res_unit1", "res_unit2", "res_unit3"]
  has_snake = any(key.endswith(end) and key.count(".") == 1 for key in keys)
  layers += ["snake1", "conv2"] if has_snake else ["conv2"]
  pairs = []
  for place, layer in enumerate(layers):
    theirs, ours = f"{_STEMS[side]}.{place}.", f"{side}.{layer}."
    if not layer.startswith("block"):
      pairs.append((theirs, ours))
      continue
    for i, part in enumerate(inner):
      if not part.startswith("res_unit"):
        pairs.append((f"{theirs}block.{i}.", f"{ours}{part}."))
        continue
      for j, leaf in enumerate(("snake1", "conv1", "snake2", "conv2")):
        pairs.append((f"{theirs}block.{i}.block.{j}.", f"{ours}{part}.{leaf}."))
  return pairs
