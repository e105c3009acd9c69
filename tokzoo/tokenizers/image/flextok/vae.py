"""FlexTok's stage 0: a KL autoencoder, SDXL's architecture with 4, 8 or 16 latent channels.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv
2112.10752), in the sizes and the layout of diffusers' `AutoencoderKL`, which the checkpoints
EPFL-VILAB/flextok_vae_c{4,8,16} are of. The network is `tokzoo.nn.vqgan` with attention in
the middle alone, and a 1x1 convolution on either side of the latents.

  image   float32[B, S, S, C] in [-1, 1]
  tokens  values [B, h * w, D], row by row, h = S / 8: latents times `scale`

Difference from the source: `encode` gives the posterior's means unless it gets a key; the
authors' wrapper draws.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from tokzoo.contract import Output
from tokzoo.errors import TokzooError
from tokzoo.nn.layers import rows_dot_general
from tokzoo.nn.vqgan import (
  Decoder,
  Encoder,
  VQGANShape,
  ends_rules,
  residual_rules,
)
from tokzoo.tokens import Tokens
from tokzoo.weights import (
  POINTWISE,
  Rule,
  Table,
  conv2d_rules,
  linear_rules,
  norm_rules,
)


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """Sizes of the autoencoder; the defaults are those of the published 16-channel one."""

  image_size: int = 256
  """Side in pixels of the images."""
  channels: int = 3
  """Colour channels."""
  latent_channels: int = 16
  """D, features of a latent."""
  width: int = 128
  """Features of the finest level."""
  multipliers: tuple[int, ...] = (1, 2, 4, 4)
  """Features of each level over `width`, from fine to coarse."""
  blocks: int = 2
  """Residual blocks of an encoder level; a decoder level has one more."""
  groups: int = 32
  """Groups of every GroupNorm."""
  scale: float = 0.13025
  """Latents are multiplied by it: SDXL's, and that of the authors' own tests with 16 channels
  (of their wrapper, flextok/vae_wrapper.py @ 87d00cc, which itself sets none). A file of FlexTok
  says its own, which is taken; one of the autoencoder alone has it in its config.json
  (`scaling_factor`), which is not read."""

  @property
  def factor(self) -> int:
    """Pixels to a latent along each side."""
    return 2 ** (len(self.multipliers) - 1)

  @property
  def side(self) -> int:
    """Latents along each side."""
    return self.image_size // self.factor

  def shape(self, latent_dim: int) -> VQGANShape:
    """Of the shared encoder and decoder."""
    return VQGANShape(
      channels=self.channels,
      width=self.width,
      multipliers=self.multipliers,
      encoder_blocks=self.blocks,
      decoder_blocks=self.blocks + 1,
      attention=(),
      latent_dim=latent_dim,
      groups=self.groups,
      deepest_first=True,
    )

  def build(self) -> "KLVAE":
    return KLVAE(self)


class KLVAE(nn.Module):
  """The autoencoder (contract: `tokzoo.contract.Tokenizer`, continuous tokens)."""

  config: VAEConfig

  def setup(self):
    c = self.config
    self.encoder = Encoder(c.shape(2 * c.latent_channels))
    self.decoder = Decoder(c.shape(c.latent_channels))
    # 1x1 convolutions.
    self.quant_conv = _pointwise(2 * c.latent_channels)
    self.post_quant_conv = _pointwise(c.latent_channels)

  def encode(
    self,
    x: Float[Array, "B H W C"],
    *,
    num_tokens: int | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """Images in [-1, 1] to latents.

    Args:
      x: images of the model's size.
      num_tokens: None, or as many as there are latents.
      rng: of a draw from the posterior; None: its means.

    Raises:
      TokzooError: another size or number of channels, or a number of tokens that the model
        does not make.
    """
    c = self.config
    check_square(x.shape, c.image_size, c.channels)
    if num_tokens not in (None, c.side**2):
      raise TokzooError(
        f"{num_tokens} tokens were asked for, but this autoencoder always makes "
        f"{c.side**2}: leave num_tokens out."
      )
    return self._tokens(self.latents(x, rng))

  def decode(
    self,
    tokens: Tokens,
    *,
    size: tuple[int, int] | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Float[Array, "B H W C"]:
    """Latents to images in about [-1, 1] (not clipped).

    Args:
      tokens: of this layout.
      size: height and width in pixels; there is only one that the model makes.
      rng: not used, decoding is deterministic.

    Raises:
      TokzooError: tokens of another layout, or another size.
    """
    c = self.config
    side = c.image_size
    check_square((tokens.batch, *(size or (side, side)), c.channels), side, c.channels)
    found, wanted = tokens.array.shape[1:], (c.side**2, c.latent_channels)
    if tokens.values is None or found != wanted:
      raise TokzooError(
        f"this autoencoder reads continuous tokens of shape [B, {wanted[0]}, {wanted[1]}]; "
        f"these are {tokens.kind} {list(tokens.array.shape)}: decode with the model that "
        "made them."
      )
    if not isinstance(tokens.values, Tracer):
      tokens.check()
    grid = tokens.values.reshape(-1, c.side, c.side, c.latent_channels)
    return self.to_image(grid)

  def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Output:
    """Reconstructs images; in training latents are drawn from the rng stream "bits".

    Losses: `kl`, the divergence from N(0, 1), summed over an image and averaged over images.
    """
    check_square(x.shape, self.config.image_size, self.config.channels)
    mean, logvar = self.moments(x)
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3))
    z = _draw(mean, logvar, self.make_rng("bits") if train else None)
    z = z * self.config.scale
    image = self.to_image(z.astype(x.dtype)).astype(jnp.float32)
    return Output(image, self._tokens(z), {"kl": kl.mean()})

  def moments(
    self, x: Float[Array, "B H W C"]
  ) -> tuple[Float[Array, "B h w D"], Float[Array, "B h w D"]]:
    """Means and log variances of the posterior, float32, not scaled."""
    moments = self.quant_conv(self.encoder(x)).astype(jnp.float32)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)

  def latents(
    self, x: Float[Array, "B H W C"], rng: PRNGKeyArray | None = None
  ) -> Float[Array, "B h w D"]:
    """Scaled latents of images, float32: a draw with a key, the means without."""
    return _draw(*self.moments(x), rng) * self.config.scale

  def to_image(self, latents: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
    """Images of scaled latents."""
    return self.decoder(self.post_quant_conv(latents / self.config.scale))

  def _tokens(self, latents: Float[Array, "B h w D"]) -> Tokens:
    c = self.config
    rows = latents.reshape(len(latents), -1, c.latent_channels)
    return Tokens.from_values(rows, grid=(c.side, c.side))


def _pointwise(features: int) -> nn.Dense:
  return nn.Dense(features, dot_general=rows_dot_general)


def _draw(
  mean: Float[Array, "B h w D"],
  logvar: Float[Array, "B h w D"],
  rng: PRNGKeyArray | None,
) -> Float[Array, "B h w D"]:
  if rng is None:
    return mean
  return mean + jnp.exp(0.5 * logvar) * jax.random.normal(rng, mean.shape)


def check_square(shape: tuple[int, ...], side: int, channels: int) -> None:
  """Raises TokzooError unless images of `shape` are square, of that side and colour."""
  if len(shape) != 4 or shape[1:] != (side, side, channels):
    raise TokzooError(
      f"images of shape {list(shape)} came, but this tokenizer takes [B, {side}, {side}, "
      f"{channels}] only: resize or crop them to {side} x {side} pixels."
    )


# ---------------------------------------------------------------- weights

_LINEAR_ATTENTION = (
  ("to_q", "q"),
  ("to_k", "k"),
  ("to_v", "v"),
  ("to_out.0", "proj_out"),
)


def vae_rules(key: str = "", path: str = "params") -> tuple[Rule, ...]:
  """The layout of diffusers' `AutoencoderKL`.

  Args:
    key: what the authors' keys begin with, up to and with its last dot: "vae.vae.".
    path: where the module lies: "params/vae".
  """
  rules: list[Rule] = []
  for side, level, resize in (
    ("encoder", "down", "downsample"),
    ("decoder", "up", "upsample"),
  ):
    theirs, ours = f"{key}{side}", f"{path}/{side}"
    their_level, our_level = f"{theirs}.{level}_blocks.{{l}}", f"{ours}/{level}_{{l}}"
    their_mid, our_mid = f"{theirs}.mid_block", f"{ours}/mid"
    rules += [
      *_residual(f"{their_level}.resnets.{{j}}", f"{our_level}/block_{{j}}"),
      *conv2d_rules(f"{their_level}.{resize}rs.0.conv", f"{our_level}/{resize}/conv"),
      *_residual(f"{their_mid}.resnets.0", f"{our_mid}/block_1"),
      *_residual(f"{their_mid}.resnets.1", f"{our_mid}/block_2"),
      *norm_rules(f"{their_mid}.attentions.0.group_norm", f"{our_mid}/attn_1/norm"),
      *(
        rule
        for name, our_name in _LINEAR_ATTENTION
        for rule in linear_rules(
          f"{their_mid}.attentions.0.{name}", f"{our_mid}/attn_1/{our_name}"
        )
      ),
      *norm_rules(f"{theirs}.conv_norm_out", f"{ours}/norm_out"),
      *ends_rules(theirs, ours),
    ]
  for name in ("quant_conv", "post_quant_conv"):
    rules += [
      Rule(f"{key}{name}.weight", f"{path}/{name}/kernel", POINTWISE),
      Rule(f"{key}{name}.bias", f"{path}/{name}/bias"),
    ]
  return tuple(rules)


def _residual(key: str, path: str) -> tuple[Rule, ...]:
  """As taming's, but for the name of the shortcut."""
  shortcut = conv2d_rules(f"{key}.conv_shortcut", f"{path}/nin_shortcut")
  return *shortcut, *residual_rules(key, path)


VAE_PRESETS = {f"flextok-vae-c{n}": VAEConfig(latent_channels=n) for n in (4, 8, 16)}

VAE_WEIGHTS = Table(rules=vae_rules())
