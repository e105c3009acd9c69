"""TiTok: an image as K latent tokens of a ViT, without a grid (K = 32 to 256).

Yu et al., "An Image is Worth 32 Tokens for Reconstruction and Generation", arXiv 2406.07550.
Written from what bytedance/1d-tokenizer @ 942a96f computes (`modeling/titok.py`,
`modeling/modules/blocks.py`, `modeling/quantizer/quantizer.py`); weights on the hub:
yucornetto/tokenizer_titok_*.

  image   float32[B, S, S, C] in [-1, 1] with S = image_size: positions are learnt per place
  tokens  ids [B, K], or values [B, K, code_dim] of the VAE variant

Learned latent tokens and the image's patches pass one transformer; the latents are quantized
(or drawn from a Gaussian). The decoder lets a grid of mask tokens attend to them. Two heads:

  proxy codes  `pixels` set: logits over the codebook of MaskGIT's VQGAN, whose decoder makes
               the picture from softmax(logits) @ codebook (L-32, B-64, S-128, One-D-Piece)
  pixels       `pixels` None: a patch of RGB per place, then a 3x3 convolution (all others)

The network works in [0, 1]: images are converted at its doors, here and nowhere else. The
sources' `clustering_vq`, of TA-TiTok alone, is not here.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.errors import TokzooError
from tokzoo.nn.prefix import attention_mask
from tokzoo.nn.vit import INIT_STD, LayerNorm, ViT, dense
from tokzoo.quantizers import VectorQuantizer
from tokzoo.tokenizers.image import maskgit_vqgan
from tokzoo.tokens import Tokens
from tokzoo.weights import (
  POINTWISE,
  Rule,
  Table,
  conv2d_rules,
  linear_rules,
  norm_rules,
  vit_block_rules,
)


@dataclasses.dataclass(frozen=True)
class Size:
  """Of one transformer."""

  width: int
  """Features."""
  layers: int
  """Blocks."""
  heads: int
  """Attention heads."""


SMALL, BASE, LARGE = Size(512, 8, 8), Size(768, 12, 12), Size(1024, 24, 16)


PIXELS = maskgit_vqgan.Config()
"""The published VQGAN, whose decoder the first tokenizers' pictures are made with."""


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the tokenizer; the defaults are those of TiTok-L-32."""

  image_size: int = 256
  """Side in pixels of the images, the only one that the model takes."""
  channels: int = 3
  """Colour channels."""
  patch: int = 16
  """Side of a patch in pixels."""
  num_tokens: int = 32
  """K, latent tokens per image."""
  encoder: Size = LARGE
  """The encoder's transformer."""
  decoder: Size = LARGE
  """The decoder's transformer."""
  mlp_ratio: float = 4.0
  """Hidden features of a block's MLP over its width."""
  quantizer: Literal["vq", "vae"] = "vq"
  """Codes of a codebook, or a Gaussian per token."""
  num_codes: int = 4096
  """N, entries of the codebook."""
  code_dim: int = 12
  """Features of a code."""
  use_l2_norm: bool = True
  """Whether latents and codes are scaled to unit length."""
  is_legacy: bool = True
  """Whether the encoder's output is reshaped, not transposed, before its last layer, which
  mixes tokens and features. A slip of the first weights, and part of them."""
  pixels: maskgit_vqgan.Config | None = PIXELS
  """Whose codes the decoder predicts; None: it makes pixels itself."""
  init_std: float = INIT_STD
  """Deviation of the first values of linear layers; small models need larger ones."""

  @property
  def side(self) -> int:
    """Patches along each side."""
    return self.image_size // self.patch

  def build(self) -> "TiTok":
    return TiTok(self)


def _scaled_normal(width: int) -> nn.initializers.Initializer:
  return nn.initializers.normal(width**-0.5)


class Encoder(nn.Module):
  """Image in [0, 1] -> latents."""

  config: Config

  @nn.compact
  def __call__(
    self, image: Float[Array, "B H W C"], latent_tokens: Float[Array, "K D"]
  ) -> Float[Array, "B K c"]:
    c, size = self.config, self.config.encoder
    init = _scaled_normal(size.width)
    patches = nn.Conv(
      size.width,
      (c.patch, c.patch),
      strides=c.patch,
      padding="VALID",
      kernel_init=nn.initializers.normal(0.02),
      name="patch_embed",
    )(image)
    patches = rearrange(patches, "b h w d -> b (h w) d")
    one = self.param("class_embedding", init, (1, size.width))
    places = self.param("positional_embedding", init, (c.side**2 + 1, size.width))
    of_latents = self.param(
      "latent_token_positional_embedding", init, (c.num_tokens, size.width)
    )
    x = jnp.concatenate([_rows(one, patches), patches], axis=1) + places[None]
    x = jnp.concatenate([x, _rows(latent_tokens + of_latents, patches)], axis=1)
    x = LayerNorm(name="ln_pre")(x)
    x = ViT(size.layers, size.heads, c.mlp_ratio, c.init_std, name="transformer")(x)
    x = LayerNorm(name="ln_post")(x[:, -c.num_tokens :])
    if c.is_legacy:
      # Row-major [K, D] read as [D, K]: "token" n holds every K-th number.
      x = x.reshape(len(x), size.width, c.num_tokens).swapaxes(1, 2)
    features = c.code_dim * (2 if c.quantizer == "vae" else 1)
    return dense(features, c.init_std, name="conv_out")(x)


class Decoder(nn.Module):
  """Codes -> logits of proxy codes [B, h, w, V], or an image in about [0, 1]."""

  config: Config

  @nn.compact
  def __call__(
    self, codes: Float[Array, "B L c"], kept: Bool[Array, "*B L"] | None = None
  ) -> Float[Array, "B h w V"]:
    """Decodes a prefix of L <= K codes, or, with `kept`, only the codes that it marks."""
    c, size = self.config, self.config.decoder
    init = _scaled_normal(size.width)
    one = self.param("class_embedding", init, (1, size.width))
    places = self.param("positional_embedding", init, (c.side**2 + 1, size.width))
    masks = self.param("mask_token", init, (1, 1, size.width))
    of_latents = self.param(
      "latent_token_positional_embedding", init, (c.num_tokens, size.width)
    )
    latents = dense(size.width, c.init_std, name="decoder_embed")(codes)
    latents = latents + of_latents[None, : codes.shape[1]]
    grid = jnp.broadcast_to(masks[0], (c.side**2, size.width))
    grid = jnp.concatenate([one, grid]) + places
    x = jnp.concatenate([_rows(grid, latents), latents], axis=1)
    x = LayerNorm(name="ln_pre")(x)
    mask = None if kept is None else attention_mask(kept, before=len(grid))
    x = ViT(size.layers, size.heads, c.mlp_ratio, c.init_std, name="transformer")(
      x, mask
    )
    x = LayerNorm(name="ln_post")(x[:, 1 : len(grid)])
    if c.pixels is not None:
      x = jnp.tanh(dense(2 * size.width, c.init_std, name="ffn_0")(x))
      x = dense(c.pixels.num_codes, c.init_std, name="ffn_2")(x)
      return rearrange(x, "b (h w) v -> b h w v", h=c.side)
    x = dense(c.patch**2 * c.channels, c.init_std, name="ffn_0")(x)
    x = rearrange(
      x,
      "b (h w) (p q c) -> b (h p) (w q) c",
      h=c.side,
      p=c.patch,
      q=c.patch,
    )
    return nn.Conv(
      c.channels, (3, 3), kernel_init=nn.initializers.normal(0.02), name="conv_out"
    )(x)


class TiTok(nn.Module):
  """The tokenizer (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    c = self.config
    self.latent_tokens = self.param(
      "latent_tokens",
      _scaled_normal(c.encoder.width),
      (c.num_tokens, c.encoder.width),
    )
    self.encoder = Encoder(c)
    self.decoder = Decoder(c)
    if c.quantizer == "vq":
      self.quantizer = VectorQuantizer(
        c.num_codes,
        c.code_dim,
        metric="cosine" if c.use_l2_norm else "euclidean",
        update=None,
        codes_init=_tiny_uniform,
        unit_start=False,
      )
    if c.pixels is not None:
      self.pixels = maskgit_vqgan.MaskGITVQGAN(c.pixels)

  def encode(
    self,
    x: Float[Array, "B H W C"],
    *,
    num_tokens: int | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """Images in [-1, 1] to tokens.

    Args:
      x: images of the model's size.
      num_tokens: None, or as many as the model makes.
      rng: of the VAE variant's draw; None: its means. Not used by the others.

    Raises:
      TokzooError: another size or number of channels, or a number of tokens that the model
        does not make.
    """
    check_images(self.config, x.shape)
    length = self.check_length(num_tokens)
    latents = self.latents(x)
    if self.config.quantizer == "vae":
      return Tokens.from_values(Gaussian(latents).draw(rng)[:, :length])
    ids = self.quantizer(latents).ids
    return Tokens.from_ids(ids[:, :length], self.config.num_codes)

  def decode(
    self,
    tokens: Tokens,
    *,
    size: tuple[int, int] | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Float[Array, "B H W C"]:
    """Tokens to images in about [-1, 1] (not clipped).

    Args:
      tokens: of this layout; those that their `mask` marks False are left out.
      size: height and width in pixels; there is only one that the model makes.
      rng: not used, decoding is deterministic.

    Raises:
      TokzooError: tokens of another layout, ids out of range (where they can be read), or
        another size.
    """
    c = self.config
    height, width = size or (c.image_size, c.image_size)
    check_images(c, (tokens.batch, height, width, c.channels))
    self._check_tokens(tokens)
    codes = (
      tokens.array if tokens.ids is None else self.quantizer.ids_to_codes(tokens.ids)
    )
    return self.codes_to_image(codes, tokens.mask)[0]

  def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Output:
    """Reconstructs images.

    Losses in training: `commitment` (published weight 0.25) and `codebook` (1), or `kl` of
    the VAE variant, which draws from the rng stream "bits". The feature `proxy_logits`,
    [B, h, w, V], is what the first stage trains.
    """
    check_images(self.config, x.shape)
    quantized = self.quantize(x, train)
    image, logits = self.codes_to_image(
      quantized.values.astype(x.dtype), self.kept(train)
    )
    return Output(
      reconstruction=image.astype(jnp.float32),
      tokens=self.to_tokens(jax.lax.stop_gradient(quantized.ids)),
      losses=quantized.losses,
      stats=quantized.stats,
      features={} if logits is None else {"proxy_logits": logits},
    )

  def latents(self, x: Float[Array, "B H W C"]) -> Float[Array, "B K c"]:
    """Images in [-1, 1] to what is quantized; means and log variances of the VAE variant."""
    return self.encoder((x + 1) / 2, self.latent_tokens)

  def quantize(self, x: Float[Array, "B H W C"], train: bool = False) -> Quantized:
    """Images in [-1, 1] to codes; of the VAE variant `ids` are the codes themselves."""
    latents = self.latents(x)
    if self.config.quantizer == "vq":
      return self.quantizer(latents, train=train)
    gaussian = Gaussian(latents)
    values = gaussian.draw(self.make_rng("bits") if train else None)
    return Quantized(values, values, {"kl": gaussian.kl().sum(-1).mean()})

  def proxy_logits(
    self, x: Float[Array, "B H W C"], train: bool = False
  ) -> tuple[Float[Array, "B h w V"], Quantized]:
    """What the first stage trains: logits over the VQGAN's codes, and the quantizer's part."""
    check_images(self.config, x.shape)
    quantized = self.quantize(x, train)
    return self.decoder(quantized.values.astype(x.dtype), self.kept(train)), quantized

  def codes_to_image(
    self, codes: Float[Array, "B L c"], kept: Bool[Array, "*B L"] | None = None
  ) -> tuple[Float[Array, "B H W C"], Float[Array, "B h w V"] | None]:
    """Codes to images in about [-1, 1], and the logits of the proxy codes where it has them."""
    decoded = self.decoder(codes, kept)
    if self.config.pixels is None:
      return 2 * decoded - 1, None
    return self.pixels.codes_to_image(self.pixels.soft_codes(decoded)), decoded

  def to_tokens(self, ids: Array) -> Tokens:
    """Tokens of what `quantize` calls ids."""
    if self.config.quantizer == "vae":
      return Tokens.from_values(ids)
    return Tokens.from_ids(ids, self.config.num_codes)

  # What One-D-Piece, whose tokens are any prefix of these, replaces.

  def kept(self, train: bool) -> Bool[Array, "K"] | None:
    """The tokens that the decoder sees in `__call__`; None: all."""
    return None

  def check_length(self, num_tokens: int | None) -> int:
    """How many tokens to make, or to read.

    Raises:
      TokzooError: another number than the model's.
    """
    most = self.config.num_tokens
    if num_tokens not in (None, most):
      raise TokzooError(
        f"{num_tokens} tokens were asked for or given, but this tokenizer always has {most}: "
        "leave num_tokens out, or decode with the tokenizer that made them."
      )
    return most

  def _check_tokens(self, tokens: Tokens) -> None:
    c = self.config
    if c.quantizer == "vae":
      if tokens.values is None or tokens.values.shape[-1] != c.code_dim:
        raise TokzooError(
          f"this tokenizer reads continuous tokens of {c.code_dim} features; these are "
          f"{tokens.kind} {list(tokens.array.shape)}: decode with the tokenizer that made them."
        )
    elif tokens.ids is None or tokens.ids.ndim != 2 or tokens.vocab != c.num_codes:
      codes = "" if tokens.vocab is None else f" of {tokens.vocab} codes"
      raise TokzooError(
        f"this tokenizer reads ids [B, L] of {c.num_codes} codes; these are "
        f"{tokens.kind} {list(tokens.array.shape)}{codes}: decode with the tokenizer that "
        "made them."
      )
    self.check_length(tokens.length)
    if not isinstance(tokens.array, Tracer):
      tokens.check()


class Gaussian:
  """A diagonal Gaussian per token, from moments [B, K, 2 c]: means, then log variances."""

  def __init__(self, moments: Float[Array, "B K c2"]):
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    self.mean, self.logvar = mean, jnp.clip(logvar, -30.0, 20.0)

  def draw(self, rng: PRNGKeyArray | None) -> Float[Array, "B K c"]:
    """A sample; the mean without a key."""
    if rng is None:
      return self.mean
    noise = jax.random.normal(rng, self.mean.shape)
    return self.mean + jnp.exp(0.5 * self.logvar) * noise

  def kl(self) -> Float[Array, "B K"]:
    """KL divergence from the standard normal of each token, in nats.

    The source sums over the axes (1, 2) of [B, c, 1, K], which leaves the tokens apart.
    """
    terms = jnp.square(self.mean) + jnp.exp(self.logvar) - 1 - self.logvar
    return 0.5 * terms.sum(-1)


def check_images(config: Config, shape: tuple[int, ...]) -> None:
  """Raises TokzooError unless images of `shape` fit the tokenizer."""
  side, channels = config.image_size, config.channels
  if len(shape) != 4 or shape[3] != channels:
    raise TokzooError(
      f"images of shape [B, H, W, {channels}] were expected; these are {list(shape)}: "
      f"{'stack them to a batch' if len(shape) == 3 else 'convert the channels'} first."
    )
  if tuple(shape[1:3]) != (side, side):
    raise TokzooError(
      f"an image of {shape[1]} x {shape[2]} pixels does not fit: this tokenizer takes "
      f"{side} x {side} alone, since its positions are learnt; resize or crop it."
    )


def _tiny_uniform(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
  """U(-1 / N, 1 / N), N the number of codes."""
  return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])


def _rows(tokens: Float[Array, "L D"], like: Array) -> Float[Array, "B L D"]:
  """The same tokens for every image of the batch."""
  return jnp.broadcast_to(tokens[None], (like.shape[0], *tokens.shape))


_RGB: dict = {"num_codes": 8192, "code_dim": 64, "use_l2_norm": False}
_NEW: dict = {"is_legacy": False, "pixels": None}
_VAE: dict = {"quantizer": "vae", "code_dim": 16, **_NEW}

PRESETS = {
  "titok-l32": Config(),
  "titok-b64": Config(num_tokens=64, encoder=BASE, decoder=BASE),
  "titok-s128": Config(num_tokens=128, encoder=SMALL, decoder=SMALL),
  "titok-bl64-vq8k": Config(num_tokens=64, encoder=BASE, **_RGB, **_NEW),
  "titok-bl128-vq8k": Config(num_tokens=128, encoder=BASE, **_RGB, **_NEW),
  "titok-sl256-vq8k": Config(num_tokens=256, encoder=SMALL, **_RGB, **_NEW),
  "titok-ll32-vae": Config(**_VAE),
  "titok-bl64-vae": Config(num_tokens=64, encoder=BASE, **_VAE),
  "titok-bl128-vae": Config(num_tokens=128, encoder=BASE, **_VAE),
}


def _side_rules(side: str) -> tuple[Rule, ...]:
  """What encoder and decoder have alike."""
  names = (
    "class_embedding",
    "positional_embedding",
    "latent_token_positional_embedding",
  )
  ours = f"params/{side}"
  return (
    *vit_block_rules(f"{side}.transformer.{{i}}", f"{ours}/transformer/blocks_{{i}}"),
    *(Rule(f"{side}.{name}", f"{ours}/{name}") for name in names),
    *norm_rules(f"{side}.ln_{{place}}", f"{ours}/ln_{{place}}"),
  )


def _pointwise(key: str, path: str) -> tuple[Rule, Rule]:
  """A 1x1 convolution that is a dense layer here."""
  weight = Rule(f"{key}.weight", f"{path}/kernel", POINTWISE)
  return weight, Rule(f"{key}.bias", f"{path}/bias")


WEIGHTS = Table(
  rules=(
    Rule("latent_tokens", "params/latent_tokens"),
    *_side_rules("encoder"),
    *conv2d_rules("encoder.patch_embed", "params/encoder/patch_embed"),
    *_pointwise("encoder.conv_out", "params/encoder/conv_out"),
    Rule("quantize.embedding.weight", "params/quantizer/codes"),
    *_side_rules("decoder"),
    *linear_rules("decoder.decoder_embed", "params/decoder/decoder_embed"),
    Rule("decoder.mask_token", "params/decoder/mask_token"),
    *_pointwise("decoder.ffn.{i}", "params/decoder/ffn_{i}"),
    *conv2d_rules("decoder.conv_out", "params/decoder/conv_out"),
    Rule("pixel_quantize.embedding.weight", "params/pixels/quantizer/codes"),
    *maskgit_vqgan.decoder_rules("pixel_decoder", "params/pixels/decoder"),
  )
)
