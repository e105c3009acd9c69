"""MaskGIT's VQGAN: 256 tokens of 1,024 codes per image of 256 x 256 pixels, no attention.

Chang et al., "MaskGIT: Masked Generative Image Transformer", arXiv 2202.04200. Written from
what the PyTorch port computes that TiTok, RAR and One-D-Piece use
(`modeling/modules/maskgit_vqgan.py` of bytedance/1d-tokenizer @ 942a96f, itself from
huggingface/open-muse). The network of google-research/maskgit @ 1db2359
(`maskgit/nets/vqgan_tokenizer.py`, Linen) is the same one, and its checkpoints are read as well
(`flax_weights`): every convolution has stride 1, so that "SAME" means one thing; the mean of 2x2,
nearest doubling, the epsilon of the norms and the order of the blocks agree. At 512 pixels there
are 32 x 32 tokens of another training of it.

  image   float32[B, H, W, C] in [-1, 1], H and W multiples of 2^(levels - 1)
  tokens  ids [B, h * w], row by row, with the grid (h, w)

The network works in [0, 1]: images are converted at its doors, here and nowhere else.

Quirks of the published weights, kept:
- a residual block that changes the width adds a 1x1 convolution of its own *output* and drops
  its input;
- convolutions inside blocks have no bias, nor has the encoder's first one.

Difference from the sources: the quantizer's losses come apart. MaskGIT's training adds 0.25 times
`commitment`, 1.0 times `codebook` and 0.1 times (`sample_entropy` - `batch_entropy`); the port,
if asked, 1.0 times `commitment` and 0.25 times `codebook`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import reduce
from jaxtyping import Array, Float, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.nn.conv2d import doubled_conv
from tokzoo.nn.group_norm import GroupNorm
from tokzoo.nn.vqgan import ResBlock, residual_rules
from tokzoo.quantizers import Entropy, VectorQuantizer
from tokzoo.tokenizers.image.grids import check_num_tokens, check_pictures, grid_of
from tokzoo.tokens import Tokens
from tokzoo.weights import CONV2D, Rule, Table, conv2d_rules, norm_rules


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the tokenizer; the defaults are the published ones."""

  image_size: int = 256
  """Side in pixels of the images that `decode` makes unless told otherwise."""
  channels: int = 3
  """Colour channels."""
  width: int = 128
  """Features of the finest level, a multiple of `norm_groups`."""
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  """Features of each level over `width`, from fine to coarse."""
  res_blocks: int = 2
  """Residual blocks of each level and of the middle."""
  code_dim: int = 256
  """Features of a code."""
  num_codes: int = 1024
  """Entries of the codebook."""
  norm_groups: int = 32
  """Groups of every GroupNorm."""
  codes_scale: float = 1.0
  """Standard deviation of the codes at the start of a training (published: 1 / 32, of a uniform
  distribution; here it is normal)."""
  entropy_temperature: float | None = None
  """Of the entropies of the codes in training, by squared distances (published: 0.01); None:
  there are none."""

  @property
  def factor(self) -> int:
    """Pixels to a token along each side."""
    return 2 ** (len(self.multipliers) - 1)

  def build(self) -> "MaskGITVQGAN":
    return MaskGITVQGAN(self)


def _block(config: Config, features: int, name: str) -> ResBlock:
  return ResBlock(features, config.norm_groups, False, "output", name=name)


def _norm(config: Config) -> GroupNorm:
  return GroupNorm(config.norm_groups, name="norm_out")


class Down(nn.Module):
  """One level of the encoder: residual blocks, then the mean of each 2x2."""

  config: Config
  level: int

  @nn.compact
  def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w E"]:
    c = self.config
    for j in range(c.res_blocks):
      x = _block(c, c.width * c.multipliers[self.level], f"block_{j}")(x)
    if self.level == len(c.multipliers) - 1:
      return x
    return reduce(x, "b (h p) (w q) d -> b h w d", "mean", p=2, q=2)


class Up(nn.Module):
  """One level of the decoder: residual blocks, then nearest doubling and a convolution."""

  config: Config
  level: int

  @nn.compact
  def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B H W E"]:
    c = self.config
    for j in range(c.res_blocks):
      x = _block(c, c.width * c.multipliers[self.level], f"block_{j}")(x)
    if self.level == 0:
      return x
    conv = nn.Conv(
      x.shape[-1], (3, 3), conv_general_dilated=doubled_conv, name="upsample_conv"
    )
    return conv(x)


class Encoder(nn.Module):
  """Image in [0, 1] -> latents."""

  config: Config

  @nn.compact
  def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    c = self.config
    x = nn.Conv(c.width, (3, 3), use_bias=False, name="conv_in")(image)
    for level in range(len(c.multipliers)):
      x = Down(c, level, name=f"down_{level}")(x)
    for j in range(c.res_blocks):
      x = _block(c, x.shape[-1], f"mid_{j}")(x)
    return nn.Conv(c.code_dim, (1, 1), name="conv_out")(nn.swish(_norm(c)(x)))


class Decoder(nn.Module):
  """Codes -> image in about [0, 1], not clipped."""

  config: Config

  @nn.compact
  def __call__(self, codes: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
    c = self.config
    x = nn.Conv(c.width * c.multipliers[-1], (3, 3), name="conv_in")(codes)
    for j in range(c.res_blocks):
      x = _block(c, x.shape[-1], f"mid_{j}")(x)
    for level in reversed(range(len(c.multipliers))):
      x = Up(c, level, name=f"up_{level}")(x)
    return nn.Conv(c.channels, (3, 3), name="conv_out")(nn.swish(_norm(c)(x)))


class MaskGITVQGAN(nn.Module):
  """The tokenizer (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    c = self.config
    self.encoder = Encoder(c)
    entropies = ()
    if c.entropy_temperature is not None:
      entropies = (Entropy(1 / c.entropy_temperature, is_squared=True),)
    self.quantizer = VectorQuantizer(
      c.num_codes,
      c.code_dim,
      update=None,
      codes_init=nn.initializers.normal(c.codes_scale),
      regularizers=entropies,
    )
    self.decoder = Decoder(c)

  def encode(
    self,
    x: Float[Array, "B H W C"],
    *,
    num_tokens: int | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """Images in [-1, 1] to ids with their grid. Deterministic: `rng` is not used.

    Raises:
      TokzooError: a size or channel count that the model cannot take, or a number of tokens
        other than the image has.
    """
    c = self.config
    check_pictures(x.shape, c.channels, c.factor)
    check_num_tokens(num_tokens, x.shape, c.factor)
    ids = self.quantize(x).ids
    return self._tokens(ids, x.shape)

  def decode(
    self,
    tokens: Tokens,
    *,
    size: tuple[int, int] | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Float[Array, "B H W C"]:
    """Ids to images in about [-1, 1] (not clipped).

    Args:
      tokens: ids of this codebook.
      size: height and width in pixels; by default what the tokens' grid says.
      rng: not used, decoding is deterministic.

    Raises:
      TokzooError: tokens of another kind or codebook, or a size that is not theirs.
    """
    c = self.config
    rows, columns = grid_of(tokens, c.num_codes, size, c.image_size, c.factor)
    codes = self.quantizer.ids_to_codes(tokens.array)
    return self.codes_to_image(codes.reshape(tokens.batch, rows, columns, c.code_dim))

  def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Output:
    """Reconstructs images. Losses in training: `commitment` and `codebook`, and with a
    temperature `sample_entropy` and `batch_entropy`."""
    c = self.config
    check_pictures(x.shape, c.channels, c.factor)
    quantized = self.quantize(x, train)
    rows, columns = x.shape[1] // c.factor, x.shape[2] // c.factor
    codes = quantized.values.astype(x.dtype)
    image = self.codes_to_image(codes.reshape(-1, rows, columns, c.code_dim))
    return Output(
      reconstruction=image.astype(jnp.float32),
      tokens=self._tokens(jax.lax.stop_gradient(quantized.ids), x.shape),
      losses=quantized.losses,
      stats=quantized.stats,
    )

  def quantize(self, x: Float[Array, "B H W C"], train: bool = False) -> Quantized:
    """Images in [-1, 1] to codes and ids, [B, h * w]: the targets of TiTok's first stage."""
    latents = self.encoder((x + 1) / 2)
    flat = latents.reshape(len(x), -1, latents.shape[-1])
    return self.quantizer(flat, train=train)

  def soft_ids(
    self, x: Float[Array, "B H W C"], temperature: float = 1.0
  ) -> Float[Array, "B L K"]:
    """softmax(-|z - code|^2 / temperature): how near each code is to the image's latents."""
    latents = self.encoder((x + 1) / 2).astype(jnp.float32)
    latents = latents.reshape(len(x), -1, latents.shape[-1])
    codes = self.quantizer.codebook()
    # |z|^2 is the same for every code, and the softmax does not see it.
    inner = jnp.einsum("bld,kd->blk", latents, codes, precision="highest")
    distance = jnp.sum(jnp.square(codes), axis=-1)[None, None] - 2 * inner
    return jax.nn.softmax(-distance / temperature, axis=-1)

  def soft_codes(self, logits: Float[Array, "B h w K"]) -> Float[Array, "B h w D"]:
    """softmax(logits) @ codebook: what TiTok's decoder hands to this one's decoder."""
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    codes = self.quantizer.codebook()
    return jnp.einsum("bhwk,kd->bhwd", weights, codes).astype(logits.dtype)

  def codes_to_image(self, codes: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
    """Codes, hard or soft, to images in about [-1, 1]."""
    return 2 * self.decoder(codes) - 1

  def _tokens(self, ids: Array, shape: tuple[int, ...]) -> Tokens:
    factor = self.config.factor
    grid = (shape[1] // factor, shape[2] // factor)
    return Tokens.from_ids(ids, self.config.num_codes, grid=grid)


PRESETS = {
  "maskgit-vqgan-imagenet-f16-256": Config(),
  "maskgit-vqgan-imagenet-f16-512": Config(image_size=512),
}


def decoder_rules(key: str, path: str) -> tuple[Rule, ...]:
  """The decoder's rules under a prefix on either side."""
  return (
    *conv2d_rules(f"{key}.conv_in", f"{path}/conv_in"),
    *residual_rules(f"{key}.mid.{{j}}", f"{path}/mid_{{j}}"),
    *residual_rules(f"{key}.up.{{l}}.block.{{j}}", f"{path}/up_{{l}}/block_{{j}}"),
    *conv2d_rules(f"{key}.up.{{l}}.upsample_conv", f"{path}/up_{{l}}/upsample_conv"),
    *norm_rules(f"{key}.norm_out", f"{path}/norm_out"),
    *conv2d_rules(f"{key}.conv_out", f"{path}/conv_out"),
  )


WEIGHTS = Table(
  rules=(
    Rule("encoder.conv_in.weight", "params/encoder/conv_in/kernel", CONV2D),
    *residual_rules("encoder.down.{l}.block.{j}", "params/encoder/down_{l}/block_{j}"),
    *residual_rules("encoder.mid.{j}", "params/encoder/mid_{j}"),
    *norm_rules("encoder.norm_out", "params/encoder/norm_out"),
    *conv2d_rules("encoder.conv_out", "params/encoder/conv_out"),
    Rule("quantize.embedding.weight", "params/quantizer/codes"),
    *decoder_rules("decoder", "params/decoder"),
  )
)

_BLOCK = {
  "GroupNorm_0": "norm1",
  "Conv_0": "conv1",
  "GroupNorm_1": "norm2",
  "Conv_1": "conv2",
  "Conv_2": "nin_shortcut",
}


def flax_weights(config: Config) -> Table:
  """The table of a Flax checkpoint, whose modules have no names but their class and a number,
  counted in the order in which they run."""
  levels, blocks = range(len(config.multipliers)), range(config.res_blocks)
  middle = [f"mid_{j}" for j in blocks]
  upwards = list(reversed(levels))
  orders = {
    "encoder": (
      [*(f"down_{level}/block_{j}" for level in levels for j in blocks), *middle],
      ["conv_in", "conv_out"],
    ),
    "decoder": (
      [*middle, *(f"up_{level}/block_{j}" for level in upwards for j in blocks)],
      ["conv_in", *(f"up_{level}/upsample_conv" for level in upwards[:-1]), "conv_out"],
    ),
  }
  rules = [Rule("quantizer/codebook", "params/quantizer/codes")]
  for side, (order, convs) in orders.items():
    names = {f"Conv_{i}": conv for i, conv in enumerate(convs)}
    names["GroupNorm_0"] = "norm_out"
    for i, block in enumerate(order):
      names |= {f"ResBlock_{i}/{k}": f"{block}/{v}" for k, v in _BLOCK.items()}
    rules += [
      Rule(f"{side}/{theirs}/{{x}}", f"params/{side}/{ours}/{{x}}")
      for theirs, ours in names.items()
    ]
  return Table(rules=tuple(rules))
