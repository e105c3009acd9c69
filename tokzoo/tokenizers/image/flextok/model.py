"""FlexTok: an image as 1 to 256 ordered tokens, decoded by a rectified flow.

Bachmann et al., "FlexTok: Resampling Images into 1D Token Sequences of Flexible Length",
arXiv 2502.13967. Written from what apple/ml-flextok @ 87d00cc computes (`flextok/model/`,
`flextok/regularizers/quantize_fsq.py`, `flextok/flow_matching/`); weights on the hub:
EPFL-VILAB/flextok_{d12_d12_in1k,d18_d18_in1k,d18_d28_in1k,d18_d28_dfn}.

  image   float32[B, S, S, C] in [-1, 1] with S = image_size
  tokens  ids [B, k], 1 <= k <= K: the first k of what `encode` makes are an encoding, too

A frozen KL autoencoder (`vae.py`) makes latents of the image; without one the latents are the
pixels. Learned registers follow the patches of the latents through a transformer: patches see
patches, register i sees the patches and registers up to i, so that k tokens cost only k
registers. FSQ makes a token of each. The decoder predicts the velocity of noisy latents, with
the tokens beside the patches; those after the k-th are one learned vector (nested dropout),
and all of them another where guidance wants no condition. Decoding draws: it integrates from
noise to latents, guided, so what few tokens leave open is made up, not blurred.

Quirks of the published weights, kept: attention scores are scaled by 8 / head_dim; adaLN has
a set of six for patches and one for registers, gates first; the longest period of the time
embedding is 256; positions are buffers of the file; the vector of nested dropout replaces the
positions as well.

Differences from the source: `encode` takes the autoencoder's means unless it gets a key, so
that tokens are a function of the image; images have one size, so nothing is packed; training
without quantization for some samples and random corruption of tokens, options whose released
settings are not known, are not here; projections of guidance are float32, not float64.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from tokzoo.contract import Output
from tokzoo.errors import TokzooError
from tokzoo.nn.flow_matching import adaptive_projected, euler, logit_normal, noised
from tokzoo.nn.prefix import (
  Law,
  check_num_tokens,
  draw_length,
  prefix_mask,
  replace_tail,
)
from tokzoo.quantizers import FiniteScalar
from tokzoo.tokenizers.image.flextok.blocks import (
  DecoderBlock,
  EncoderBlock,
  causal_last,
  dense,
  from_patches,
  norm,
  sincos_table,
  time_waves,
  to_patches,
)
from tokzoo.tokenizers.image.flextok.vae import VAEConfig, check_square, vae_rules
from tokzoo.tokens import Tokens
from tokzoo.weights import LINEAR, Rule, Table, Transform, linear_rules

Guidance = Literal["apg", "cfg"]


@dataclasses.dataclass(frozen=True)
class Size:
  """Of one transformer."""

  width: int
  """Features; published: 64 times the layers."""
  layers: int
  """Blocks."""


D12, D18, D28 = Size(768, 12), Size(1152, 18), Size(1792, 28)


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the tokenizer; the defaults are those of d12-d12."""

  image_size: int = 256
  """Side in pixels of the images, the only one that the model takes."""
  channels: int = 3
  """Colour channels."""
  vae: VAEConfig | None = VAEConfig()  # noqa: RUF009
  """The autoencoder whose latents are tokenized; None: the latents are the pixels."""
  patch: int = 2
  """Side of a patch in latents."""
  num_tokens: int = 256
  """K, the most tokens of an image."""
  levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
  """Levels of each dimension of a code: 64,000 codes. A published file says its own, as it does
  for the next ones that name it (`metadata.py`)."""
  encoder: Size = D12
  """The encoder's transformer."""
  decoder: Size = D12
  """The decoder's transformer."""
  head_dim: int = 64
  """Features per attention head."""
  time_features: int = 256
  """Cosines and sines of the time."""
  max_time: float = 1.0
  """Times are multiplied by 1000 / max_time; a file says its own."""
  max_period: float = 256.0
  """Longest period of the time embedding over 2 pi, a constant of the source's code."""
  dropout: Law | None = "uniform"
  """Law of the number of tokens that are kept in training; None: all are. A file says its own."""
  null_rate: float = 0.2
  """Probability of training without tokens, for guidance; unverified, and a file says its own."""
  steps: int = 20
  """Of Euler's method in decoding, as in the source's README; its code's default is 25."""
  guidance: float = 7.5
  """Scale of the guidance in decoding; 1 is none."""
  guide_by: Guidance = "apg"
  """Adaptive projected guidance, or plain classifier-free guidance."""

  @property
  def latent_side(self) -> int:
    """Latents along each side."""
    return self.image_size if self.vae is None else self.vae.side

  @property
  def latent_channels(self) -> int:
    """Features of a latent."""
    return self.channels if self.vae is None else self.vae.latent_channels

  @property
  def side(self) -> int:
    """Patches along each side."""
    return self.latent_side // self.patch

  def build(self) -> "FlexTok":
    return FlexTok(self)


class Encoder(nn.Module):
  """Latents -> what is quantized."""

  config: Config

  @nn.compact
  def __call__(
    self, latents: Float[Array, "B H W C"], length: int | None = None
  ) -> Float[Array, "B k c"]:
    """The first `length` tokens; no token depends on a later one."""
    c, size = self.config, self.config.encoder
    patches = dense(size.width, "patch_proj")(to_patches(latents, c.patch))
    patches = patches + _positions(self, c.side, size.width).astype(patches.dtype)
    init = nn.initializers.normal(0.02)
    registers = self.param("registers", init, (c.num_tokens, size.width))[:length]
    rows = jnp.broadcast_to(registers, (len(patches), *registers.shape))
    x = jnp.concatenate([patches, rows.astype(patches.dtype)], axis=1)
    mask = causal_last(patches.shape[1], len(registers))
    for i in range(size.layers):
      x = EncoderBlock(c.head_dim, name=f"blocks_{i}")(x, mask)
    x = norm(name="norm")(x[:, patches.shape[1] :])
    return dense(len(c.levels), "proj", is_zero=True)(x)


class Decoder(nn.Module):
  """Codes and noisy latents -> velocity, and the patches behind every block."""

  config: Config

  @nn.compact
  def __call__(
    self,
    codes: Float[Array, "B K c"],
    x_t: Float[Array, "B H W C"],
    t: Float[Array, "B"],
    kept: Bool[Array, "*B K"] | None = None,
    is_null: Bool[Array, "B"] | None = None,
  ) -> tuple[Float[Array, "B H W C"], tuple[Float[Array, "B P D"], ...]]:
    """The velocity at time t.

    Args:
      codes: of all K tokens; what those not kept hold does not matter.
      x_t: noisy latents.
      t: times in [0, 1].
      kept: which tokens are; None: all.
      is_null: rows that see no token at all; None: none.
    """
    c, width = self.config, self.config.decoder.width
    normal = nn.initializers.normal(0.02)
    places = self.param("register_positions", normal, (c.num_tokens, width))
    masked = self.param("dropout_mask_token", normal, (width,))
    null = self.param("nullcond", normal, (width,))
    registers = dense(width, "from_latents")(codes) + places[None]
    if kept is not None:
      registers = replace_tail(registers, kept, masked)
    if is_null is not None:
      registers = jnp.where(is_null[:, None, None], null[None, None], registers)
    patches = dense(width, "patch_proj")(to_patches(x_t, c.patch))
    patches = patches + _positions(self, c.side, width).astype(patches.dtype)
    x = jnp.concatenate([patches, registers], axis=1)
    count = patches.shape[1]
    waves = time_waves(t, c.time_features, c.max_time, c.max_period).astype(x.dtype)
    time = dense(width, "time_1")(nn.silu(dense(width, "time_0")(waves)))
    seen = []
    for i in range(c.decoder.layers):
      x = DecoderBlock(c.head_dim, name=f"blocks_{i}")(x, time, count)
      seen.append(x[:, :count])
    modulation = dense(2 * width, "adaLN_modulation", is_zero=True)(nn.silu(time))
    shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
    x = norm(name="norm")(x[:, :count]) * (1 + scale) + shift
    x = dense(c.patch**2 * c.latent_channels, "proj", is_zero=True)(x)
    return from_patches(x, c.patch, c.side), tuple(seen)


class Flow(struct.PyTreeNode):
  """One training pass of the decoder.

  errors:    float32[B], mean squared error of the velocity
  clean:     the latents that the velocity points at, x_t - t v
  features:  patches behind every block, [B, P, D]
  """

  errors: Float[Array, "B"]
  clean: Float[Array, "B H W C"]
  features: tuple[Float[Array, "B P D"], ...]


class FlexTok(nn.Module):
  """The tokenizer (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    c = self.config
    if c.vae is not None:
      self.vae = c.vae.build()
    self.encoder = Encoder(c)
    self.decoder = Decoder(c)
    self.quantizer = FiniteScalar(c.levels)

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
      num_tokens: how many of the K tokens to make; they are the first of all K.
      rng: of a draw from the autoencoder's posterior, as in the source; None: its means.

    Raises:
      TokzooError: another size or number of channels, or a number of tokens that the model
        does not make.
    """
    c = self.config
    check_square(x.shape, c.image_size, c.channels)
    length = check_num_tokens(num_tokens, c.num_tokens)
    ids = self.quantizer(self.encoder(self.latents(x, rng), length)).ids
    return Tokens.from_ids(ids, self.quantizer.num_codes)

  def decode(
    self,
    tokens: Tokens,
    *,
    size: tuple[int, int] | None = None,
    rng: PRNGKeyArray | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    guide_by: Guidance | None = None,
  ) -> Float[Array, "B H W C"]:
    """Tokens to images in about [-1, 1] (not clipped).

    Args:
      tokens: of this layout: the first k of an image, or those that their `mask` keeps.
      size: height and width in pixels; there is only one that the model makes.
      rng: of the noise that decoding starts from; None: that of seed 0, so that the same
        tokens make the same images.
      steps: of Euler's method; None: the config's, as for the next two.
      guidance: scale; 1 is none and takes half the time.
      guide_by: "apg" or "cfg".

    Raises:
      TokzooError: tokens of another layout, ids out of range (where they can be read),
        another size, no steps, or guidance below 0.
    """
    c = self.config
    side = c.image_size
    check_square((tokens.batch, *(size or (side, side)), c.channels), side, c.channels)
    self._check_tokens(tokens)
    assert tokens.ids is not None
    room = ((0, 0), (0, c.num_tokens - tokens.length))
    codes = self.quantizer.ids_to_codes(jnp.pad(tokens.ids, room))
    kept = prefix_mask(tokens.length, c.num_tokens)
    if tokens.mask is not None:
      kept = jnp.pad(tokens.mask, room)
    shape = (tokens.batch, c.latent_side, c.latent_side, c.latent_channels)
    noise = jax.random.normal(jax.random.key(0) if rng is None else rng, shape)
    latents = self.sample_latents(
      codes, noise, kept, steps=steps, guidance=guidance, guide_by=guide_by
    )
    return self.to_image(latents)

  def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Output:
    """Reconstructs images.

    In training a random time of the flow is looked at, with tokens dropped (rng stream
    "bits"): the reconstruction is the estimate of the clean image from there, the loss
    `flow`, and the features `block_{i}` are the decoder's patches [B, P, D]. Otherwise the
    image is drawn from all tokens.
    """
    check_square(x.shape, self.config.image_size, self.config.channels)
    rng = self.make_rng("bits") if train else None
    latents = self.latents(x, None if rng is None else jax.random.fold_in(rng, 0))
    quantized = self.quantizer(self.encoder(latents.astype(x.dtype)), train=train)
    codes = quantized.values.astype(x.dtype)
    ids = jax.lax.stop_gradient(quantized.ids)
    tokens = Tokens.from_ids(ids, self.quantizer.num_codes)
    if self.is_initializing():
      # A loop of jax cannot make parameters: one look at the decoder makes them all.
      start = jnp.zeros(latents.shape, x.dtype)
      clean, _ = self.decoder(codes, start, jnp.ones(len(x)))
      return Output(self.to_image(clean), tokens, stats=quantized.stats)
    if rng is None:
      noise = jax.random.normal(jax.random.key(0), latents.shape)
      made = self.to_image(self.sample_latents(codes, noise))
      return Output(made.astype(jnp.float32), tokens, stats=quantized.stats)
    flow = self.flow(latents, codes, jax.random.fold_in(rng, 1), dropping=True)
    made = self.to_image(flow.clean.astype(x.dtype))
    features = {f"block_{i}": seen for i, seen in enumerate(flow.features)}
    return Output(
      reconstruction=made.astype(jnp.float32),
      tokens=tokens,
      losses={"flow": flow.errors.mean()},
      stats=quantized.stats,
      features=features,
    )

  def latents(
    self, x: Float[Array, "B H W C"], rng: PRNGKeyArray | None = None
  ) -> Float[Array, "B h w D"]:
    """What is tokenized: the autoencoder's latents, a draw with a key; or the pixels."""
    return x if self.config.vae is None else self.vae.latents(x, rng)

  def to_image(self, latents: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
    """The inverse of `latents`."""
    return latents if self.config.vae is None else self.vae.to_image(latents)

  def flow(
    self,
    latents: Float[Array, "B h w D"],
    codes: Float[Array, "B K c"],
    rng: PRNGKeyArray,
    kept: Bool[Array, "*B K"] | None = None,
    dropping: bool = False,
  ) -> Flow:
    """The decoder at random times.

    Args:
      latents: clean ones.
      codes: of their tokens.
      rng: of times and noise, and of what is dropped.
      kept: which tokens are; None: all, or drawn.
      dropping: whether to draw a prefix a row by the config's law, and to leave rows without
        condition.
    """
    c = self.config
    time_rng, noise_rng, length_rng, null_rng = jax.random.split(rng, 4)
    batch = len(latents)
    is_null = None
    if dropping:
      is_null = jax.random.bernoulli(null_rng, c.null_rate, (batch,))
      if c.dropout is not None:
        length = draw_length(length_rng, c.num_tokens, c.dropout, (batch,))
        kept = prefix_mask(length, c.num_tokens)
    # The path and its velocity are float32, whatever the model's dtype.
    clean = jax.lax.stop_gradient(latents.astype(jnp.float32))
    noise = jax.random.normal(noise_rng, clean.shape)
    t = logit_normal(time_rng, batch)
    x_t = noised(clean, noise, t)
    v, features = self.decoder(codes, x_t.astype(codes.dtype), t, kept, is_null)
    v = v.astype(jnp.float32)
    errors = jnp.square(v - (noise - clean)).mean((1, 2, 3))
    return Flow(errors, x_t - t[:, None, None, None] * v, features)

  def sample_latents(
    self,
    codes: Float[Array, "B K c"],
    noise: Float[Array, "B h w D"],
    kept: Bool[Array, "*B K"] | None = None,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    guide_by: Guidance | None = None,
  ) -> Float[Array, "B h w D"]:
    """Latents from noise; settings as of `decode`.

    Raises:
      TokzooError: no steps, or guidance below 0.
    """
    c = self.config
    steps = c.steps if steps is None else steps
    scale = c.guidance if guidance is None else guidance
    by = guide_by or c.guide_by
    _check_sampling(steps, scale, by)
    # A loop of jax calls a module that is not bound to an outer trace.
    module: Any
    module, variables = self.unbind()

    def predict(x, t, doubled: bool):
      both = jax.tree.map(lambda a: jnp.concatenate([a, a]), (codes, x, t))
      keep = None if kept is None else jnp.broadcast_to(kept, codes.shape[:2])
      if not doubled:
        return module.apply(variables, codes, x, t, keep, method="velocity")
      is_null = jnp.arange(2 * len(x)) >= len(x)
      keep = None if keep is None else jnp.concatenate([keep, keep])
      return module.apply(variables, *both, keep, is_null, method="velocity")

    def velocity(x, t, running):
      if scale == 1:
        return predict(x, t, False), running
      plain, null = jnp.split(predict(x, t, True), 2)
      if by == "apg":
        return adaptive_projected(plain, null, scale, running)
      return null + scale * (plain - null), running

    return euler(velocity, noise, steps, jnp.zeros_like(noise))

  def velocity(
    self,
    codes: Float[Array, "B K c"],
    x_t: Float[Array, "B h w D"],
    t: Float[Array, "B"],
    kept: Bool[Array, "*B K"] | None = None,
    is_null: Bool[Array, "B"] | None = None,
  ) -> Float[Array, "B h w D"]:
    """The decoder's velocity, float32; arguments as of `Decoder`."""
    return self.decoder(codes, x_t, t, kept, is_null)[0].astype(jnp.float32)

  def _check_tokens(self, tokens: Tokens) -> None:
    count = self.quantizer.num_codes
    if tokens.ids is None or tokens.ids.ndim != 2 or tokens.vocab != count:
      codes = "" if tokens.vocab is None else f" of {tokens.vocab} codes"
      raise TokzooError(
        f"this tokenizer reads ids [B, k] of {count} codes; these are {tokens.kind} "
        f"{list(tokens.array.shape)}{codes}: decode with the tokenizer that made them."
      )
    check_num_tokens(tokens.length, self.config.num_tokens)
    if not isinstance(tokens.ids, Tracer):
      tokens.check()


def _positions(module: nn.Module, side: int, width: int) -> Float[Array, "1 P D"]:
  """The table that the published files hold beside the parameters: never trained."""
  table = module.variable(
    "buffers", "positions", lambda: jnp.asarray(sincos_table(side, width))
  )
  return table.value.reshape(1, side**2, width)


def _check_sampling(steps: int, guidance: float, by: str) -> None:
  if steps < 1:
    raise TokzooError(f"decoding takes at least 1 step; {steps} came: pass 20 or so.")
  if not guidance >= 0:
    raise TokzooError(f"guidance is at least 0; it is {guidance}: pass 0 or more.")
  if by not in ("apg", "cfg"):
    raise TokzooError(f"guide_by is 'apg' or 'cfg'; {by!r} came: pass one of these.")


PRESETS = {
  "flextok-d12-d12-in1k": Config(),
  "flextok-d18-d18-in1k": Config(encoder=D18, decoder=D18),
  "flextok-d18-d28-in1k": Config(encoder=D18, decoder=D28),
  "flextok-d18-d28-dfn": Config(encoder=D18, decoder=D28),
}

_GRID = Transform(
  "[1, D, h, w] -> [h, w, D]",
  lambda x: x[0].transpose(1, 2, 0),
  lambda x: x.transpose(2, 0, 1)[None],
)
_LINE = Transform(
  "[1, 1, D, K] -> [K, D]", lambda x: x[0, 0].T, lambda x: x.T[None, None]
)


def _side_rules(side: str, short: str, positions: str) -> tuple[Rule, ...]:
  """What encoder and decoder have alike."""
  theirs, ours = f"{side}.module_dict.{short}", f"params/{side}"
  block, path = f"{theirs}_transformer.blocks.{{i}}", f"{ours}/blocks_{{i}}"
  return (
    Rule(f"{theirs}_{positions}.posembs", f"buffers/{side}/positions", _GRID),
    Rule(f"{block}.attn.{{x}}.weight", f"{path}/attn/{{x}}/kernel", LINEAR),
    Rule(f"{block}.mlp.fc1.weight", f"{path}/mlp/gate_proj/kernel", LINEAR),
    Rule(f"{block}.mlp.fc3.weight", f"{path}/mlp/up_proj/kernel", LINEAR),
    Rule(f"{block}.mlp.fc2.weight", f"{path}/mlp/down_proj/kernel", LINEAR),
  )


_ENC, _DEC = "encoder.module_dict.enc", "decoder.module_dict.dec"
_OURS = "params/decoder"

WEIGHTS = Table(
  rules=(
    *_side_rules("encoder", "enc", "posemb_module"),
    *linear_rules(f"{_ENC}_patch_emb.patch_proj", "params/encoder/patch_proj"),
    Rule(f"{_ENC}_register_module.registers", "params/encoder/registers"),
    *linear_rules(f"{_ENC}_to_latents.proj", "params/encoder/proj"),
    *_side_rules("decoder", "dec", "patches_posemb_module"),
    *linear_rules(f"{_DEC}_from_latents.proj", f"{_OURS}/from_latents"),
    Rule(
      f"{_DEC}_registers_posemb_module.posembs", f"{_OURS}/register_positions", _LINE
    ),
    Rule(f"{_DEC}_nested_dropout.dropout_mask_token", f"{_OURS}/dropout_mask_token"),
    Rule(f"{_DEC}_latent_dropout.nullcond", f"{_OURS}/nullcond"),
    *linear_rules(f"{_DEC}_noise_patch_emb.patch_proj", f"{_OURS}/patch_proj"),
    *linear_rules(f"{_DEC}_time_embedder.mlp.0", f"{_OURS}/time_0"),
    *linear_rules(f"{_DEC}_time_embedder.mlp.2", f"{_OURS}/time_1"),
    *linear_rules(
      f"{_DEC}_transformer.blocks.{{i}}.adaLN_modulation.1",
      f"{_OURS}/blocks_{{i}}/adaLN_modulation",
    ),
    *linear_rules(f"{_DEC}_to_patches.adaLN_modulation.1", f"{_OURS}/adaLN_modulation"),
    *linear_rules(f"{_DEC}_to_patches.proj", f"{_OURS}/proj"),
    *vae_rules("vae.vae.", "params/vae"),
  )
)
