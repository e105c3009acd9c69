"""SEED-Voken's two image tokenizers: Open-MAGVIT2 (LFQ, 2^18 codes) and IBQ.

Luo et al., "Open-MAGVIT2: An Open-Source Project Toward Democratizing Auto-regressive Visual
Generation", arXiv 2409.04410; Shi et al., "Scalable Image Tokenization with Index
Backpropagation Quantization", arXiv 2412.02692. Written from what TencentARC/SEED-Voken @
b9a17ea computes (`src/Open_MAGVIT2/modules/{diffusionmodules/improved_model,
vqvae/lookup_free_quantize}.py`, `src/IBQ/models/ibqgan.py`); weights on the hub:
TencentARC/Open-MAGVIT2-Tokenizer-*, TencentARC/IBQ-Tokenizer-*, Apache-2.0.

  image   float32[B, H, W, 3] in [-1, 1], H and W multiples of 16 (8 for 128 pixels)
  tokens  ids [B, h w], rows first, with the grid (h, w)

LFQ: a network of convolutions without attention. Its decoder normalises every level by the
mean and the variance over space of the quantised latent (`AdaptiveGroupNorm`). An id is the
signs of the latent, channel 0 its lowest bit (`quantizers/lfq.py` begins with the highest).

IBQ: the network of taming-transformers (`nn/vqgan.py`), the id the largest dot product with
a code, and a gradient to every code (`quantizers/ibq.py`).

Training, as published: l1 + LPIPS + 0.1 * adversarial (non-saturating of the picture's mean
logit, hinge for the discriminator, LeCam 0.05), and for LFQ 0.1 * (sample - batch entropy) +
0.25 * commitment, for IBQ quantization + commitment + 0.25 * codebook + 0.05 * (sample -
batch entropy): `experiments/image/open_magvit2.py`.

Differences from the source: the entropies over 2^18 codes come from the bits, which are
independent given the latent, and not from a matrix [tokens, 2^18] (the same numbers). The video
tokenizer of the same name (Open-MAGVIT2-Tokenizer-262144-Video, causal 3D convolutions) is not
here.

The authors measured the averages of the tokenizers' files, and IBQ's generators read them, too;
Open-MAGVIT2's generators were trained on the tokens of the weights themselves (the catalog's
`averaged = false`).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.errors import TokzooError
from tokzoo.nn import vqgan
from tokzoo.nn.group_norm import GroupNorm
from tokzoo.nn.vqgan import (
  Downsample,
  ResBlock,
  VQGANShape,
  ends_rules,
  residual_rules,
  taming_rules,
)
from tokzoo.quantizers import IndexBackpropagation, LookupFree
from tokzoo.tokenizers.image.grids import check_num_tokens, check_pictures, grid_of
from tokzoo.tokens import Tokens
from tokzoo.weights import Rule, Table, conv2d_rules, linear_rules

# ---------------------------------------------------------------- LFQ


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the LFQ tokenizer; the defaults are those for 256 pixels."""

  image_size: int = 256
  """Side in pixels of the images that `decode` makes unless told otherwise."""
  channels: int = 3
  """Colour channels."""
  width: int = 128
  """Features of the finest level."""
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  """Features of each level over `width`, from fine to coarse."""
  blocks: int = 4
  """Residual blocks of each level and of the middle, on both sides."""
  bits: int = 18
  """Bits of a token, and features of the latent."""
  groups: int = 32
  """Groups of every GroupNorm."""
  entropy_temperature: float = 0.01
  """Of the entropies of the codes."""

  @property
  def factor(self) -> int:
    """Pixels to a token along each side."""
    return 2 ** (len(self.multipliers) - 1)

  @property
  def num_codes(self) -> int:
    """K, 2^bits."""
    return 2**self.bits

  def build(self) -> "OpenMagvit2":
    return OpenMagvit2(self)


class AdaptiveGroupNorm(nn.Module):
  """Group norm whose scale and bias are linear in moments of the quantised latent.

  A quirk of the published weights: the variance over space is the unbiased one.
  """

  groups: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "B H W C"], z: Float[Array, "B h w D"]
  ) -> Float[Array, "B H W C"]:
    norm = GroupNorm(self.groups, use_affine=False)
    places = z.astype(jnp.float32).reshape(z.shape[0], -1, z.shape[-1])
    spread = jnp.sqrt(jnp.var(places, axis=1, ddof=1) + 1e-6).astype(x.dtype)
    mean = jnp.mean(places, axis=1).astype(x.dtype)
    scale = nn.Dense(x.shape[-1], name="gamma")(spread)
    bias = nn.Dense(x.shape[-1], name="beta")(mean)
    return norm(x) * scale[:, None, None] + bias[:, None, None]


class Encoder(nn.Module):
  """Image -> one feature a bit."""

  config: Config

  @nn.compact
  def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    c = self.config
    x = nn.Conv(c.width, (3, 3), use_bias=False, name="conv_in")(image)
    for level, multiplier in enumerate(c.multipliers):
      for j in range(c.blocks):
        x = _block(c, multiplier, f"down_{level}_block_{j}")(x)
      if level < len(c.multipliers) - 1:
        x = Downsample("around", name=f"down_{level}_downsample")(x)
    for j in range(c.blocks):
      x = _block(c, c.multipliers[-1], f"mid_block_{j}")(x)
    x = nn.swish(GroupNorm(c.groups, name="norm_out")(x))
    return nn.Conv(c.bits, (1, 1), name="conv_out")(x)


class Decoder(nn.Module):
  """Signs -> image."""

  config: Config

  @nn.compact
  def __call__(self, z: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
    c = self.config
    x = nn.Conv(c.width * c.multipliers[-1], (3, 3), name="conv_in")(z)
    for j in range(c.blocks):
      x = _block(c, c.multipliers[-1], f"mid_block_{j}")(x)
    for level in range(len(c.multipliers) - 1, -1, -1):
      x = AdaptiveGroupNorm(c.groups, name=f"adaptive_{level}")(x, z)
      for j in range(c.blocks):
        x = _block(c, c.multipliers[level], f"up_{level}_block_{j}")(x)
      if level:
        x = nn.Conv(4 * x.shape[-1], (3, 3), name=f"up_{level}_upsample")(x)
        # Channels are (row, column, feature), unlike torch's pixel shuffle.
        x = rearrange(x, "b h w (i j c) -> b (h i) (w j) c", i=2, j=2)
    x = nn.swish(GroupNorm(c.groups, name="norm_out")(x))
    return nn.Conv(c.channels, (3, 3), name="conv_out")(x)


def _block(config: Config, multiplier: int, name: str) -> ResBlock:
  features = config.width * multiplier
  return ResBlock(features, config.groups, use_bias=False, name=name)


class OpenMagvit2(nn.Module):
  """The LFQ tokenizer (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    c = self.config
    self.encoder = Encoder(c)
    self.quantizer = LookupFree(
      c.bits,
      inverse_temperature=1 / c.entropy_temperature,
      entropy_group=None,
      # Published: added to the probability inside the logarithm of the mean distribution.
      # At 2^18 codes this is more than twice the probability of a code in full use.
      log_eps=1e-5,
    )
    self.decoder = Decoder(c)

  def encode(
    self,
    x: Float[Array, "B H W C"],
    *,
    num_tokens: int | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """Images in [-1, 1] to ids. Deterministic: `rng` is not used.

    Raises:
      TokzooError: a size or channel count that the model cannot take, or a number of tokens
        other than that of the size.
    """
    _check_lfq(self.config, x.shape)
    check_num_tokens(num_tokens, x.shape, self.config.factor)
    latents = self.encoder(x)
    return self._to_tokens(self.quantize(latents).ids, latents.shape)

  def decode(
    self,
    tokens: Tokens,
    *,
    size: tuple[int, int] | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Float[Array, "B H W C"]:
    """Tokens to images in about [-1, 1] (not clipped).

    Args:
      tokens: ids of this tokenizer.
      size: height and width in pixels, for tokens without a grid; the config's square by
        default.
      rng: not used, decoding is deterministic.

    Raises:
      TokzooError: tokens of another tokenizer, ids out of range, or a size that is not theirs.
    """
    c = self.config
    grid = grid_of(tokens, c.num_codes, size, c.image_size, c.factor)
    assert tokens.ids is not None
    signs = self.ids_to_codes(tokens.ids).reshape(tokens.batch, *grid, c.bits)
    _check_lfq(c, (tokens.batch, *(n * c.factor for n in grid), c.channels))
    dtype = self.encoder.variables["params"]["conv_out"]["kernel"].dtype
    return self.decoder(signs.astype(dtype))

  def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Output:
    """Reconstructs images. Losses: `sample_entropy`, `batch_entropy`, `commitment`."""
    _check_lfq(self.config, x.shape)
    latents = self.encoder(x)
    quantized = self.quantize(latents, train)
    signs = quantized.values.astype(x.dtype).reshape(latents.shape)
    return Output(
      reconstruction=self.decoder(signs).astype(jnp.float32),
      tokens=self._to_tokens(quantized.ids, latents.shape),
      losses=quantized.losses,
      stats=quantized.stats,
    )

  def quantize(
    self, latents: Float[Array, "B h w D"], train: bool = False
  ) -> Quantized:
    """The signs of latents, and ids whose lowest bit is channel 0."""
    rows = latents.reshape(latents.shape[0], -1, latents.shape[-1])
    found = self.quantizer(rows[..., ::-1], train=train)
    return dataclasses.replace(found, values=found.values[..., ::-1])

  def ids_to_codes(self, ids: Int[Array, "*N"]) -> Float[Array, "*N D"]:
    """The signs, +1 and -1, of ids."""
    return self.quantizer.ids_to_codes(ids)[..., ::-1]

  def _to_tokens(self, ids: Array, shape: tuple[int, ...]) -> Tokens:
    return Tokens.from_ids(ids, self.config.num_codes, grid=shape[1:3])


def _check_lfq(config: Config, shape: tuple[int, ...]) -> None:
  check_pictures(shape, config.channels, config.factor)
  if shape[1] == shape[2] == config.factor:
    raise TokzooError(
      f"an image of {shape[1]} x {shape[2]} pixels gives a single token, which has no "
      f"variance over space: one side must be at least {2 * config.factor} pixels."
    )


# The 128-pixel tokenizer halves the grid three times: 16 x 16 tokens as well.
PRESETS = {
  "open-magvit2-256": Config(),
  "open-magvit2-128": Config(image_size=128, multipliers=(1, 2, 2, 4)),
  "open-magvit2-pretrain-16384": Config(bits=14),
  "open-magvit2-pretrain-262144": Config(),
}


def _lfq_side(side: str, level: str) -> tuple[Rule, ...]:
  path = f"params/{side}"
  return (
    *residual_rules(
      f"{side}.{level}.{{l}}.block.{{j}}", f"{path}/{level}_{{l}}_block_{{j}}"
    ),
    *residual_rules(f"{side}.mid_block.{{j}}", f"{path}/mid_block_{{j}}"),
    *ends_rules(side, path),
  )


# The losses' networks (LPIPS, discriminator) with their averages, and the averages' state.
_OTHERS = (r"loss\..*", r"model_ema\.(loss.*|decay|num_updates)")

WEIGHTS = Table(
  rules=(
    *_lfq_side("encoder", "down"),
    *_lfq_side("decoder", "up"),
    *conv2d_rules(
      "encoder.down.{l}.downsample", "params/encoder/down_{l}_downsample/conv"
    ),
    *conv2d_rules("decoder.up.{l}.upsample.conv1", "params/decoder/up_{l}_upsample"),
    *linear_rules(
      "decoder.adaptive.{l}.{moment}", "params/decoder/adaptive_{l}/{moment}"
    ),
  ),
  ignore=_OTHERS,
  averages="model_ema.",
)

# ---------------------------------------------------------------- IBQ


@dataclasses.dataclass(frozen=True)
class IBQConfig:
  """Sizes of the IBQ tokenizer; the defaults are those of 16,384 codes."""

  image_size: int = 256
  """Side in pixels of the images that `decode` makes unless told otherwise."""
  channels: int = 3
  """Colour channels."""
  width: int = 128
  """Features of the finest level."""
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  """Features of each level over `width`, from fine to coarse."""
  blocks: int = 4
  """Residual blocks of each encoder level; the decoder's have one more."""
  attention: tuple[int, ...] = (4,)
  """Levels (0 the finest) with attention: that of 16 x 16 places."""
  latent_dim: int = 256
  """Features of the encoder's output and of the decoder's input."""
  groups: int = 32
  """Groups of every GroupNorm."""
  num_codes: int = 16384
  """K, entries of the codebook."""
  code_dim: int = 256
  """D, features of a code."""
  entropy_temperature: float = 0.01
  """Of the entropies of the codes."""
  codes_scale: float | None = None
  """Standard deviation of normal codes at the start of a training; None: uniform in
  [-1/K, 1/K], as in the source."""

  @property
  def shape(self) -> VQGANShape:
    """Of encoder and decoder."""
    return VQGANShape(
      channels=self.channels,
      width=self.width,
      multipliers=self.multipliers,
      encoder_blocks=self.blocks,
      decoder_blocks=self.blocks + 1,
      attention=self.attention,
      latent_dim=self.latent_dim,
      groups=self.groups,
    )

  def build(self) -> "IBQ":
    return IBQ(self)


class IBQ(nn.Module):
  """The IBQ tokenizer (contract: `tokzoo.contract.Tokenizer`)."""

  config: IBQConfig

  def setup(self):
    c = self.config
    self.encoder = vqgan.Encoder(c.shape)
    self.quant_conv = nn.Conv(c.code_dim, (1, 1))
    by_scale = nn.initializers.normal(c.codes_scale or 1.0)
    self.quantizer = IndexBackpropagation(
      c.num_codes,
      c.code_dim,
      c.entropy_temperature,
      codes_init=_first_codes if c.codes_scale is None else by_scale,
    )
    self.post_quant_conv = nn.Conv(c.latent_dim, (1, 1))
    self.decoder = vqgan.Decoder(c.shape)

  def encode(
    self,
    x: Float[Array, "B H W C"],
    *,
    num_tokens: int | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """As `OpenMagvit2.encode`."""
    c = self.config
    check_pictures(x.shape, c.channels, c.shape.factor)
    check_num_tokens(num_tokens, x.shape, c.shape.factor)
    latents = self.latents(x)
    return self._to_tokens(self._quantize(latents).ids, latents.shape)

  def decode(
    self,
    tokens: Tokens,
    *,
    size: tuple[int, int] | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Float[Array, "B H W C"]:
    """As `OpenMagvit2.decode`."""
    c = self.config
    grid = grid_of(tokens, c.num_codes, size, c.image_size, c.shape.factor)
    assert tokens.ids is not None
    codes = self.quantizer.ids_to_codes(tokens.ids)
    codes = codes.reshape(tokens.batch, *grid, c.code_dim)
    dtype = self.post_quant_conv.variables["params"]["kernel"].dtype
    return self.to_image(codes.astype(dtype))

  def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Output:
    """Reconstructs images. Losses: `quantization`, `commitment`, `codebook` and the entropies
    `sample_entropy` and `batch_entropy`."""
    check_pictures(x.shape, self.config.channels, self.config.shape.factor)
    latents = self.latents(x)
    quantized = self._quantize(latents, train)
    values = quantized.values.astype(x.dtype).reshape(latents.shape)
    return Output(
      reconstruction=self.to_image(values).astype(jnp.float32),
      tokens=self._to_tokens(quantized.ids, latents.shape),
      losses=quantized.losses,
      stats=quantized.stats,
    )

  def latents(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    """What is quantized."""
    return self.quant_conv(self.encoder(x))

  def to_image(self, codes: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
    """Codes, in the dtype of the weights, to images."""
    return self.decoder(self.post_quant_conv(codes))

  def _quantize(
    self, latents: Float[Array, "B h w D"], train: bool = False
  ) -> Quantized:
    rows = latents.reshape(latents.shape[0], -1, latents.shape[-1])
    return self.quantizer(rows, train=train)

  def _to_tokens(self, ids: Array, shape: tuple[int, ...]) -> Tokens:
    return Tokens.from_ids(ids, self.config.num_codes, grid=shape[1:3])


def _first_codes(
  key: PRNGKeyArray, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32
) -> Float[Array, "K D"]:
  """Uniform in [-1/K, 1/K], as in the source."""
  bound = 1 / shape[0]
  return jax.random.uniform(key, shape, dtype, -bound, bound)


IBQ_PRESETS = {
  "ibq-1024": IBQConfig(num_codes=1024),
  "ibq-8192": IBQConfig(num_codes=8192),
  "ibq-16384": IBQConfig(),
  "ibq-262144": IBQConfig(num_codes=262144),
}

IBQ_WEIGHTS = Table(
  rules=(
    *taming_rules(),
    *conv2d_rules("quant_conv", "params/quant_conv"),
    *conv2d_rules("post_quant_conv", "params/post_quant_conv"),
    Rule("quantize.embedding.weight", "params/quantizer/codes"),
  ),
  ignore=_OTHERS,
  averages="model_ema.",
)
