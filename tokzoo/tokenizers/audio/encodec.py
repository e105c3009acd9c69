"""EnCodec: SEANet between residual codebooks, 24 kHz causal, 48 kHz stereo, 32 kHz music.

Défossez et al., "High Fidelity Neural Audio Compression", arXiv 2210.13438; 32 kHz:
Copet et al., "Simple and Controllable Music Generation", arXiv 2306.05284. Written from what
facebookresearch/encodec and transformers' EncodecModel (5.23.0) compute; weights in either
one's names load. Both of torch's forms of weight norm are folded.

  audio   float32[B, T, C] in [-1, 1]
  tokens  ids [B, L, Q], L = ceil(T / hop); 48 kHz: the frames of all chunks, one after the
          other, and `scale` float32[B, S], the loudness of each of S chunks

At 48 kHz the audio is cut into chunks of a second that overlap by a hundredth. Each is divided
by the root mean square of its mono mix, coded by itself (the norm over time sees the chunk
alone), and faded into its neighbours by triangular weights. The last chunk has the frames that
its samples need, so that L and S say how long each one is.

Losses in training: `commitment`, the mean over the codebooks in use. Rng streams in training:
`quantizer` (bit rate) and `codebook` (k-means, dead codes).

Differences from the source: see `tokzoo.nn.seanet` and `tokzoo.tokenizers.audio.codebooks`;
several chunks are computed as one batch; the entropy-coding language model is not here.
"""

import bisect
import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.errors import TokzooError
from tokzoo.nn.seanet import Decoder, Encoder, SEANet, seanet_rules
from tokzoo.nn.streaming import Stream
from tokzoo.quantizers import ChosenDropout
from tokzoo.tokenizers.audio.codebooks import ema_residual, ema_rules
from tokzoo.tokenizers.audio.streams import StreamState, check_piece, first_state
from tokzoo.tokenizers.audio.waves import check_encode, of_length, read_ids
from tokzoo.tokens import Tokens
from tokzoo.weights import Table, WeightNorm

_TOGETHER = 8
"""Chunks that are computed at once."""


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the codec; the defaults are those of encodec-24khz."""

  sample_rate_hz: int = 24_000
  """Samples a second."""
  net: SEANet = dataclasses.field(default_factory=SEANet)
  """Encoder and decoder."""
  num_codebooks: int = 32
  """Q at most."""
  num_codes: int = 1024
  """K of each codebook."""
  bandwidths_kbps: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)
  """Published bit rates; training draws from them."""
  chunk: int | None = None
  """Samples of a chunk; None: the audio is one piece."""
  stride: int | None = None
  """Samples from one chunk to the next."""
  is_normalized: bool = False
  """Chunks are divided by their loudness, which is kept as `scale`."""
  reset_below: float | None = 2.0
  """In training, tokens a step below which a code starts anew; None: never."""

  def __post_init__(self):
    if (self.chunk is None) != (self.stride is None):
      raise TokzooError("chunks need both a length and a stride: set both or neither.")
    if self.chunk is not None and self.stride is not None:
      decoded = self.hop * -(-self.chunk // self.hop)
      if not self.is_normalized or not self.stride <= decoded <= 2 * self.stride:
        raise TokzooError(
          f"chunks of {self.chunk} samples every {self.stride} need is_normalized (the scales "
          "say how many there are), and to overlap by no more than one stride."
        )

  @property
  def channels(self) -> int:
    """C."""
    return self.net.channels

  @property
  def hop(self) -> int:
    """Samples a frame."""
    return self.net.hop

  @property
  def is_causal(self) -> bool:
    """Whether it can stream."""
    return self.net.is_causal and self.net.norm == "none" and not self.is_normalized

  @property
  def rates_kbps(self) -> dict[float, int]:
    """Published bit rate -> codebooks."""
    bits = math.log2(self.num_codes) * math.ceil(self.sample_rate_hz / self.hop)
    return {
      rate: max(1, math.floor(1000 * rate / bits)) for rate in self.bandwidths_kbps
    }

  def build(self) -> "EnCodec":
    return EnCodec(self)

  def frames(self, samples: int) -> tuple[int, ...]:
    """Frames of each chunk of so many samples."""
    if self.chunk is None or self.stride is None:
      return (-(-samples // self.hop),)
    starts = range(0, samples, self.stride)
    return tuple(-(-min(self.chunk, samples - s) // self.hop) for s in starts)

  def frames_of(self, total: int, chunks: int) -> tuple[int, ...]:
    """Frames of each of so many chunks that have `total` together.

    Raises:
      TokzooError: no audio has these.
    """
    if self.stride is None:
      return (total,)
    # Only the last two chunks depend on the length, and their frames grow with it.
    tail = min(chunks, 2)
    before = self.frames(self.stride * (chunks - tail + 1))[:-1]
    lengths = range((tail - 1) * self.stride + 1, tail * self.stride + 1)
    least = bisect.bisect_left(
      lengths, total - sum(before), key=lambda samples: sum(self.frames(samples))
    )
    for samples in lengths[least : least + 1]:
      found = before + self.frames(samples)
      if sum(found) == total:
        return found
    raise TokzooError(
      f"{total} frames are not those of {chunks} chunks: the scale belongs to other tokens."
    )


class EnCodec(nn.Module):
  """The codec (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    c = self.config
    self.encoder = Encoder(c.net)
    self.quantizer = ema_residual(
      c.num_codebooks,
      c.num_codes,
      c.net.dim,
      reset_below=c.reset_below,
      dropout=ChosenDropout(tuple(c.rates_kbps.values())),
    )
    self.decoder = Decoder(c.net)

  def encode(
    self,
    x: Float[Array, "B T C"],
    *,
    num_codebooks: int | None = None,
    num_tokens: int | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """Audio in [-1, 1] to ids [B, L, Q], with `scale` if chunks are normalised.

    Args:
      x: audio of any length.
      num_codebooks: Q, see `Config.rates_kbps`; None: all.
      num_tokens: L, only to insist on it.
      rng: not used.

    Raises:
      TokzooError: another number of channels, no samples, or codebooks or tokens that the
        model does not make.
    """
    frames = sum(self.config.frames(x.shape[1]))
    check_encode(
      x.shape,
      self.config.channels,
      frames,
      num_codebooks,
      self.config.num_codebooks,
      num_tokens,
    )
    z, scale = self.latents(x)
    return self._tokens(self.quantizer(z, num_levels=num_codebooks), scale)

  def decode(
    self, tokens: Tokens, *, rng: PRNGKeyArray | None = None
  ) -> Float[Array, "B T C"]:
    """Ids to audio, not clipped: hop samples a frame; 48 kHz: as far as the last chunk goes.

    Raises:
      TokzooError: tokens of another kind, codebook or number of codebooks, or without the
        scale of their chunks.
    """
    c = self.config
    ids = read_ids(tokens, c.num_codes, c.num_codebooks)
    if (tokens.scale is None) == c.is_normalized:
      has = "no scale" if tokens.scale is None else "a scale"
      raise TokzooError(
        f"these tokens have {has}, which this codec {'needs' if c.is_normalized else 'has not'}"
        ": decode with the codec that made them."
      )
    chunks = 1 if tokens.scale is None else tokens.scale.shape[1]
    frames = c.frames_of(ids.shape[1], chunks)
    return self.audio(self.quantizer.ids_to_codes(ids), tokens.scale, frames)

  def __call__(
    self,
    x: Float[Array, "B T C"],
    train: bool = False,
    num_codebooks: int | None = None,
  ) -> Output:
    """Reconstructs audio at its own length.

    Args:
      x: audio in [-1, 1].
      train: codebooks move, and the bit rate is drawn unless it is given.
      num_codebooks: Q; None: all, or drawn in training.
    """
    c = self.config
    frames = c.frames(x.shape[1])
    check_encode(x.shape, c.channels, sum(frames), num_codebooks, c.num_codebooks, None)
    z, scale = self.latents(x)
    quantized = self.quantizer(z, train=train, num_levels=num_codebooks)
    audio = self.audio(quantized.values.astype(z.dtype), scale, frames)
    return Output(
      reconstruction=of_length(audio, x.shape[1]).astype(jnp.float32),
      tokens=self._tokens(quantized, scale),
      losses=quantized.losses,
      stats=quantized.stats,
    )

  def latents(
    self, x: Float[Array, "B T C"]
  ) -> tuple[Float[Array, "B L D"], Float[Array, "B S"] | None]:
    """What the codebooks quantize, chunk after chunk, and the scale of each chunk."""
    c = self.config
    if c.chunk is None or c.stride is None:
      z, scale = self._encode_chunks(x[:, None])
      return z[:, 0], scale
    full = len([s for s in range(0, x.shape[1], c.stride) if s + c.chunk <= x.shape[1]])
    parts, scales = [], []
    if full:
      at = np.arange(full)[:, None] * c.stride + np.arange(c.chunk)[None]
      z, scale = self._encode_chunks(x[:, at])
      parts.append(z.reshape(len(x), -1, z.shape[-1]))
      scales.append(scale)
    for start in range(full * c.stride, x.shape[1], c.stride):
      z, scale = self._encode_chunks(x[:, None, start : start + c.chunk])
      parts.append(z[:, 0])
      scales.append(scale)
    return jnp.concatenate(parts, axis=1), jnp.concatenate(scales, axis=1)

  def audio(
    self,
    codes: Float[Array, "B L D"],
    scale: Float[Array, "B S"] | None,
    frames: tuple[int, ...],
  ) -> Float[Array, "B T C"]:
    """Codes of all chunks to audio: each decoded, scaled and faded into its neighbours.

    Args:
      codes: quantized latents.
      scale: of each chunk.
      frames: of each chunk, L together.
    """
    c = self.config
    if len(frames) == 1:
      audio = self.decoder(codes)
      return audio if scale is None else audio.astype(jnp.float32) * scale[:, :, None]
    assert scale is not None and c.stride is not None
    most = frames[0]
    full = frames.count(most)
    whole = codes[:, : full * most].reshape(len(codes), full, most, -1)
    parts = [self._decode_chunks(whole)]
    start = full * most
    for count in frames[full:]:
      part = self._decode_chunks(codes[:, None, start : start + count])
      missing = (most - count) * c.hop
      parts.append(jnp.pad(part, ((0, 0), (0, 0), (0, missing), (0, 0))))
      start += count
    chunks = jnp.concatenate(parts, axis=1).astype(jnp.float32)
    chunks = chunks * scale[:, :, None, None]
    return _overlap_add(chunks, [f * c.hop for f in frames], c.stride)

  def init_state(self, batch_size: int) -> StreamState:
    """The state of a stream before its first piece, for `encode_step` and `decode_step`.

    The first piece must hold `first_hops` hops, since reflection at the start looks ahead.

    Raises:
      TokzooError: the model is not causal.
    """
    return first_state(self.config.net, batch_size)

  def encode_step(
    self,
    state: StreamState,
    x: Float[Array, "B T C"],
    *,
    num_codebooks: int | None = None,
  ) -> tuple[StreamState, Tokens]:
    """The next piece of audio to its tokens: those that the whole would have there.

    Args:
      state: of `init_state` or of the step before.
      x: a whole number of hops.
      num_codebooks: Q; None: all.

    Raises:
      TokzooError: not a whole number of hops, too few at first, or another batch size.
    """
    c = self.config
    check_encode(
      x.shape, c.channels, x.shape[1] // c.hop, num_codebooks, c.num_codebooks, None
    )
    check_piece(state, state.encoder, len(x), x.shape[1], c.hop, "samples")
    stream = Stream(state.encoder)
    z = self.encoder(x, stream)
    tokens = self._tokens(self.quantizer(z, num_levels=num_codebooks), None)
    return state.replace(encoder=stream.memory), tokens

  def decode_step(
    self, state: StreamState, tokens: Tokens
  ) -> tuple[StreamState, Float[Array, "B T C"]]:
    """The next tokens to their audio, hop samples a frame.

    Raises:
      TokzooError: tokens that are not this codec's, too few at first, another batch size.
    """
    c = self.config
    ids = read_ids(tokens, c.num_codes, c.num_codebooks)
    check_piece(state, state.decoder, len(ids), ids.shape[1], 1, "frames")
    stream = Stream(state.decoder)
    audio = self.decoder(self.quantizer.ids_to_codes(ids), stream)
    return state.replace(decoder=stream.memory), audio

  def _encode_chunks(
    self, x: Float[Array, "B S T C"]
  ) -> tuple[Float[Array, "B S L D"], Float[Array, "B S"] | None]:
    """Chunks of one length to latents and scales."""
    scale = None
    if self.config.is_normalized:
      mono = jnp.mean(x.astype(jnp.float32), axis=-1)
      scale = jnp.sqrt(jnp.mean(jnp.square(mono), axis=-1)) + 1e-8
      x = (x / scale[:, :, None, None]).astype(x.dtype)
    return self._by_parts(self.encoder, x), scale

  def _decode_chunks(self, codes: Float[Array, "B S L D"]) -> Float[Array, "B S T C"]:
    return self._by_parts(self.decoder, codes)

  def _by_parts(
    self, network: nn.Module, x: Float[Array, "B S T C"]
  ) -> Float[Array, "B S t D"]:
    """A network over chunks, a few at once: an hour does not need an hour's memory."""
    flat = x.reshape(-1, *x.shape[2:])
    if len(flat) <= _TOGETHER or self.is_initializing():
      y = network(flat)
    else:
      missing = -len(flat) % _TOGETHER
      groups = jnp.pad(flat, ((0, missing), (0, 0), (0, 0)), mode="edge")
      groups = groups.reshape(-1, _TOGETHER, *flat.shape[1:])
      alone, variables = network.clone(parent=None), network.variables
      y = jax.lax.map(lambda group: alone.apply(variables, group), groups)
      y = y.reshape(-1, *y.shape[2:])[: len(flat)]
    return y.reshape(*x.shape[:2], *y.shape[1:])

  def _tokens(self, quantized: Quantized, scale: Array | None) -> Tokens:
    ids = jax.lax.stop_gradient(quantized.ids)
    return Tokens.from_ids(ids, self.config.num_codes, scale=scale)


def _overlap_add(
  chunks: Float[Array, "B S t C"], lengths: list[int], stride: int
) -> Float[Array, "B T C"]:
  """Chunks at every `stride` samples, the mean of those at a place by triangular weights.

  Args:
    chunks: filled up to one length with zeros.
    lengths: of each, without what fills them up.
    stride: at least half of the length.
  """
  count, length = chunks.shape[1:3]
  ramp = np.linspace(0, 1, length + 2, dtype=np.float32)[1:-1]
  triangle = 0.5 - np.abs(ramp - 0.5)
  inside = np.arange(length)[None] < np.asarray(lengths)[:, None]
  weights = (triangle[None] * inside)[None, :, :, None]

  def laid(x):
    """Each chunk's first `stride` samples, and the rest over the next chunk's start."""
    rest = ((0, 0), (0, 1), (0, 2 * stride - length), (0, 0))
    now, late = x[:, :, :stride], jnp.pad(x[:, :, stride:], rest)
    now = jnp.pad(now, ((0, 0), (0, 1), (0, 0), (0, 0)))
    both = now + jnp.pad(late[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    return both.reshape(len(x), (count + 1) * stride, -1)

  end = stride * (count - 1) + lengths[-1]
  total = laid(jnp.asarray(weights))[:, :end]
  return laid(chunks * weights)[:, :end] / total


_MUSIC = SEANet(
  channels=2,
  is_causal=False,
  norm="time_group",
  ratios=(8, 5, 4, 2),
  dim=128,
  filters=32,
)

PRESETS = {
  "encodec-24khz": Config(),
  "encodec-48khz": Config(
    sample_rate_hz=48_000,
    net=_MUSIC,
    num_codebooks=16,
    bandwidths_kbps=(3.0, 6.0, 12.0, 24.0),
    chunk=48_000,
    stride=47_520,
    is_normalized=True,
  ),
  "encodec-32khz": Config(
    sample_rate_hz=32_000,
    net=SEANet(filters=64, ratios=(8, 5, 4, 4), is_causal=False, true_skip=True),
    num_codebooks=4,
    num_codes=2048,
    bandwidths_kbps=(2.2,),
  ),
}

_HF = (
  *seanet_rules("encoder", "params/encoder", "hf"),
  *seanet_rules("decoder", "params/decoder", "hf"),
  *ema_rules("quantizer"),
)
_ORIGINAL = (
  *seanet_rules("encoder", "params/encoder", "original"),
  *seanet_rules("decoder", "params/decoder", "original"),
  *ema_rules("quantizer.vq", form="original"),
)

# transformers' names first: what is written has them.
WEIGHTS = Table(
  rules=_HF + _ORIGINAL,
  steps=(
    WeightNorm(weights=r"(en|de)coder\..*conv\.weight", unless=r".*\.norm\.weight"),
  ),
)
