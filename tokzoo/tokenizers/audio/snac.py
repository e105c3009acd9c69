"""SNAC: residual codebooks at several rates, the coarsest a quarter or an eighth as often.

Siuzdak et al., "SNAC: Multi-Scale Neural Audio Codec", arXiv 2410.14411. Written from what
hubertsiuzdak/snac @ f49016a (pip snac 1.2.1) computes.

  audio   float32[B, T, 1] in [-1, 1], filled up with zeros to whole frames, and with attention
          to whole windows of it
  tokens  ids [B, L, Q]: L frames of the coarsest codebook, each with all ids that lie in it,
          every id before those below it (depth first): for strides 4, 2, 1 one coarse id and
          c0 c1 c2 c2 c1 c2 c2, the order in which language models on SNAC write them

The residual is averaged over a codebook's stride, quantized as in DAC, and repeated. The rate
is fixed: no codebook can be left out.

Decoder blocks add noise in proportion to their input; `decode` draws it from `rng`, and
without one decodes with its mean, zero. Rng stream in training: `noise`.

Losses in training, sums over the codebooks as in DAC: `commitment` and `codebook`.

Differences from the source: see `tokzoo.nn.dac`. The authors published no training code.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.errors import TokzooError
from tokzoo.nn.dac import DACNet, Decoder, Encoder, SequentialNames, dac_rules
from tokzoo.quantizers import Projected, VectorQuantizer
from tokzoo.tokenizers.audio.codebooks import factorized_rules
from tokzoo.tokenizers.audio.waves import check_encode, of_length, pad_end, read_ids
from tokzoo.tokens import Tokens
from tokzoo.weights import Table, WeightNorm

_NET = DACNet(
  encoder_dim=48,
  rates=(2, 4, 8, 8),
  decoder_dim=1024,
  output_padding=True,
  is_snac=True,
  is_depthwise=True,
  has_noise=True,
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the codec; the defaults are those of snac-24khz."""

  sample_rate_hz: int = 24_000
  """Samples a second."""
  net: DACNet = _NET
  """Encoder and decoder."""
  strides: tuple[int, ...] = (4, 2, 1)
  """Frames of latents to an id of each codebook, each a multiple of the next; the last is 1."""
  num_codes: int = 4096
  """K of each codebook."""
  code_dim: int = 8
  """Features of a code."""

  channels = 1
  is_causal = False

  def __post_init__(self):
    pairs = zip(self.strides, (*self.strides[1:], 1), strict=True)
    if any(coarse % fine for coarse, fine in pairs):
      raise TokzooError(
        f"strides {self.strides} do not nest: each must be a multiple of the next."
      )

  @property
  def hop(self) -> int:
    """Samples a frame of the coarsest codebook."""
    return self.net.hop * self.strides[0]

  @property
  def num_codebooks(self) -> int:
    """Ids of a frame, of all codebooks together."""
    return sum(self.strides[0] // stride for stride in self.strides)

  @property
  def rates_kbps(self) -> dict[float, int]:
    """The bit rate -> ids of a frame."""
    bits = self.num_codebooks * math.log2(self.num_codes)
    return {round(bits * self.sample_rate_hz / self.hop / 1000, 3): self.num_codebooks}

  @property
  def multiple(self) -> int:
    """What the audio is filled up to a multiple of, in samples."""
    return self.net.hop * math.lcm(self.strides[0], self.net.attention_window or 1)

  def build(self) -> "SNAC":
    return SNAC(self)

  def order(self) -> np.ndarray:
    """int[Q, 2]: codebook and place within the frame of each id."""
    found: list[tuple[int, int]] = []

    def visit(book: int, place: int) -> None:
      found.append((book, place))
      if book + 1 < len(self.strides):
        below = self.strides[book] // self.strides[book + 1]
        for i in range(below):
          visit(book + 1, place * below + i)

    visit(0, 0)
    return np.array(found)


class StridedResidual(nn.Module):
  """Residual quantization, each codebook at its own rate."""

  config: Config

  def setup(self):
    c = self.config
    level = VectorQuantizer(c.num_codes, c.code_dim, metric="angular", update=None)
    self.levels = [Projected(level.clone(), c.net.dim) for _ in c.strides]

  def __call__(
    self, z: Float[Array, "B N D"], train: bool = False
  ) -> tuple[Quantized, list[Int[Array, "B n"]]]:
    """The sum of the codes, and the ids of each codebook."""
    z = z.astype(jnp.float32)
    residual, total = z, jnp.zeros_like(z)
    outs = []
    for level, stride in zip(self.levels, self.config.strides, strict=True):
      pooled = reduce(residual, "b (n s) d -> b n d", "mean", s=stride)
      out = level(pooled, train=train)
      values = jnp.repeat(out.values, stride, axis=1)
      residual, total = residual - values, total + values
      outs.append(out)
    losses = {
      n: jnp.stack([out.losses[n] for out in outs]).sum() for n in outs[0].losses
    }
    stats = {"counts": jnp.stack([out.stats["counts"] for out in outs])}
    ids = [out.ids for out in outs]
    return Quantized(total, ids[-1], losses, stats), ids

  def codes(self, ids: list[Int[Array, "B n"]]) -> Float[Array, "B N D"]:
    """The sum of the codes of ids of each codebook."""
    total = None
    for level, stride, own in zip(self.levels, self.config.strides, ids, strict=True):
      values = jnp.repeat(level.ids_to_codes(own), stride, axis=1)
      total = values if total is None else total + values
    assert total is not None
    return total


class SNAC(nn.Module):
  """The codec (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    self.encoder = Encoder(self.config.net)
    self.quantizer = StridedResidual(self.config)
    self.decoder = Decoder(self.config.net)

  def encode(
    self,
    x: Float[Array, "B T 1"],
    *,
    num_codebooks: int | None = None,
    num_tokens: int | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """Audio in [-1, 1] to ids [B, L, Q]. Deterministic: `rng` is not used.

    Args:
      x: audio of any length.
      num_codebooks: Q, only to insist on it.
      num_tokens: L, likewise.
      rng: not used.

    Raises:
      TokzooError: another number of channels, no samples, or another number of codebooks or
        tokens than the model makes.
    """
    self._check(x, num_codebooks, num_tokens)
    _, ids = self.quantizer(self.latents(x))
    return self._tokens(ids)

  def decode(
    self, tokens: Tokens, *, rng: PRNGKeyArray | None = None
  ) -> Float[Array, "B T 1"]:
    """Ids to audio in (-1, 1), L * hop samples.

    Args:
      tokens: ids of this codec.
      rng: of the noise; None: none is added.

    Raises:
      TokzooError: tokens of another kind, codebook or number of ids a frame, or frames that
        do not fill the windows of attention.
    """
    c = self.config
    ids = read_ids(tokens, c.num_codes, c.num_codebooks)
    if ids.shape[2] != c.num_codebooks:
      raise TokzooError(
        f"a frame of this codec has {c.num_codebooks} ids, these have {ids.shape[2]}: decode "
        "with the codec that made them."
      )
    if ids.shape[1] * c.hop % c.multiple:
      raise TokzooError(
        f"this codec decodes {c.multiple // c.hop} frames together, so that {ids.shape[1]} "
        "are not whole: decode all that encode gave."
      )
    return self.decoder(self.quantizer.codes(self.by_codebook(ids)), rng)

  def __call__(
    self,
    x: Float[Array, "B T 1"],
    train: bool = False,
    num_codebooks: int | None = None,
  ) -> Output:
    """Reconstructs audio at its own length; noise is added in training alone."""
    self._check(x, num_codebooks, None)
    z = self.latents(x)
    quantized, ids = self.quantizer(z, train)
    is_noisy = train and self.config.net.has_noise
    rng = self.make_rng("noise") if is_noisy else None
    audio = self.decoder(quantized.values.astype(z.dtype), rng)
    return Output(
      reconstruction=of_length(audio, x.shape[1]).astype(jnp.float32),
      tokens=self._tokens(jax.lax.stop_gradient(ids)),
      losses=quantized.losses,
      stats=quantized.stats,
    )

  def latents(self, x: Float[Array, "B T 1"]) -> Float[Array, "B N D"]:
    """What the codebooks quantize, at the rate of the finest."""
    return self.encoder(pad_end(x, self.config.multiple))

  def by_codebook(self, ids: Int[Array, "B L Q"]) -> list[Int[Array, "B n"]]:
    """The ids of each codebook, in time."""
    order = self.config.order()
    rows = [np.flatnonzero(order[:, 0] == q) for q in range(len(self.config.strides))]
    return [ids[:, :, row].reshape(len(ids), -1) for row in rows]

  def _check(self, x: Array, num_codebooks: int | None, num_tokens: int | None) -> None:
    c = self.config
    frames = -(-x.shape[1] // c.multiple) * c.multiple // c.hop
    check_encode(x.shape, 1, frames, num_codebooks, c.num_codebooks, num_tokens)
    if num_codebooks not in (None, c.num_codebooks):
      raise TokzooError(
        f"this codec has one rate, {c.num_codebooks} ids a frame; {num_codebooks} were asked "
        "for: leave num_codebooks out."
      )

  def _tokens(self, ids: list[Int[Array, "B n"]]) -> Tokens:
    coarse = self.config.strides[0]
    frames = ids[0].shape[1]
    by_frame = [own.reshape(len(own), frames, -1) for own in ids]
    assert all(
      own.shape[2] == coarse // stride
      for own, stride in zip(by_frame, self.config.strides, strict=True)
    )
    flat = [by_frame[book][:, :, place] for book, place in self.config.order()]
    return Tokens.from_ids(jnp.stack(flat, axis=-1), self.config.num_codes)


_LARGE = dataclasses.replace(
  _NET, encoder_dim=64, rates=(2, 3, 8, 8), decoder_dim=1536, attention_window=32
)

PRESETS = {
  "snac-24khz": Config(),
  "snac-32khz": Config(sample_rate_hz=32_000, net=_LARGE, strides=(8, 4, 2, 1)),
  "snac-44khz": Config(sample_rate_hz=44_100, net=_LARGE, strides=(8, 4, 2, 1)),
}

WEIGHTS = Table(
  rules=(
    *dac_rules("encoder", "decoder", "params"),
    *factorized_rules("quantizer.quantizers"),
  ),
  ignore=(r".*\.rel_pos\.inv_freq",),
  steps=(
    WeightNorm(
      weights=r"(?!.*(norm|to_qkv|to_out|codebook)\.).*\.weight",
      form="parametrizations",
    ),
    SequentialNames(is_written=True),
  ),
)
