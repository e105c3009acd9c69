"""What KARL and ALIT have alike: sizes, patches, the decoder's trunk, codes, bad input."""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from tokzoo.contract import Quantized
from tokzoo.errors import TokzooError
from tokzoo.nn.prefix import attention_mask
from tokzoo.nn.vit import INIT_STD, LayerNorm, ViT, dense
from tokzoo.quantizers import VectorQuantizer
from tokzoo.tokenizers.image import maskgit_vqgan
from tokzoo.tokenizers.image.karl.base import BaseConfig, features_of, outputs_of
from tokzoo.tokens import Tokens
from tokzoo.weights import Rule, conv2d_rules, linear_rules, norm_rules, vit_block_rules


@dataclasses.dataclass(frozen=True)
class Size:
  """Of one transformer."""

  width: int
  """Features."""
  layers: int
  """Blocks."""
  heads: int
  """Attention heads."""


MAGE = maskgit_vqgan.Config()
"""The published VQGAN base, of the sizes of MaskGIT's."""


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What the configs of both have alike; the defaults are the published ones."""

  image_size: int = 256
  """Side in pixels of the images, the only one that the model takes."""
  channels: int = 3
  """Colour channels."""
  patch: int = 16
  """Side of a patch in pixels."""
  num_tokens: int = 256
  """Tokens of an image at most, unless more are asked for."""
  encoder: Size = Size(1024, 8, 8)
  """The encoder's transformer."""
  decoder: Size = Size(1024, 8, 8)
  """The decoder's transformer."""
  mlp_ratio: float = 4.0
  """Hidden features of a block's MLP over its width."""
  quantizer: Literal["vq", "none"] = "vq"
  """Codes of a codebook, or continuous tokens."""
  num_codes: int = 4096
  """Entries of the codebook."""
  code_dim: int = 12
  """Features of a code."""
  use_l2_norm: bool = True
  """Whether latents and codes are scaled to unit length."""
  base: BaseConfig = MAGE
  """Whose latents are distilled; None: the picture itself, without a base."""
  init_std: float = INIT_STD
  """Deviation of the first values of linear layers; small models need larger ones."""

  @property
  def side(self) -> int:
    """Patches along each side."""
    return self.image_size // self.patch

  @property
  def outputs(self) -> int:
    """Numbers that the decoder predicts per place."""
    return outputs_of(self.base, self.patch, self.channels)


def scaled_normal(width: int) -> nn.initializers.Initializer:
  """Normal with deviation width^-1/2, of every learnt token and table of positions."""
  return nn.initializers.normal(width**-0.5)


class Patches(nn.Module):
  """Image in [0, 1] -> features of patches, as many as the base leaves room for."""

  config: Sizes

  @nn.compact
  def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B P D"]:
    c = self.config
    conv = nn.Conv(
      c.encoder.width - features_of(c.base),
      (c.patch, c.patch),
      strides=c.patch,
      padding="VALID",
      kernel_init=nn.initializers.normal(0.02),
      name="conv",
    )
    return rearrange(conv(image), "b h w d -> b (h w) d")


class Trunk(nn.Module):
  """The decoder's transformer: places look at latents, then predict.

  size:     of the transformer
  outputs:  numbers per place
  init_std: deviation of the first values of linear layers
  """

  size: Size
  outputs: int
  mlp_ratio: float
  init_std: float

  @nn.compact
  def __call__(
    self,
    places: Float[Array, "S D"],
    latents: Float[Array, "B L D"],
    kept: Bool[Array, "*B L"] | None = None,
    skip: int = 0,
  ) -> Float[Array, "B P V"]:
    """Predictions of all places but the first `skip`, which only take part.

    A latent that is not `kept` is seen by nobody. (In KARL's source it still sees itself; what
    it then computes is not read.)
    """
    grid = jnp.broadcast_to(places[None], (len(latents), *places.shape))
    x = LayerNorm(name="ln_pre")(jnp.concatenate([grid, latents], axis=1))
    mask = None if kept is None else attention_mask(kept, before=len(places))
    x = ViT(
      self.size.layers,
      self.size.heads,
      self.mlp_ratio,
      self.init_std,
      name="transformer",
    )(x, mask)
    x = LayerNorm(name="ln_post")(x[:, skip : len(places)])
    x = jnp.tanh(dense(2 * self.size.width, self.init_std, name="ffn_0")(x))
    return dense(self.outputs, self.init_std, name="ffn_2")(x)


def make_codebook(config: Sizes) -> VectorQuantizer:
  """TiTok's quantizer: learnt codes, of unit length to the search alone."""
  return VectorQuantizer(
    config.num_codes,
    config.code_dim,
    metric="cosine" if config.use_l2_norm else "euclidean",
    update=None,
    codes_init=_tiny_uniform,
    unit_start=False,
  )


def quantize(
  codebook: VectorQuantizer | None,
  factors: Float[Array, "B L c"],
  kept: Bool[Array, "*B L"] | None,
  train: bool,
) -> Quantized:
  """Codes of latents; without a codebook, the latents themselves, which are then the ids."""
  if codebook is None:
    values = factors.astype(jnp.float32)
    return Quantized(values, values)
  if kept is not None:
    kept = jnp.broadcast_to(kept.reshape(-1, kept.shape[-1]), factors.shape[:2])
  return codebook(factors, mask=kept, train=train)


def to_tokens(config: Sizes, ids: Array, active: Bool[Array, "B L"]) -> Tokens:
  """Tokens with a mask. What is masked out holds zeros, so that equal tokens are equal."""
  ids = jax.lax.stop_gradient(ids)
  if config.quantizer == "none":
    return Tokens.from_values(jnp.where(active[..., None], ids, 0), mask=active)
  return Tokens.from_ids(jnp.where(active, ids, 0), config.num_codes, mask=active)


def check_images(config: Sizes, shape: tuple[int, ...]) -> None:
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


def check_tokens(config: Sizes, tokens: Tokens) -> None:
  """Raises TokzooError unless the tokens have this model's layout, ids in range."""
  if config.quantizer == "none":
    if tokens.values is None or tokens.values.shape[-1] != config.code_dim:
      raise TokzooError(
        f"this tokenizer reads continuous tokens of {config.code_dim} features; these are "
        f"{tokens.kind} {list(tokens.array.shape)}: decode with the tokenizer that made them."
      )
  elif tokens.ids is None or tokens.ids.ndim != 2 or tokens.vocab != config.num_codes:
    codes = "" if tokens.vocab is None else f" of {tokens.vocab} codes"
    raise TokzooError(
      f"this tokenizer reads ids [B, L] of {config.num_codes} codes; these are "
      f"{tokens.kind} {list(tokens.array.shape)}{codes}: decode with the tokenizer that "
      "made them."
    )
  if not isinstance(tokens.array, Tracer):
    tokens.check()


def check_error(error: float | Array) -> None:
  """Raises TokzooError for a wished error below zero, or none at all (NaN)."""
  if isinstance(error, int | float) and not (error >= 0 and math.isfinite(error)):
    raise TokzooError(
      f"the wished error is {error}, but it is a mean absolute error of pixels in [0, 1]: "
      "choose 0 or more, such as 0.05."
    )


def _tiny_uniform(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
  """U(-1 / N, 1 / N), N the number of codes."""
  return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])


SHARED_RULES = (
  Rule("latent_tokens", "params/latent_tokens"),
  *conv2d_rules("patch_embed", "params/encoder/patches/conv"),
  *norm_rules("encoder_ln_pre", "params/encoder/ln_pre"),
  *vit_block_rules("encoder.transformer.{i}", "params/encoder/transformer/blocks_{i}"),
  *norm_rules("encoder_ln_post", "params/ln_post"),
  *linear_rules("pre_quantizer_mlp", "params/to_code"),
  Rule("quantize.embedding.weight", "params/codebook/codes"),
  Rule("decoder_positional_embedding", "params/decoder/positions"),
  Rule("decoder_mask_token", "params/decoder/mask_token"),
  *norm_rules("decoder.ln_{place}", "params/decoder/trunk/ln_{place}"),
  *vit_block_rules(
    "decoder.transformer.{i}", "params/decoder/trunk/transformer/blocks_{i}"
  ),
  *linear_rules("decoder.ffn.{i}", "params/decoder/trunk/ffn_{i}"),
)
"""Rules of what both have alike."""
