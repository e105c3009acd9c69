"""The Descript Audio Codec: convolutions with Snake, codes of 8 features searched by angle.

Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", arXiv 2306.06546. Written
from what descriptinc/descript-audio-codec @ c7cfc5d and transformers' DacModel (5.23.0)
compute; weights in either one's names load, with weight norm or without.

  audio   float32[B, T, 1] in [-1, 1], filled up with zeros to a multiple of the hop
  tokens  ids [B, L, Q], L = ceil(T / hop)

Decoding returns hop samples a frame, less a few where strides are odd (16 and 24 kHz): the
transposed convolutions of these are cut short, and `__call__` ends in as many zeros.

Losses in training, sums over the codebooks as published: `commitment` (published weight 0.25)
and `codebook` (1). Rng stream in training: `quantizer` (number of codebooks, each item's).

Differences from the source: see `tokzoo.nn.dac`; long files are not cut into chunks here.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.nn.dac import DACNet, Decoder, Encoder, SequentialNames, dac_rules
from tokzoo.tokenizers.audio.codebooks import factorized_residual, factorized_rules
from tokzoo.tokenizers.audio.waves import (
  check_encode,
  of_length,
  pad_end,
  possible_rates,
  read_ids,
)
from tokzoo.tokens import Tokens
from tokzoo.weights import Table, WeightNorm


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the codec; the defaults are those of dac-24khz."""

  sample_rate_hz: int = 24_000
  """Samples a second."""
  net: DACNet = dataclasses.field(default_factory=DACNet)
  """Encoder and decoder."""
  num_codebooks: int = 32
  """Q at most."""
  num_codes: int = 1024
  """K of each codebook."""
  code_dim: int = 8
  """Features of a code."""
  quantizer_dropout: float = 0.5
  """Share of a training batch whose number of codebooks is drawn."""

  channels = 1
  is_causal = False

  @property
  def hop(self) -> int:
    """Samples a frame."""
    return self.net.hop

  @property
  def rates_kbps(self) -> dict[float, int]:
    """Possible bit rate -> codebooks."""
    rate = self.sample_rate_hz / self.hop
    return possible_rates(self.num_codebooks, self.num_codes, rate)

  def build(self) -> "DAC":
    return DAC(self)


class DAC(nn.Module):
  """The codec (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    c = self.config
    self.encoder = Encoder(c.net)
    self.quantizer = factorized_residual(
      c.num_codebooks, c.num_codes, c.code_dim, c.net.dim, c.quantizer_dropout
    )
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
      num_codebooks: Q; None: all.
      num_tokens: L, only to insist on it.
      rng: not used.

    Raises:
      TokzooError: another number of channels, no samples, or codebooks or tokens that the
        model does not make.
    """
    self._check(x, num_codebooks, num_tokens)
    return self._tokens(self.quantizer(self.latents(x), num_levels=num_codebooks))

  def decode(
    self, tokens: Tokens, *, rng: PRNGKeyArray | None = None
  ) -> Float[Array, "B T 1"]:
    """Ids to audio in (-1, 1). Deterministic: `rng` is not used.

    Raises:
      TokzooError: tokens of another kind, codebook or number of codebooks.
    """
    ids = read_ids(tokens, self.config.num_codes, self.config.num_codebooks)
    return self.decoder(self.quantizer.ids_to_codes(ids))

  def __call__(
    self,
    x: Float[Array, "B T 1"],
    train: bool = False,
    num_codebooks: int | None = None,
  ) -> Output:
    """Reconstructs audio at its own length.

    Args:
      x: audio in [-1, 1].
      train: losses are computed, and codebooks drop out.
      num_codebooks: Q; None: all.
    """
    self._check(x, num_codebooks, None)
    z = self.latents(x)
    quantized = self.quantizer(z, train=train, num_levels=num_codebooks)
    used = quantized.ids.shape[-1]
    audio = self.decoder(quantized.values.astype(z.dtype))
    return Output(
      reconstruction=of_length(audio, x.shape[1]).astype(jnp.float32),
      tokens=self._tokens(quantized),
      losses={name: loss * used for name, loss in quantized.losses.items()},
      stats=quantized.stats,
    )

  def latents(self, x: Float[Array, "B T 1"]) -> Float[Array, "B L D"]:
    """What the codebooks quantize."""
    return self.encoder(pad_end(x, self.config.hop))

  def _check(self, x: Array, num_codebooks: int | None, num_tokens: int | None) -> None:
    frames = -(-x.shape[1] // self.config.hop)
    check_encode(
      x.shape, 1, frames, num_codebooks, self.config.num_codebooks, num_tokens
    )

  def _tokens(self, quantized: Quantized) -> Tokens:
    ids = jax.lax.stop_gradient(quantized.ids)
    return Tokens.from_ids(ids, self.config.num_codes)


PRESETS = {
  "dac-16khz": Config(sample_rate_hz=16_000, num_codebooks=12),
  "dac-24khz": Config(),
  "dac-44khz": Config(
    sample_rate_hz=44_100,
    net=DACNet(rates=(2, 4, 8, 8)),
    num_codebooks=9,
  ),
}

# transformers' names, folded, are what is written.
WEIGHTS = Table(
  rules=(
    *dac_rules("encoder", "decoder", "params"),
    *factorized_rules("quantizer.quantizers"),
  ),
  steps=(WeightNorm(), SequentialNames()),
)
