"""The convolutional encoder and decoder of VQGAN, as in taming-transformers and its heirs.

Esser et al., "Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841);
the sizes and quirks are those of CompVis/taming-transformers (`diffusionmodules/model.py`),
LlamaGen, IBQ and MAGE's tokenizer, written from what they compute.

  image    float[B, H, W, C], any range; H and W multiples of 2^(levels - 1)
  latents  float[B, h, w, D]

  encoder  conv 3x3 · levels from fine to coarse: residual blocks, attention after each where
           the level has it, a strided conv (not after the last) · Res, Attn, Res · GroupNorm,
           swish, conv 3x3
  decoder  the mirror, with nearest upsampling and a conv between levels

The pieces are here for systems whose networks differ (Open-MAGVIT2, MaskGIT's VQGAN). The
sources' dropout, 0 in every published configuration, is left out.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from tokzoo.nn.conv2d import doubled_conv, same_conv
from tokzoo.nn.group_norm import GroupNorm
from tokzoo.nn.layers import attend, rows_dot_general
from tokzoo.weights import POINTWISE, Rule, conv2d_rules, norm_rules


@dataclasses.dataclass(frozen=True)
class VQGANShape:
  """Sizes of encoder and decoder."""

  channels: int = 3
  """Colour channels."""
  width: int = 128
  """Features of the finest level."""
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  """Features of each level over `width`, from fine to coarse."""
  encoder_blocks: int = 2
  """Residual blocks of each encoder level."""
  decoder_blocks: int = 3
  """Residual blocks of each decoder level: one more than the encoder's, as published."""
  attention: tuple[int, ...] = (4,)
  """Levels (0 the finest) with attention after each residual block."""
  latent_dim: int = 256
  """D, features of the latents."""
  groups: int = 32
  """Groups of every GroupNorm."""
  deepest_first: bool = False
  """Whether the decoder's levels are numbered from the coarsest on, as LlamaGen's keys are;
  taming-transformers numbers them from the finest."""

  @property
  def factor(self) -> int:
    """Pixels to a latent along each side."""
    return 2 ** (len(self.multipliers) - 1)


class ResBlock(nn.Module):
  """Norm, swish, conv, twice, and a shortcut.

  features:  of the output
  groups:    of the norms
  use_bias:  of the convolutions
  shortcut:  what the 1x1 convolution is of where the width changes. "output" drops the
             input, a quirk that the weights of MaskGIT's VQGAN were trained with.
  """

  features: int
  groups: int = 32
  use_bias: bool = True
  shortcut: Literal["input", "output"] = "input"

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
    h = x
    for i in (1, 2):
      h = nn.swish(GroupNorm(self.groups, name=f"norm{i}")(h))
      h = nn.Conv(
        self.features,
        (3, 3),
        use_bias=self.use_bias,
        conv_general_dilated=same_conv,
        name=f"conv{i}",
      )(h)
    if x.shape[-1] != self.features:
      by = nn.Conv(self.features, (1, 1), use_bias=self.use_bias, name="nin_shortcut")
      x = by(x if self.shortcut == "input" else h)
    return checkpoint_name(x + h, "block")


class AttentionBlock(nn.Module):
  """Norm, single-head attention of all places to all, projection, residual."""

  groups: int = 32

  @nn.compact
  def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
    def dense(name: str) -> nn.Dense:
      return nn.Dense(x.shape[-1], dot_general=rows_dot_general, name=name)

    h = GroupNorm(self.groups, name="norm")(x).reshape(x.shape[0], -1, x.shape[-1])
    q, k, v = (dense(name)(h)[:, :, None] for name in "qkv")
    return x + dense("proj_out")(attend(q, k, v)[:, :, 0]).reshape(x.shape)


class Downsample(nn.Module):
  """Halves the grid by a strided conv 3x3.

  padding:  "after": one row and column at the bottom and right, as in taming-transformers;
            "around": one on every side, as in Open-MAGVIT2
  """

  padding: Literal["after", "around"] = "after"

  @nn.compact
  def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H/2 W/2 D"]:
    pad = (0, 1) if self.padding == "after" else (1, 1)
    conv = nn.Conv(x.shape[-1], (3, 3), strides=2, padding=(pad, pad), name="conv")
    return conv(x)


class Upsample(nn.Module):
  """Doubles the grid: each place four times, then a conv 3x3."""

  @nn.compact
  def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B 2H 2W D"]:
    conv = nn.Conv(x.shape[-1], (3, 3), conv_general_dilated=doubled_conv, name="conv")
    return conv(x)


class Level(nn.Module):
  """Residual blocks at one resolution, attention after each, and the way to the next."""

  features: int
  blocks: int
  groups: int
  has_attention: bool
  resize: Literal["down", "up"] | None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    for j in range(self.blocks):
      x = ResBlock(self.features, self.groups, name=f"block_{j}")(x)
      if self.has_attention:
        x = AttentionBlock(self.groups, name=f"attn_{j}")(x)
    match self.resize:
      case "down":
        return Downsample(name="downsample")(x)
      case "up":
        return Upsample(name="upsample")(x)
    return x


class Middle(nn.Module):
  """Residual block, attention, residual block."""

  groups: int

  @nn.compact
  def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
    x = ResBlock(x.shape[-1], self.groups, name="block_1")(x)
    x = AttentionBlock(self.groups, name="attn_1")(x)
    return ResBlock(x.shape[-1], self.groups, name="block_2")(x)


class Encoder(nn.Module):
  """Image -> latents."""

  shape: VQGANShape

  @nn.compact
  def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    s = self.shape
    x = nn.Conv(s.width, (3, 3), name="conv_in")(image)
    for level, multiplier in enumerate(s.multipliers):
      x = Level(
        s.width * multiplier,
        s.encoder_blocks,
        s.groups,
        level in s.attention,
        "down" if level < len(s.multipliers) - 1 else None,
        name=f"down_{level}",
      )(x)
    x = Middle(s.groups, name="mid")(x)
    x = nn.swish(GroupNorm(s.groups, name="norm_out")(x))
    return nn.Conv(s.latent_dim, (3, 3), name="conv_out")(x)


class Decoder(nn.Module):
  """Latents -> image."""

  shape: VQGANShape

  @nn.compact
  def __call__(self, latents: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
    s = self.shape
    last = len(s.multipliers) - 1
    x = nn.Conv(s.width * s.multipliers[-1], (3, 3), name="conv_in")(latents)
    x = Middle(s.groups, name="mid")(x)
    for level in range(last, -1, -1):
      x = Level(
        s.width * s.multipliers[level],
        s.decoder_blocks,
        s.groups,
        level in s.attention,
        "up" if level else None,
        name=f"up_{last - level if s.deepest_first else level}",
      )(x)
    x = nn.swish(GroupNorm(s.groups, name="norm_out")(x))
    return nn.Conv(s.channels, (3, 3), name="conv_out")(x)


# ---------------------------------------------------------------- weights


def residual_rules(key: str, path: str) -> tuple[Rule, ...]:
  """A `ResBlock`, with or without biases."""
  return (
    *norm_rules(f"{key}.norm{{n}}", f"{path}/norm{{n}}"),
    *conv2d_rules(f"{key}.conv{{n}}", f"{path}/conv{{n}}"),
    *conv2d_rules(f"{key}.nin_shortcut", f"{path}/nin_shortcut"),
  )


def attention_rules(key: str, path: str) -> tuple[Rule, ...]:
  """An `AttentionBlock`, whose projections are 1x1 convolutions in torch."""
  projections = (
    rule
    for name in ("q", "k", "v", "proj_out")
    for rule in (
      Rule(f"{key}.{name}.weight", f"{path}/{name}/kernel", POINTWISE),
      Rule(f"{key}.{name}.bias", f"{path}/{name}/bias"),
    )
  )
  return *norm_rules(f"{key}.norm", f"{path}/norm"), *projections


def ends_rules(key: str, path: str) -> tuple[Rule, ...]:
  """The first convolution, the last norm and the last convolution of either side."""
  return (
    *conv2d_rules(f"{key}.conv_in", f"{path}/conv_in"),
    *norm_rules(f"{key}.norm_out", f"{path}/norm_out"),
    *conv2d_rules(f"{key}.conv_out", f"{path}/conv_out"),
  )


def taming_rules(key: str = "", path: str = "params") -> tuple[Rule, ...]:
  """`Encoder` and `Decoder` in the layout of taming-transformers.

  Args:
    key: what the authors' keys begin with, up to and with its last dot: "vqgan.".
    path: where the modules `encoder` and `decoder` lie: "params/vqgan".
  """
  rules: list[Rule] = []
  for side, level, resize in (
    ("encoder", "down", "downsample"),
    ("decoder", "up", "upsample"),
  ):
    theirs, ours = f"{key}{side}", f"{path}/{side}"
    their_level, our_level = f"{theirs}.{level}.{{l}}", f"{ours}/{level}_{{l}}"
    rules += [
      *residual_rules(f"{their_level}.block.{{j}}", f"{our_level}/block_{{j}}"),
      *attention_rules(f"{their_level}.attn.{{j}}", f"{our_level}/attn_{{j}}"),
      *conv2d_rules(f"{their_level}.{resize}.conv", f"{our_level}/{resize}/conv"),
      *residual_rules(f"{theirs}.mid.block_{{j}}", f"{ours}/mid/block_{{j}}"),
      *attention_rules(f"{theirs}.mid.attn_{{j}}", f"{ours}/mid/attn_{{j}}"),
      *ends_rules(theirs, ours),
    ]
  return tuple(rules)
