"""SpeechTokenizer: EnCodec's shape at 16 kHz, its first codebook distilled from HuBERT.

Zhang et al., "SpeechTokenizer: Unified Speech Tokenizer for Speech Large Language Models",
arXiv 2308.16692. Written from what ZhangXInFD/SpeechTokenizer @ 30c96fb computes; the table
also reads DM-Codec's weights, whose model is the same.

  audio   float32[B, T, 1] in [-1, 1], 16 kHz
  tokens  ids [B, L, Q], L = ceil(T / hop), 50 frames a second

The encoder's LSTM runs both ways, nothing is causal. Losses in training: `commitment`, the
mean over the codebooks in use (published weight 10). Features: `semantic` float32[B, L, 768],
a linear map of what the first codebook gives, to be held against a teacher's hidden states.
Rng streams in training: `codebook` (k-means, dead codes), and with `quantizer_dropout` also
`quantizer`.

Differences from the source: see `tokzoo.nn.seanet` and `tokzoo.tokenizers.audio.codebooks`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.nn.seanet import Decoder, Encoder, SEANet, TransposedNames, seanet_rules
from tokzoo.quantizers import LevelDropout
from tokzoo.tokenizers.audio.codebooks import ema_residual, ema_rules
from tokzoo.tokenizers.audio.waves import (
  check_encode,
  of_length,
  possible_rates,
  read_ids,
)
from tokzoo.tokens import Tokens
from tokzoo.weights import Table, WeightNorm, linear_rules

_NET = SEANet(dim=1024, filters=64, is_causal=False, is_bidirectional=True)


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the codec; the defaults are the published ones."""

  sample_rate_hz: int = 16_000
  """Samples a second."""
  net: SEANet = _NET
  """Encoder and decoder."""
  num_codebooks: int = 8
  """Q at most."""
  num_codes: int = 1024
  """K of each codebook."""
  semantic_dim: int = 768
  """Features of the teacher."""
  semantic_level: int = 0
  """The codebook that is distilled."""
  reset_below: float | None = 2.0
  """In training, tokens a step below which a code starts anew; None: never."""
  quantizer_dropout: bool = False
  """Draws the number of codebooks in training; the published one does not."""

  is_causal = False

  @property
  def channels(self) -> int:
    """C."""
    return self.net.channels

  @property
  def hop(self) -> int:
    """Samples a frame."""
    return self.net.hop

  @property
  def rates_kbps(self) -> dict[float, int]:
    """Possible bit rate -> codebooks."""
    rate = self.sample_rate_hz / self.hop
    return possible_rates(self.num_codebooks, self.num_codes, rate)

  def build(self) -> "SpeechTokenizer":
    return SpeechTokenizer(self)


class SpeechTokenizer(nn.Module):
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
      dropout=LevelDropout() if c.quantizer_dropout else None,
    )
    self.transform = nn.Dense(c.semantic_dim)
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
    return self._tokens(self.quantizer(self.encoder(x), num_levels=num_codebooks))

  def decode(
    self, tokens: Tokens, *, rng: PRNGKeyArray | None = None
  ) -> Float[Array, "B T 1"]:
    """Ids to audio, L * hop samples, not clipped. Deterministic: `rng` is not used.

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
    """Reconstructs audio at its own length, with `features["semantic"]`.

    Args:
      x: audio in [-1, 1].
      train: codebooks move.
      num_codebooks: Q, more than the one that is distilled; None: all.
    """
    self._check(x, num_codebooks, None)
    quantized, levels = self.quantizer.quantize_levels(
      self.encoder(x), train=train, num_levels=num_codebooks
    )
    audio = self.decoder(quantized.values.astype(x.dtype))
    features = {}
    if self.config.semantic_level < len(levels):
      first = levels[self.config.semantic_level].astype(x.dtype)
      features["semantic"] = self.transform(first).astype(jnp.float32)
    return Output(
      reconstruction=of_length(audio, x.shape[1]).astype(jnp.float32),
      tokens=self._tokens(quantized),
      losses=quantized.losses,
      stats=quantized.stats,
      features=features,
    )

  def _check(self, x: Array, num_codebooks: int | None, num_tokens: int | None) -> None:
    c = self.config
    frames = -(-x.shape[1] // c.hop)
    check_encode(
      x.shape, c.channels, frames, num_codebooks, c.num_codebooks, num_tokens
    )

  def _tokens(self, quantized: Quantized) -> Tokens:
    ids = jax.lax.stop_gradient(quantized.ids)
    return Tokens.from_ids(ids, self.config.num_codes)


PRESETS = {
  "speechtokenizer-hubert-avg": Config(),
  "speechtokenizer-snake": Config(net=dataclasses.replace(_NET, activation="snake")),
}

WEIGHTS = Table(
  rules=(
    *seanet_rules("encoder", "params/encoder", "original"),
    *seanet_rules("decoder", "params/decoder", "original"),
    *ema_rules("quantizer.vq", form="original"),
    *linear_rules("transform", "params/transform"),
  ),
  steps=(
    WeightNorm(weights=r"(en|de)coder\..*conv(tr)?\.weight"),
    TransposedNames(),
  ),
)
