"""KARL: an image as many tokens as it needs, told in a single pass.

Duggal et al., "Single-pass Adaptive Image Tokenization for Minimum Program Search", arXiv
2507.07995. Written from what ShivamDuggal4/karl @ 5c1a569 computes
(`kolmogorov_tokenizers/karl_{vqgan,vae}.py`, `modules/`), which has no licence: no line is
taken over. Its weights are linked in its README (Dropbox), not on a hub.

  image   float32[B, S, S, C] in [-1, 1] with S = image_size
  tokens  ids [B, T] with a mask [B, T]: True where a token is active. T is the budget, 256
          unless told otherwise; any token may be halted, not only the last ones

The encoder sees the wished error (the mean |difference| of pixels in [0, 1], rounded up to
one of 19 bins), the base's latents beside patches (`base.py`), and T latent tokens. Each latent
becomes a code and a halting probability; beyond 0.75 it is halted: the decoder does not see
it. The number of active tokens estimates the image's Kolmogorov complexity.

Without a base (`base` None) the decoder predicts patches of RGB: not in the source, for small
models.

Quirks of the published weights, kept:
- the tables of positions are 64 x 64 and read at 16 x 16 by nearest neighbour: every fourth
  row and column was ever trained;
- the wished error's embedding starts as its own value in every feature, which the first layer
  norm takes for zero;
- the quantizer runs on halted tokens, too.

Differences from the source:
- its halting mask is laid out head by head where torch reads image by image, so that in a
  batch masks meet other images' tokens. Here each image has its own, which is the source's
  result for a batch of one;
- it flattens the base's latents in an order that is right only if channels and places are
  both 256; here it is always the right one.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.nn.prefix import attention_mask, check_num_tokens
from tokzoo.nn.vit import LayerNorm, ViT, dense
from tokzoo.tokenizers.image.karl.base import (
  BASE_RULES,
  Glance,
  KLVAEConfig,
  OnBase,
)
from tokzoo.tokenizers.image.karl.parts import (
  SHARED_RULES,
  Patches,
  Size,
  Sizes,
  Trunk,
  check_error,
  check_images,
  check_tokens,
  make_codebook,
  quantize,
  scaled_normal,
  to_tokens,
)
from tokzoo.tokens import Tokens
from tokzoo.weights import Rule, Table, linear_rules, norm_rules

# fmt: off
ERRORS = (
  0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09, 0.1,
  0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.38,
)
# fmt: on
"""The bins of the wished error."""


@dataclasses.dataclass(frozen=True)
class Config(Sizes):
  """Sizes of the tokenizer; the defaults are those of karl_small on a VQGAN."""

  max_tokens: int = 512
  """Rows of the table of latent tokens: the largest budget."""
  positions: int = 64
  """Side of the tables of positions, of which `side` rows and columns are read."""
  halting_width: int = 512
  """Hidden features of the halting head."""
  halting_threshold: float = 0.75
  """Probability above which a token is halted."""

  @property
  def mask_bits(self) -> float:
    """Bits that say which tokens of an image are active: one each."""
    return float(self.num_tokens)

  def build(self) -> "KARL":
    return KARL(self)


def bin_of(error: Float[Array, "*B"]) -> Int[Array, "*B"]:
  """The bin that an error is rounded up to: 0 to 18. Beyond the last, the last."""
  bins = jnp.asarray(ERRORS, jnp.float32)
  found = jnp.searchsorted(bins, error.astype(jnp.float32), side="left")
  return jnp.minimum(found, len(ERRORS) - 1).astype(jnp.int32)


def _nearest(table: Float[Array, "D M M"], side: int) -> Float[Array, "P D"]:
  """A table of positions read at side x side places, as torch's `interpolate` does."""
  step = np.float32(table.shape[-1]) / np.float32(side)
  index = np.minimum(np.arange(side, dtype=np.float32) * step, table.shape[-1] - 1)
  index = index.astype(np.int32)
  return table[:, index][:, :, index].reshape(len(table), -1).T


class Encoder(nn.Module):
  """Wished error, image in [0, 1] with the base's latents, latent tokens -> latents."""

  config: Config

  @nn.compact
  def __call__(
    self,
    condition: Float[Array, "B D"],
    image: Float[Array, "B H W C"],
    seen: Float[Array, "B P c"],
    latent_tokens: Float[Array, "T D"],
    kept: Bool[Array, "*B T"] | None = None,
  ) -> Float[Array, "B T D"]:
    c, size = self.config, self.config.encoder
    table = self.param(
      "positions",
      scaled_normal(size.width),
      (size.width, c.positions, c.positions),
    )
    places = Patches(c, name="patches")(image)
    places = jnp.concatenate([places, seen.astype(places.dtype)], axis=-1)
    places = places + _nearest(table, c.side)[None]
    latents = jnp.broadcast_to(latent_tokens[None], (len(image), *latent_tokens.shape))
    x = jnp.concatenate([condition[:, None], places, latents], axis=1)
    x = LayerNorm(name="ln_pre")(x)
    mask = None if kept is None else attention_mask(kept, before=1 + places.shape[1])
    x = ViT(size.layers, size.heads, c.mlp_ratio, c.init_std, name="transformer")(
      x, mask
    )
    return x[:, 1 + places.shape[1] :]


class Decoder(nn.Module):
  """Codes, of which only those that are kept are seen -> predictions of all places."""

  config: Config

  @nn.compact
  def __call__(
    self, codes: Float[Array, "B T c"], kept: Bool[Array, "*B T"] | None
  ) -> Float[Array, "B P V"]:
    c, size = self.config, self.config.decoder
    # The source scales these by the encoder's width.
    init = scaled_normal(c.encoder.width)
    table = self.param("positions", init, (size.width, c.positions, c.positions))
    mask_token = self.param("mask_token", init, (1, 1, size.width))
    rows = self.param("latent_positions", init, (c.max_tokens, size.width))
    latents = (
      dense(size.width, c.init_std, name="embed")(codes) + rows[None, : codes.shape[1]]
    )
    places = mask_token[0] + _nearest(table, c.side)
    return Trunk(size, c.outputs, c.mlp_ratio, c.init_std, name="trunk")(
      places, latents, kept
    )


@struct.dataclass
class Pass:
  """One pass through encoder and decoder.

  latents:     float[B, T, D], what the heads read
  factors:     float[B, T, c], what is quantized
  halting:     float32[B, T], logits; high: halt
  active:      bool[B, T], the tokens that the decoder saw
  quantized:   values, ids, losses
  prediction:  float[B, P, V], for the base
  """

  latents: Float[Array, "B T D"]
  factors: Float[Array, "B T c"]
  halting: Float[Array, "B T"]
  active: Bool[Array, "B T"]
  quantized: Quantized
  prediction: Float[Array, "B P V"]


class KARL(OnBase):
  """The tokenizer (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    c = self.config
    width = c.encoder.width
    init = scaled_normal(width)
    self.latent_tokens = self.param("latent_tokens", init, (c.max_tokens, width))
    self.error_embeddings = self.param("error_embeddings", _own_values, width)
    self.encoder = Encoder(c)
    self.ln_post = LayerNorm()
    self.to_code = dense(c.code_dim, c.init_std)
    self.ln_post_halt = LayerNorm()
    self.halting_0 = dense(c.halting_width, c.init_std)
    self.halting_2 = dense(1, c.init_std)
    if c.quantizer == "vq":
      self.codebook = make_codebook(c)
    self.decoder = Decoder(c)
    self.set_base(c.base, c.patch, c.channels)

  def encode(
    self,
    x: Float[Array, "B H W C"],
    *,
    num_tokens: int | None = None,
    error: float | Float[Array, "B"] = 0.05,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """Images in [-1, 1] to as many tokens as the wished error needs.

    Args:
      x: images of the model's size.
      num_tokens: T, the budget, 1 to `max_tokens`; None: `num_tokens` of the config. The
        authors recommend to leave it, and to choose the error.
      error: mean |difference| of pixels in [0, 1] that is good enough, of all images or of
        each. Rounded up to a bin: 0 is 0.005, and all above 0.38 are the same.
      rng: of the draw of a KL-VAE base; None: its means. Not used by the others.

    Returns:
      Tokens [B, T] with their mask: `mask.sum(1)` is the estimate of the complexity.

    Raises:
      TokzooError: another size or number of channels, a budget beyond the model's, or an
        error below zero.
    """
    check_images(self.config, x.shape)
    check_error(error)
    budget = self._budget(num_tokens)
    found = self.run(x, self.base.look(x, rng), jnp.asarray(error), budget)
    return to_tokens(self.config, found.quantized.ids, found.active)

  def decode(
    self,
    tokens: Tokens,
    *,
    size: tuple[int, int] | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Float[Array, "B H W C"]:
    """Tokens to images in about [-1, 1] (not clipped).

    Args:
      tokens: of this layout; those that their `mask` marks False are not seen.
      size: height and width in pixels; there is only one that the model makes.
      rng: not used, decoding is deterministic.

    Raises:
      TokzooError: tokens of another layout, more than the model has, ids out of range (where
        they can be read), or another size.
    """
    c = self.config
    height, width = size or (c.image_size, c.image_size)
    check_images(c, (tokens.batch, height, width, c.channels))
    check_tokens(c, tokens)
    self._budget(tokens.length)
    codes = (
      tokens.array if tokens.ids is None else self.codebook.ids_to_codes(tokens.ids)
    )
    return self.paint(codes.astype(self.latent_tokens.dtype), tokens.mask)

  def __call__(
    self,
    x: Float[Array, "B H W C"],
    train: bool = False,
    error: float | Float[Array, "B"] = 0.05,
  ) -> Output:
    """Reconstructs images from the active tokens.

    Losses in training: `commitment` and `codebook` (published weights 0.25 and 1). The features
    are `halting`, the logits, and `prediction`. The two passes of the published objective are
    tasks of their own (`stages.py`).
    """
    check_images(self.config, x.shape)
    found = self.run(
      x, self.base.look(x), jnp.asarray(error), self._budget(None), train=train
    )
    return Output(
      reconstruction=self.image(found).astype(jnp.float32),
      tokens=to_tokens(self.config, found.quantized.ids, found.active),
      losses=found.quantized.losses,
      stats=found.quantized.stats,
      features={"halting": found.halting, "prediction": found.prediction},
    )

  def run(
    self,
    x: Float[Array, "B H W C"],
    glance: Glance,
    error: Float[Array, "*B"],
    budget: int,
    kept: Bool[Array, "T"] | None = None,
    is_halting: bool = True,
    train: bool = False,
  ) -> Pass:
    """One pass.

    Args:
      x: images in [-1, 1].
      glance: what the base sees in them.
      error: the wished one, for all or each.
      budget: T.
      kept: a prefix of the budget, as if T were shorter; losses are of it alone.
      is_halting: whether halted tokens are hidden from the decoder.
      train: whether losses are computed.
    """
    c = self.config
    at = bin_of(jnp.broadcast_to(error, (len(x),)))
    tokens = self.latent_tokens[:budget]
    latents = self.encoder(
      self.error_embeddings[at], (x + 1) / 2, glance.latents, tokens, kept
    )
    factors = self.to_code(self.ln_post(latents))
    hidden = jnp.tanh(self.halting_0(self.ln_post_halt(latents)))
    halting = self.halting_2(hidden)[..., 0].astype(jnp.float32)
    codebook = self.codebook if c.quantizer == "vq" else None
    quantized = quantize(codebook, factors, kept, train)
    active = jnp.ones(halting.shape, bool) if kept is None else kept
    active = jnp.broadcast_to(active, halting.shape)
    if is_halting:
      active &= jax.nn.sigmoid(halting) <= c.halting_threshold
    seen = active if is_halting or kept is not None else None
    prediction = self.decoder(quantized.values.astype(x.dtype), seen)
    return Pass(latents, factors, halting, active, quantized, prediction)

  def paint(
    self, codes: Float[Array, "B T c"], seen: Bool[Array, "*B T"] | None = None
  ) -> Float[Array, "B H W C"]:
    """Codes, all of them or those that are seen, to images in about [-1, 1]."""
    return self.base.image(self.base.code(self.decoder(codes, seen)))

  def image(self, found: Pass) -> Float[Array, "B H W C"]:
    """The picture that a pass predicts, in about [-1, 1]."""
    return self.base.image(self.base.code(found.prediction))

  def _budget(self, num_tokens: int | None) -> int:
    if num_tokens is None:
      return self.config.num_tokens
    return check_num_tokens(num_tokens, self.config.max_tokens)


def _own_values(key: Array, width: int) -> Float[Array, "E D"]:
  """Every bin's value, in each feature."""
  return jnp.repeat(jnp.asarray(ERRORS, jnp.float32)[:, None], width, axis=1)


SMALL, BASE, SEMI_LARGE = Size(512, 8, 8), Size(768, 12, 12), Size(1024, 16, 16)

PRESETS = {
  "karl-small-vqgan": Config(),
  "karl-small-vqgan-continuous": Config(quantizer="none"),
  "karl-small-vae": Config(base=KLVAEConfig()),
  "karl-small-vae-continuous": Config(base=KLVAEConfig(), quantizer="none"),
  # Named in the source, without released weights.
  "karl-tiny-vqgan": Config(encoder=SMALL, decoder=SMALL),
  "karl-base-vqgan": Config(encoder=BASE, decoder=BASE),
  "karl-semilarge-vqgan": Config(encoder=SEMI_LARGE, decoder=SEMI_LARGE),
}

WEIGHTS = Table(
  rules=(
    *SHARED_RULES,
    Rule("rec_loss_embeddings", "params/error_embeddings"),
    Rule("encoder_positional_embedding", "params/encoder/positions"),
    *norm_rules("encoder_ln_post_halt", "params/ln_post_halt"),
    *linear_rules("halting_mlp.{i}", "params/halting_{i}"),
    *linear_rules("decoder_embed", "params/decoder/embed"),
    Rule("decoder_latent_tokens_timestep_embed", "params/decoder/latent_positions"),
    *BASE_RULES,
  ),
  # What stage 2 trains against.
  ignore=(r"gan_losses\..*",),
)
