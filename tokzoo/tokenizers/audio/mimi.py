"""Mimi, Moshi's codec: causal SEANet and transformers, 12.5 frames a second, streaming.

Défossez et al., "Moshi: a speech-text foundation model for real-time dialogue", arXiv
2410.00037. Written from what transformers' MimiModel (5.23.0) and kyutai-labs/moshi compute;
weights in either one's names load.

  audio   float32[B, T, 1] in [-1, 1]
  tokens  ids [B, L, Q], L = ceil(T / hop): the semantic codebook first, then the acoustic ones;
          Moshi uses the first 8

Semantic and acoustic codebooks quantize the same latents, each kind between projections of its
own, and what they give is added. A code is the sum of its tokens over their number, at least
1e-5 of it. The latents of a last, broken frame follow transformers: zeros beyond the end of
each convolution, the last frame repeated before the stride to 12.5 Hz.

Losses in training: `commitment`, the mean over the codebooks in use. Features: `semantic` float32[B, L, D],
what the semantic codebook gives, to be distilled. Rng streams in training: `quantizer` (number
of acoustic codebooks; which items bypass quantization) and `codebook` (k-means, dead codes).

Differences from the source: see `tokzoo.nn.seanet`; moving averages are smoothed as in EnCodec
(1e-5 of a token a code) where the source divides by the number alone; an item bypasses
quantization as a whole, its projections included, where in the source each kind of codebooks draws
for itself, and its projections stay.
"""

import dataclasses
import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.nn.conv1d import CONV1D, POINTWISE1D
from tokzoo.nn.layers import merge_heads, split_heads
from tokzoo.nn.local_attention import sliding_attention
from tokzoo.nn.rotary import rotate_split_half
from tokzoo.nn.seanet import Conv, ConvTranspose, Decoder, Encoder, SEANet, seanet_rules
from tokzoo.nn.streaming import Stream
from tokzoo.quantizers import (
  Ema,
  KMeans,
  LevelDropout,
  PeriodicReset,
  Residual,
  VectorQuantizer,
)
from tokzoo.tokenizers.audio.codebooks import FLAG
from tokzoo.tokenizers.audio.streams import StreamState, check_piece, first_state
from tokzoo.tokenizers.audio.waves import (
  check_encode,
  of_length,
  possible_rates,
  read_ids,
)
from tokzoo.tokens import Tokens
from tokzoo.weights import LINEAR, Rule, Table, norm_rules

_NET = SEANet(
  dim=512,
  filters=64,
  ratios=(8, 6, 5, 4),
  last_kernel=3,
  pad_mode="zero",
  lstm_layers=0,
  true_skip=True,
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the codec; the defaults are the published ones."""

  sample_rate_hz: int = 24_000
  """Samples a second."""
  net: SEANet = _NET
  """Encoder and decoder."""
  downsample: int = 2
  """SEANet's frames to a frame of tokens."""
  layers: int = 8
  """Of each transformer."""
  heads: int = 8
  """Of attention."""
  hidden: int = 2048
  """Features inside a transformer's MLP."""
  window: int = 250
  """Frames of SEANet that attention sees."""
  layer_scale: float = 0.01
  """What scales each branch at first."""
  num_codebooks: int = 32
  """Q at most, the semantic ones included."""
  num_semantic: int = 1
  """Of these, how many are semantic."""
  num_codes: int = 2048
  """K of each codebook."""
  code_dim: int = 256
  """Features of a code."""
  bypass: float = 0.5
  """In training, the chance that an item is decoded from its latents as they are."""

  is_causal = True

  @property
  def channels(self) -> int:
    """C."""
    return self.net.channels

  @property
  def hop(self) -> int:
    """Samples a frame of tokens."""
    return self.net.hop * self.downsample

  @property
  def rates_kbps(self) -> dict[float, int]:
    """Possible bit rate -> codebooks."""
    rate = self.sample_rate_hz / self.hop
    rates = possible_rates(self.num_codebooks, self.num_codes, rate)
    return {kbps: q for kbps, q in rates.items() if q >= self.num_semantic}

  def build(self) -> "Mimi":
    return Mimi(self)


class Layer(nn.Module):
  """Causal attention over a sliding window, and an MLP, each scaled and added."""

  config: Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    position: Int[Array, ""] | int,
    stream: Stream | None,
  ) -> Float[Array, "B L D"]:
    c, features = self.config, x.shape[-1]
    scale = nn.initializers.constant(c.layer_scale)

    def dense(name: str, size: int = features) -> nn.Dense:
      return nn.Dense(size, use_bias=False, name=name)

    y = _norm("input_layernorm")(x)
    q, k, v = (
      split_heads(dense(f"{n}_proj")(y), features // c.heads) for n in ("q", "k", "v")
    )
    cos, sin = _rotation(position, x.shape[1], features // c.heads)
    q, k = rotate_split_half(q, cos, sin), rotate_split_half(k, cos, sin)
    if stream is None:
      y = sliding_attention(q, k, v, c.window)
    else:
      y = self._streamed(q, k, v, position, stream)
    y = dense("o_proj")(merge_heads(y))
    own = self.param("self_attn_layer_scale", scale, (features,))
    x = x + y * own[None, None].astype(y.dtype)
    y = dense("fc1", c.hidden)(_norm("post_attention_layernorm")(x))
    y = dense("fc2")(nn.gelu(y, approximate=False))
    own = self.param("mlp_layer_scale", scale, (features,))
    return checkpoint_name(x + y * own[None, None].astype(y.dtype), "block")

  def _streamed(
    self, q: Array, k: Array, v: Array, position: Int[Array, ""] | int, stream: Stream
  ) -> Array:
    """Attention with the last window - 1 keys and values of the past."""
    kept = self.config.window - 1
    if kept == 0:
      return sliding_attention(q, k, v, 1)
    past = stream.take(self)
    if past is None:
      nothing = jnp.zeros((len(k), kept, *k.shape[2:]), k.dtype)
      past = (nothing, nothing)
    k, v = (jnp.concatenate([a, b], axis=1) for a, b in zip(past, (k, v), strict=True))
    stream.leave(self, (k[:, -kept:], v[:, -kept:]))
    return sliding_attention(q, k, v, self.config.window, position)


def _norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def _rotation(
  position: Int[Array, ""] | int, length: int, head_dim: int
) -> tuple[Float[Array, "L d"], Float[Array, "L d"]]:
  """Cosines and sines from `position` on, in float32 as published."""
  places = jnp.arange(length, dtype=jnp.int32) + position
  exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  rates = jnp.asarray(1 / np.float32(10_000) ** exponents)
  angles = places.astype(jnp.float32)[:, None] * rates[None]
  angles = jnp.concatenate([angles, angles], axis=-1)
  return jnp.cos(angles), jnp.sin(angles)


class Transformer(nn.Module):
  """Layers without a norm at the end."""

  config: Config

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], stream: Stream | None = None
  ) -> Float[Array, "B L D"]:
    position = 0
    if stream is not None:
      position = stream.take(self)
      position = jnp.zeros((), jnp.int32) if position is None else position
      stream.leave(self, position + x.shape[1])
    for i in range(self.config.layers):
      x = Layer(self.config, name=f"layers_{i}")(x, position, stream)
    return x


class SplitQuantizer(nn.Module):
  """Residual codebooks between projections, twice over the same latents; the sum of both."""

  config: Config

  def setup(self):
    c = self.config
    update = Ema(decay=0.99, reset=PeriodicReset(), first_count=0.0)
    level = VectorQuantizer(c.num_codes, c.code_dim, update=update, start=KMeans(50))

    def residual(count: int, dropout: LevelDropout | None) -> Residual:
      levels = tuple(level.clone() for _ in range(count))
      return Residual(levels, gradient="mimi", dropout=dropout, mean_over="used")

    self.semantic = residual(c.num_semantic, None)
    self.acoustic = residual(c.num_codebooks - c.num_semantic, LevelDropout())
    self.has_projections = c.code_dim != c.net.dim
    if self.has_projections:
      self.semantic_in, self.acoustic_in = (
        nn.Dense(c.code_dim, use_bias=False, dtype=jnp.float32) for _ in range(2)
      )
      self.semantic_out, self.acoustic_out = (
        nn.Dense(c.net.dim, use_bias=False, dtype=jnp.float32) for _ in range(2)
      )

  def __call__(
    self,
    z: Float[Array, "B L D"],
    train: bool = False,
    num_codebooks: int | None = None,
  ) -> tuple[Quantized, Float[Array, "B L D"]]:
    """What both give together, and what the semantic codebook gives."""
    c = self.config
    project = self.has_projections
    first = self.semantic(self.semantic_in(z) if project else z, train=train)
    semantic = self.semantic_out(first.values) if project else first.values
    more = (num_codebooks or c.num_codebooks) - c.num_semantic
    if not more and not self.is_initializing():
      return dataclasses.replace(first, values=semantic), semantic
    rest = self.acoustic(
      self.acoustic_in(z) if project else z, train=train, num_levels=more or None
    )
    values = semantic + (self.acoustic_out(rest.values) if project else rest.values)
    # As many acoustic codebooks as were drawn, the same for the whole batch.
    used = jnp.sum(rest.ids[0, 0] >= 0).astype(jnp.float32)
    share = c.num_semantic / (c.num_semantic + used)
    losses = {
      name: share * loss + (1 - share) * rest.losses[name]
      for name, loss in first.losses.items()
    }
    stats = {
      name: jnp.concatenate([stat, rest.stats[name]])
      for name, stat in first.stats.items()
    }
    ids = jnp.concatenate([first.ids, rest.ids], axis=-1)
    return Quantized(values, ids, losses, stats), semantic

  def ids_to_codes(self, ids: Int[Array, "B L Q"]) -> Float[Array, "B L D"]:
    """The sum of the codes of ids, the first of them semantic."""
    c = self.config
    project = self.has_projections
    codes = self.semantic.ids_to_codes(ids[..., : c.num_semantic])
    codes = self.semantic_out(codes) if project else codes
    if ids.shape[-1] <= c.num_semantic:
      return codes
    rest = self.acoustic.ids_to_codes(ids[..., c.num_semantic :])
    return codes + (self.acoustic_out(rest) if project else rest)


class Mimi(nn.Module):
  """The codec (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    c = self.config
    kernel = 2 * c.downsample
    self.encoder = Encoder(c.net)
    self.encoder_transformer = Transformer(c)
    self.downsample = Conv(
      c.net, c.net.dim, kernel, c.downsample, use_bias=False, pad_mode="replicate"
    )
    self.quantizer = SplitQuantizer(c)
    self.upsample = ConvTranspose(
      c.net, c.net.dim, kernel, c.downsample, is_depthwise=True, use_bias=False
    )
    self.decoder_transformer = Transformer(c)
    self.decoder = Decoder(c.net)

  def encode(
    self,
    x: Float[Array, "B T 1"],
    *,
    num_codebooks: int | None = None,
    num_tokens: int | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """Audio in [-1, 1] to ids [B, L, Q].

    Args:
      x: audio of any length.
      num_codebooks: Q, at least the semantic ones; None: all (Moshi takes 8).
      num_tokens: L, only to insist on it.
      rng: not used.

    Raises:
      TokzooError: another number of channels, no samples, or codebooks or tokens that the
        model does not make.
    """
    self._check(x, num_codebooks, num_tokens)
    return self._tokens(self.quantizer(self.latents(x), False, num_codebooks)[0])

  def decode(
    self, tokens: Tokens, *, rng: PRNGKeyArray | None = None
  ) -> Float[Array, "B T 1"]:
    """Ids to audio, L * hop samples, not clipped. Deterministic: `rng` is not used.

    Raises:
      TokzooError: tokens of another kind, codebook or number of codebooks.
    """
    return self.audio(self.quantizer.ids_to_codes(self._ids(tokens)))

  def __call__(
    self,
    x: Float[Array, "B T 1"],
    train: bool = False,
    num_codebooks: int | None = None,
  ) -> Output:
    """Reconstructs audio at its own length.

    Args:
      x: audio in [-1, 1].
      train: codebooks move and drop out, and items bypass them.
      num_codebooks: Q; None: all.
    """
    self._check(x, num_codebooks, None)
    z = self.latents(x)
    quantized, semantic = self.quantizer(z, train, num_codebooks)
    values = quantized.values.astype(z.dtype)
    if train and self.config.bypass and not self.is_initializing():
      key = self.make_rng("quantizer")
      skips = jax.random.bernoulli(key, self.config.bypass, (len(x), 1, 1))
      values = jnp.where(skips, z, values)
    return Output(
      reconstruction=of_length(self.audio(values), x.shape[1]).astype(jnp.float32),
      tokens=self._tokens(quantized),
      losses=quantized.losses,
      stats=quantized.stats,
      features={"semantic": semantic},
    )

  def latents(
    self, x: Float[Array, "B T 1"], stream: Stream | None = None
  ) -> Float[Array, "B L D"]:
    """What the codebooks quantize."""
    z = self.encoder_transformer(self.encoder(x, stream), stream)
    return self.downsample(z, stream)

  def audio(
    self, codes: Float[Array, "B L D"], stream: Stream | None = None
  ) -> Float[Array, "B T 1"]:
    """Codes to audio."""
    z = self.decoder_transformer(self.upsample(codes, stream), stream)
    return self.decoder(z, stream)

  def init_state(self, batch_size: int) -> StreamState:
    """The state of a stream before its first piece, for `encode_step` and `decode_step`."""
    return first_state(self.config.net, batch_size)

  def encode_step(
    self,
    state: StreamState,
    x: Float[Array, "B T 1"],
    *,
    num_codebooks: int | None = None,
  ) -> tuple[StreamState, Tokens]:
    """The next piece of audio to its tokens: those that the whole would have there.

    Args:
      state: of `init_state` or of the step before.
      x: a whole number of hops.
      num_codebooks: Q; None: all.

    Raises:
      TokzooError: not a whole number of hops, or another batch size.
    """
    self._check(x, num_codebooks, None)
    hop = self.config.hop
    check_piece(state, state.encoder, len(x), x.shape[1], hop, "samples")
    stream = Stream(state.encoder)
    z = self.latents(x, stream)
    tokens = self._tokens(self.quantizer(z, False, num_codebooks)[0])
    return state.replace(encoder=stream.memory), tokens

  def decode_step(
    self, state: StreamState, tokens: Tokens
  ) -> tuple[StreamState, Float[Array, "B T 1"]]:
    """The next tokens to their audio, hop samples a frame.

    Raises:
      TokzooError: tokens that are not this codec's, or another batch size.
    """
    ids = self._ids(tokens)
    check_piece(state, state.decoder, len(ids), ids.shape[1], 1, "frames")
    stream = Stream(state.decoder)
    audio = self.audio(self.quantizer.ids_to_codes(ids), stream)
    return state.replace(decoder=stream.memory), audio

  def _check(self, x: Array, num_codebooks: int | None, num_tokens: int | None) -> None:
    c = self.config
    frames = -(-x.shape[1] // c.hop)
    check_encode(
      x.shape,
      c.channels,
      frames,
      num_codebooks,
      c.num_codebooks,
      num_tokens,
      c.num_semantic,
    )

  def _ids(self, tokens: Tokens) -> Int[Array, "B L Q"]:
    c = self.config
    return read_ids(tokens, c.num_codes, c.num_codebooks, c.num_semantic)

  def _tokens(self, quantized: Quantized) -> Tokens:
    ids = jax.lax.stop_gradient(quantized.ids)
    return Tokens.from_ids(ids, self.config.num_codes)


PRESETS = {"mimi": Config()}


@dataclasses.dataclass(frozen=True)
class KyutaiNames:
  """A step of the table: kyutai's names and layouts to transformers'.

  Queries, keys and values come apart, and pairs of neighbouring features, which kyutai turns
  together, become pairs of halves. A state in transformers' names passes unchanged, and is
  what is written.
  """

  heads: int

  def to_ours(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state in transformers' names."""
    named = {}
    for key, array in state.items():
      for pattern, name in _KYUTAI:
        key = re.sub(pattern, name, key)
      if not key.endswith("self_attn.in_proj_weight"):
        named[key] = array
        continue
      stem = key.removesuffix("in_proj_weight")
      for name, part in zip("qkv", np.split(array, 3), strict=True):
        turned = part.reshape(self.heads, -1, 2, part.shape[1]).swapaxes(1, 2)
        rows = part if name == "v" else turned.reshape(part.shape)
        named[f"{stem}{name}_proj.weight"] = rows
    return named

  def to_authors(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same: transformers' names are written."""
    return dict(state)


_KYUTAI = (
  (r"^(encoder|decoder)\.model\.", r"\1.layers."),
  (r"(conv|convtr)\.(conv|convtr)\.(conv|convtr)\.", "conv."),
  (r"(conv|convtr)\.(conv|convtr)\.", "conv."),
  (r"^(\w+_transformer)\.transformer\.", r"\1."),
  (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
  (r"\.linear([12])\.", r".mlp.fc\1."),
  (r"\.norm1\.", ".input_layernorm."),
  (r"\.norm2\.", ".post_attention_layernorm."),
  (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
  (r"\.layer_scale_2\.", ".mlp_layer_scale."),
  (r"^quantizer\.rvq_first\.(vq\.)?", "quantizer.semantic_residual_vector_quantizer."),
  (r"^quantizer\.rvq_rest\.(vq\.)?", "quantizer.acoustic_residual_vector_quantizer."),
  (r"\._codebook\.", ".codebook."),
  (r"\._initialized$", ".initialized"),
  (r"\.embedding_sum$", ".embed_sum"),
)


class MeanCodes:
  """A step of the table: the codes that sums and counts give, and how often they were reset.

  Neither is in a file; both are in ours.
  """

  def to_ours(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state with `embed` = embed_sum / max(cluster_usage, 1e-5) and `steps` = 0."""
    more = {}
    for key, sums in state.items():
      stem = key.removesuffix("embed_sum")
      if stem != key and f"{stem}cluster_usage" in state:
        counts = np.maximum(state[f"{stem}cluster_usage"], np.float32(1e-5))
        more[f"{stem}embed"] = sums / counts[:, None]
        more[f"{stem}steps"] = np.zeros((), np.int32)
    return {**state, **more}

  def to_authors(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state without them."""
    ending = (".codebook.embed", ".codebook.steps")
    return {key: array for key, array in state.items() if not key.endswith(ending)}


def _transformer_rules(name: str) -> tuple[Rule, ...]:
  key, path = f"{name}.layers.{{i}}", f"params/{name}/layers_{{i}}"
  norms = ("input_layernorm", "post_attention_layernorm")
  scales = ("self_attn_layer_scale", "mlp_layer_scale")
  return (
    Rule(f"{key}.self_attn.{{x}}_proj.weight", f"{path}/{{x}}_proj/kernel", LINEAR),
    Rule(f"{key}.mlp.fc{{n}}.weight", f"{path}/fc{{n}}/kernel", LINEAR),
    *(rule for norm in norms for rule in norm_rules(f"{key}.{norm}", f"{path}/{norm}")),
    *(Rule(f"{key}.{scale}.scale", f"{path}/{scale}") for scale in scales),
  )


def _quantizer_rules(kind: str) -> tuple[Rule, ...]:
  key = f"quantizer.{kind}_residual_vector_quantizer"
  book = f"{key}.layers.{{q}}.codebook"
  ours = f"codebook/quantizer/{kind}/levels_{{q}}"
  proj = f"params/quantizer/{kind}"
  return (
    Rule(f"{key}.input_proj.weight", f"{proj}_in/kernel", POINTWISE1D),
    Rule(f"{key}.output_proj.weight", f"{proj}_out/kernel", POINTWISE1D),
    Rule(f"{book}.embed", f"{ours}/codes"),
    Rule(f"{book}.embed_sum", f"{ours}/sums"),
    Rule(f"{book}.cluster_usage", f"{ours}/counts"),
    Rule(f"{book}.initialized", f"{ours}/is_started", FLAG),
    Rule(f"{book}.steps", f"{ours}/steps"),
  )


def weights(heads: int) -> Table:
  """The table of a model of so many heads (which kyutai's stacked weights do not tell)."""
  return Table(
    rules=(
      *seanet_rules("encoder", "params/encoder", "hf"),
      *seanet_rules("decoder", "params/decoder", "hf"),
      *_transformer_rules("encoder_transformer"),
      *_transformer_rules("decoder_transformer"),
      Rule("downsample.conv.weight", "params/downsample/kernel", CONV1D),
      Rule("upsample.conv.weight", "params/upsample/kernel", CONV1D),
      *_quantizer_rules("semantic"),
      *_quantizer_rules("acoustic"),
    ),
    steps=(KyutaiNames(heads), MeanCodes()),
  )


WEIGHTS = weights(Config().heads)
