"""ALIT: an image as 32, 64, ... 256 tokens, grown by a recurrent encoder (before KARL).

Duggal et al., "Adaptive Length Image Tokenization via Recurrent Allocation", arXiv 2411.02393.
Written from what ShivamDuggal4/adaptive-length-tokenizer @ 8c0b4ec computes
(`adaptive_tokenizers/adaptive_{vqgan,vae}.py`), which has no licence: no line is taken over.
Its weights are linked in its README (Dropbox), not on a hub.

  image   float32[B, S, S, C] in [-1, 1] with S = image_size
  tokens  ids [B, L] with a mask [B, L]: a prefix, 32 n tokens after n rollouts. Every rollout
          makes all its tokens anew: those of n are not the first of n + 1

A rollout passes class token, image and latents through one encoder, quantizes all latents and
decodes them. Then 32 fresh latents join the state, and a layer norm passes over all of it. An
image token whose code the decoder predicts with a probability of at least 0.55 may drop out
of the recurrence: with that probability a mask token takes its place. How many tokens an image
needs is found by looking: those of the first rollout with a mean |difference| below 0.07, of
pixels in [0, 1].

Quirks of the published weights, kept:
- the base's latents come before the patches (after them in KARL), and each place is scaled to
  unit length;
- the tables of the encoder's and the decoder's tokens are scaled by the encoder's width;
- with a KL-VAE base nothing drops out: the source writes its mask to a copy.

Differences from the source: images of a batch choose their lengths apart, where the source
takes the mean over the batch; after the last rollout nothing drops out, since nothing reads
the state again. Without a key the likelier outcome is taken in place of a draw: all above the
threshold drop out.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.errors import TokzooError
from tokzoo.nn.prefix import prefix_mask
from tokzoo.nn.vit import LayerNorm, ViT, dense
from tokzoo.quantizers.gradients import unit
from tokzoo.tokenizers.image import maskgit_vqgan
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


@dataclasses.dataclass(frozen=True)
class ALITConfig(Sizes):
  """Sizes of the tokenizer; the defaults are those of alit_small on a VQGAN.

  `num_tokens` is that of the last rollout."""

  tokens_per_rollout: int = 32
  """Fresh latents of each rollout; `num_tokens` is a multiple."""
  dropping_threshold: float = 0.55
  """Probability of an image token's own code from which it may drop out."""

  @property
  def rollouts(self) -> int:
    """How often the encoder runs at most."""
    return self.num_tokens // self.tokens_per_rollout

  @property
  def mask_bits(self) -> float:
    """Bits that say how many rollouts an image has."""
    return math.log2(self.rollouts)

  def build(self) -> "ALIT":
    return ALIT(self)


class Encoder(nn.Module):
  """One transformer, run once a rollout over a state that grows."""

  config: ALITConfig

  def setup(self):
    c, size = self.config, self.config.encoder
    init, table = scaled_normal(size.width), (c.side**2 + 1, size.width)
    self.patches = Patches(c)
    self.positions = self.param("positions", init, table)
    self.class_embedding = self.param("class_embedding", init, (1, size.width))
    self.mask_token = self.param("mask_token", init, (1, 1, size.width))
    self.ln_pre = LayerNorm()
    self.ln_recursive = LayerNorm()
    self.transformer = ViT(size.layers, size.heads, c.mlp_ratio, c.init_std)

  def start(
    self,
    image: Float[Array, "B H W C"],
    seen: Float[Array, "B P c"],
    fresh: Float[Array, "K D"],
  ) -> Float[Array, "B S D"]:
    """The first state, of an image in [0, 1] and the first latents."""
    patches = self.patches(image)
    places = unit(jnp.concatenate([seen.astype(patches.dtype), patches], axis=-1))
    one = _rows(self.class_embedding, len(image)).astype(places.dtype)
    x = jnp.concatenate([one, places.astype(one.dtype)], axis=1) + self.positions[None]
    return self.ln_pre(jnp.concatenate([x, _rows(fresh, len(image))], axis=1))

  def __call__(self, state: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """One rollout."""
    return self.transformer(state)

  def drop(
    self, state: Float[Array, "B S D"], dropped: Bool[Array, "B P"]
  ) -> Float[Array, "B S D"]:
    """Image tokens that drop out are mask tokens from here on."""
    mask = self.mask_token + self.positions[None, 1:]
    last = 1 + dropped.shape[1]
    places = state[:, 1:last]
    where = jnp.broadcast_to(dropped[..., None], places.shape)
    places = jnp.where(where, jnp.broadcast_to(mask, places.shape), places)
    return jnp.concatenate([state[:, :1], places, state[:, last:]], axis=1)

  def grow(
    self, state: Float[Array, "B S D"], fresh: Float[Array, "K D"]
  ) -> Float[Array, "B S+K D"]:
    """The next state: more latents, and a norm over everything."""
    return self.ln_recursive(jnp.concatenate([state, _rows(fresh, len(state))], axis=1))


class Decoder(nn.Module):
  """Codes, of which only those that are kept are seen -> predictions of all places."""

  config: ALITConfig

  @nn.compact
  def __call__(
    self, codes: Float[Array, "B L c"], kept: Bool[Array, "*B L"] | None = None
  ) -> Float[Array, "B P V"]:
    c, size = self.config, self.config.decoder
    init = scaled_normal(c.encoder.width)
    one = self.param("class_embedding", init, (1, size.width))
    table = self.param("positions", init, (c.side**2 + 1, size.width))
    mask_token = self.param("mask_token", init, (1, 1, size.width))
    rows = self.param(
      "latent_positions", scaled_normal(size.width), (c.num_tokens, size.width)
    )
    latents = (
      dense(size.width, c.init_std, name="embed")(codes) + rows[None, : codes.shape[1]]
    )
    grid = jnp.broadcast_to(mask_token[0], (c.side**2, size.width))
    places = jnp.concatenate([one, grid]) + table
    trunk = Trunk(size, c.outputs, c.mlp_ratio, c.init_std, name="trunk")
    return trunk(places, latents, kept, skip=1)


@struct.dataclass
class Rollout:
  """What one rollout comes to.

  latents:     float[B, L, D], the encoder's output
  places:      float[B, P, D], its output for the image, before any drops out
  quantized:   values, ids, losses
  prediction:  float[B, P, V], for the base
  """

  latents: Float[Array, "B L D"]
  places: Float[Array, "B P D"]
  quantized: Quantized
  prediction: Float[Array, "B P V"]


class ALIT(OnBase):
  """The tokenizer (contract: `tokzoo.contract.Tokenizer`)."""

  config: ALITConfig

  def setup(self):
    c = self.config
    if c.num_tokens % c.tokens_per_rollout:
      raise TokzooError(
        f"{c.num_tokens} tokens do not come in rollouts of {c.tokens_per_rollout}: choose a "
        "multiple."
      )
    width, fresh = c.encoder.width, (c.tokens_per_rollout, c.encoder.width)
    init = scaled_normal(width)
    self.latent_tokens = self.param("latent_tokens", init, fresh)
    self.latent_positions = self.param("latent_positions", init, fresh)
    self.rollout_embedding = self.param("rollout_embedding", init, (c.rollouts, *fresh))
    self.encoder = Encoder(c)
    self.ln_post = LayerNorm()
    self.to_code = dense(c.code_dim, c.init_std)
    if c.quantizer == "vq":
      self.codebook = make_codebook(c)
    self.decoder = Decoder(c)
    self.set_base(c.base, c.patch, c.channels)

  def encode(
    self,
    x: Float[Array, "B H W C"],
    *,
    num_tokens: int | None = None,
    error: float | Float[Array, "B"] = 0.07,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """Images in [-1, 1] to tokens.

    Args:
      x: images of the model's size.
      num_tokens: so many for every image, a multiple of `tokens_per_rollout`; None: as many
        as the first rollout has whose error is good enough, or the best one.
      error: mean |difference| of pixels in [0, 1] that is good enough, of all images or of
        each.
      rng: of the image tokens that drop out, and of the draw of a KL-VAE base.

    Returns:
      Tokens [B, num_tokens] with a mask: a prefix for each image.

    Raises:
      TokzooError: another size or number of channels, a number of tokens that no rollout has,
        or an error below zero.
    """
    c = self.config
    check_images(c, x.shape)
    check_error(error)
    glance = self.base.look(x, rng)
    if num_tokens is not None:
      count = self._count(num_tokens)
      last = self.rollouts(x, glance, count, self._draws(rng, glance))[-1]
      everything = jnp.ones((len(x), num_tokens), bool)
      return to_tokens(c, last.quantized.ids, everything)
    every = self.rollouts(x, glance, c.rollouts, self._draws(rng, glance))
    return self._choose(x, every, error)[0]

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
    self._count(tokens.length)
    codes = (
      tokens.array if tokens.ids is None else self.codebook.ids_to_codes(tokens.ids)
    )
    return self.paint(codes.astype(self.latent_tokens.dtype), tokens.mask)

  def __call__(
    self,
    x: Float[Array, "B H W C"],
    train: bool = False,
    error: float | Float[Array, "B"] = 0.07,
  ) -> Output:
    """Reconstructs images from as many tokens as each needs (see `encode`).

    Losses in training: `commitment` and `codebook`, means over the rollouts. The published
    objectives are tasks of their own (`alit_stages.py`).
    """
    check_images(self.config, x.shape)
    every = self.rollouts(x, self.base.look(x), self.config.rollouts, train=train)
    tokens, shown = self._choose(x, every, error)
    losses = [rollout.quantized.losses for rollout in every]
    return Output(
      reconstruction=shown.astype(jnp.float32),
      tokens=tokens,
      losses=jax.tree.map(lambda *each: jnp.stack(each).mean(), *losses),
      stats=jax.tree.map(
        lambda *each: jnp.stack(each).sum(0),
        *(rollout.quantized.stats for rollout in every),
      ),
    )

  def rollouts(
    self,
    x: Float[Array, "B H W C"],
    glance: Glance,
    count: int,
    draws: Float[Array, "R B P"] | None = None,
    train: bool = False,
  ) -> list[Rollout]:
    """The first rollouts, each decoded.

    Args:
      x: images in [-1, 1].
      glance: what the base sees in them.
      count: how many rollouts.
      draws: uniform numbers, one for each rollout and place; a place drops out where its
        number is below its probability. None: zeros.
      train: whether losses are computed.
    """
    found: list[Rollout] = []
    state = self.encoder.start((x + 1) / 2, glance.latents, self._fresh(0))
    for i in range(count):
      state = self.encoder(state)
      latents = state[:, 1 + self.config.side**2 :]
      quantized, prediction = self.read(latents, None, train)
      places = state[:, 1 : 1 + self.config.side**2]
      found.append(Rollout(latents, places, quantized, prediction))
      if i < count - 1:
        dropped = self._dropped(prediction, glance, None if draws is None else draws[i])
        if dropped is not None:
          state = self.encoder.drop(state, dropped)
        state = self.encoder.grow(state, self._fresh(i + 1))
    return found

  def latents_after(
    self, x: Float[Array, "B H W C"], glance: Glance, rollout: Int[Array, ""]
  ) -> tuple[Float[Array, "B L D"], Bool[Array, "L"]]:
    """Latents of one rollout, which is known when it runs, among `num_tokens` places.

    Nothing drops out before: in the source only a rollout that is decoded drops tokens, and
    its second stage decodes this one alone.
    """
    c = self.config
    state = self.encoder.start((x + 1) / 2, glance.latents, self._fresh(0))
    each = []
    for i in range(c.rollouts):
      state = self.encoder(state)
      latents = state[:, 1 + c.side**2 :]
      missing = c.num_tokens - latents.shape[1]
      each.append(jnp.pad(latents, ((0, 0), (0, missing), (0, 0))))
      if i < c.rollouts - 1:
        state = self.encoder.grow(state, self._fresh(i + 1))
    kept = prefix_mask((rollout + 1) * c.tokens_per_rollout, c.num_tokens)
    return jnp.stack(each)[rollout], kept

  def read(
    self,
    latents: Float[Array, "B L D"],
    kept: Bool[Array, "L"] | None = None,
    train: bool = False,
  ) -> tuple[Quantized, Float[Array, "B P V"]]:
    """Latents to codes and predictions, all of them or those that are kept."""
    factors = self.to_code(self.ln_post(latents))
    codebook = self.codebook if self.config.quantizer == "vq" else None
    quantized = quantize(codebook, factors, kept, train)
    return quantized, self.decoder(quantized.values.astype(latents.dtype), kept)

  def paint(
    self, codes: Float[Array, "B L c"], seen: Bool[Array, "*B L"] | None = None
  ) -> Float[Array, "B H W C"]:
    """Codes, all of them or those that are seen, to images in about [-1, 1]."""
    return self.image(self.decoder(codes, seen))

  def image(self, prediction: Float[Array, "B P V"]) -> Float[Array, "B H W C"]:
    """The picture of a prediction, in about [-1, 1]."""
    return self.base.image(self.base.code(prediction))

  def _fresh(self, rollout: int) -> Float[Array, "K D"]:
    return self.latent_tokens + self.latent_positions + self.rollout_embedding[rollout]

  def _dropped(
    self,
    prediction: Float[Array, "B P V"],
    glance: Glance,
    draws: Float[Array, "B P"] | None,
  ) -> Bool[Array, "B P"] | None:
    """The image tokens that drop out; None: the base has no codes to be sure of."""
    if not isinstance(self.config.base, maskgit_vqgan.Config):
      return None
    sure = jax.nn.softmax(jax.lax.stop_gradient(prediction).astype(jnp.float32))
    sure = jnp.take_along_axis(sure, glance.target[..., None], axis=-1)[..., 0]
    is_drawn = jnp.ones(sure.shape, bool) if draws is None else draws < sure
    return is_drawn & (sure >= self.config.dropping_threshold)

  def _draws(
    self, rng: PRNGKeyArray | None, glance: Glance
  ) -> Float[Array, "R B P"] | None:
    if rng is None:
      return None
    shape = (self.config.rollouts, *glance.latents.shape[:2])
    return jax.random.uniform(jax.random.fold_in(rng, 1), shape)

  def _choose(
    self, x: Array, every: list[Rollout], error: float | Array
  ) -> tuple[Tokens, Float[Array, "B H W C"]]:
    """Tokens and pictures of the first rollout that is good enough, or of the best."""
    c = self.config
    shown = jnp.stack([self.image(rollout.prediction) for rollout in every])
    distance = jnp.abs(shown - x[None]).astype(jnp.float32).mean((2, 3, 4)) / 2
    wished = jnp.broadcast_to(jnp.asarray(error, jnp.float32), (1, len(x)))
    is_enough = distance < wished
    chosen = jnp.where(
      is_enough.any(0), jnp.argmax(is_enough, axis=0), jnp.argmin(distance, axis=0)
    )
    ids = jnp.stack([_padded(r.quantized.ids, c.num_tokens) for r in every])
    rows = jnp.arange(len(x))
    mask = prefix_mask((chosen + 1) * c.tokens_per_rollout, c.num_tokens)
    return to_tokens(c, ids[chosen, rows], mask), shown[chosen, rows]

  def _count(self, num_tokens: int) -> int:
    """The rollouts that make so many tokens."""
    c = self.config
    if not 1 <= num_tokens <= c.num_tokens or num_tokens % c.tokens_per_rollout:
      raise TokzooError(
        f"{num_tokens} tokens were asked for or given, but this tokenizer makes "
        f"{c.tokens_per_rollout} a rollout, up to {c.num_tokens}: choose a multiple of "
        f"{c.tokens_per_rollout}."
      )
    return num_tokens // c.tokens_per_rollout


def _rows(tokens: Float[Array, "L D"], count: int) -> Float[Array, "B L D"]:
  """The same tokens for every image of the batch."""
  return jnp.broadcast_to(tokens[None], (count, *tokens.shape))


def _padded(ids: Array, length: int) -> Array:
  pad = [(0, 0), (0, length - ids.shape[1])] + [(0, 0)] * (ids.ndim - 2)
  return jnp.pad(ids, pad)


BASE, SEMI_LARGE = Size(768, 12, 12), Size(1024, 16, 16)

ALIT_PRESETS = {
  "alit-small-vqgan": ALITConfig(),
  "alit-base-vqgan": ALITConfig(encoder=BASE, decoder=BASE),
  "alit-semilarge-vqgan": ALITConfig(encoder=SEMI_LARGE, decoder=SEMI_LARGE),
  "alit-small-vqgan-continuous": ALITConfig(quantizer="none"),
  "alit-small-vae": ALITConfig(base=KLVAEConfig()),
  "alit-small-vae-continuous": ALITConfig(base=KLVAEConfig(), quantizer="none"),
}

ALIT_WEIGHTS = Table(
  rules=(
    *SHARED_RULES,
    Rule("latent_token_positional_embedding", "params/latent_positions"),
    Rule("timestep_embedding", "params/rollout_embedding"),
    Rule("encoder_positional_embedding", "params/encoder/positions"),
    Rule("encoder_class_embedding", "params/encoder/class_embedding"),
    Rule("encoder_mask_token", "params/encoder/mask_token"),
    *norm_rules("encoder_ln_recursive", "params/encoder/ln_recursive"),
    Rule("decoder_class_embedding", "params/decoder/class_embedding"),
    Rule(
      "decoder.latent_token_positional_embedding", "params/decoder/latent_positions"
    ),
    *linear_rules("decoder.decoder_embed", "params/decoder/embed"),
    *BASE_RULES,
  ),
  # What stage 2 trains against.
  ignore=(r"gan_losses\..*",),
)
