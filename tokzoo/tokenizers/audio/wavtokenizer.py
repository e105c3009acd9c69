"""WavTokenizer: one codebook of 4,096, 40 or 75 tokens a second, decoded by Vocos.

Ji et al., "WavTokenizer: an Efficient Acoustic Discrete Codec Tokenizer for Audio Language
Modeling", arXiv 2408.16532. Written from what jishengpeng/WavTokenizer @ 5cf440d computes.

  audio   float32[B, T, 1] in [-1, 1], 24 kHz
  tokens  ids [B, L, 1], L = ceil(T / hop)

Encoder and codebook are EnCodec's, not causal; the decoder attends over all frames. Of the
conditional norms' entries decoding takes `bandwidth_id`, 0 as published; a step of training draws
one, which is the feature `condition`, int32[], for critics that are to know it.

Losses in training: `commitment` (published weight 1000). Rng streams in training: `codebook`
(k-means, dead codes) and `quantizer` (the entry).

Differences from the source: see `tokzoo.nn.seanet` and `tokzoo.tokenizers.audio.codebooks`;
the decoder has no dropout. Of a checkpoint the encoder, the codebook, the backbone and the head
are read, as the authors do; its discriminators and EnCodec's unused decoder are not.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.errors import TokzooError
from tokzoo.nn.seanet import Encoder, SEANet, seanet_rules
from tokzoo.nn.vocos import Backbone, Head, Vocos, vocos_rules
from tokzoo.tokenizers.audio.codebooks import ema_residual, ema_rules
from tokzoo.tokenizers.audio.waves import (
  check_encode,
  of_length,
  possible_rates,
  read_ids,
)
from tokzoo.tokens import Tokens
from tokzoo.weights import Table, WeightNorm

_NET = SEANet(dim=512, is_causal=False)


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the codec; the defaults are those of 75 tokens a second."""

  sample_rate_hz: int = 24_000
  """Samples a second."""
  net: SEANet = _NET
  """The encoder."""
  vocos: Vocos = dataclasses.field(default_factory=Vocos)
  """The decoder, of the encoder's hop."""
  num_codes: int = 4096
  """K of the codebook."""
  bandwidth_id: int = 0
  """The entry of the conditional norms."""
  draws_entry: bool = True
  """Training draws the entry; else it is that one, and the others stay as they start."""
  reset_below: float | None = 2.0
  """In training, tokens a step below which a code starts anew; None: never."""

  num_codebooks = 1
  is_causal = False

  def __post_init__(self):
    if self.vocos.hop != self.net.hop:
      raise TokzooError(
        f"an encoder of {self.net.hop} samples a frame needs a decoder of as many, not "
        f"{self.vocos.hop}: change vocos.hop (and n_fft, four times that as published)."
      )

  @property
  def channels(self) -> int:
    """C."""
    return self.net.channels

  @property
  def hop(self) -> int:
    """Samples a token."""
    return self.net.hop

  @property
  def rates_kbps(self) -> dict[float, int]:
    """The bit rate -> 1."""
    return possible_rates(1, self.num_codes, self.sample_rate_hz / self.hop)

  def build(self) -> "WavTokenizer":
    return WavTokenizer(self)


class WavTokenizer(nn.Module):
  """The codec (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    c = self.config
    self.encoder = Encoder(c.net)
    self.quantizer = ema_residual(
      1, c.num_codes, c.net.dim, reset_below=c.reset_below, kmeans_iterations=200
    )
    self.backbone = Backbone(c.vocos)
    self.head = Head(c.vocos)

  def encode(
    self,
    x: Float[Array, "B T 1"],
    *,
    num_codebooks: int | None = None,
    num_tokens: int | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """Audio in [-1, 1] to ids [B, L, 1].

    Args:
      x: audio of any length.
      num_codebooks: 1, the only choice.
      num_tokens: L, only to insist on it.
      rng: not used.

    Raises:
      TokzooError: another number of channels, no samples, or codebooks or tokens that the
        model does not make.
    """
    self._check(x, num_codebooks, num_tokens)
    return self._tokens(self.quantizer(self.encoder(x)))

  def decode(
    self, tokens: Tokens, *, rng: PRNGKeyArray | None = None
  ) -> Float[Array, "B T 1"]:
    """Ids to audio, L * hop samples, not clipped. Deterministic: `rng` is not used.

    Raises:
      TokzooError: tokens of another kind, codebook or number of codebooks.
    """
    ids = read_ids(tokens, self.config.num_codes, 1)
    return self.audio(self.quantizer.ids_to_codes(ids))

  def __call__(
    self,
    x: Float[Array, "B T 1"],
    train: bool = False,
    num_codebooks: int | None = None,
  ) -> Output:
    """Reconstructs audio at its own length."""
    self._check(x, num_codebooks, None)
    quantized = self.quantizer(self.encoder(x), train=train)
    entry, features = self.config.bandwidth_id, {}
    if train and self.config.draws_entry and not self.is_initializing():
      count = self.config.vocos.bandwidths
      entry = jax.random.randint(self.make_rng("quantizer"), (), 0, count)
      features["condition"] = entry
    audio = self.audio(quantized.values.astype(x.dtype), entry)
    return Output(
      reconstruction=of_length(audio, x.shape[1]).astype(jnp.float32),
      tokens=self._tokens(quantized),
      losses=quantized.losses,
      stats=quantized.stats,
      features=features,
    )

  def audio(
    self, codes: Float[Array, "B L D"], entry: Int[Array, ""] | int | None = None
  ) -> Float[Array, "B T 1"]:
    """Codes to audio, by an entry of the conditional norms; None: the config's."""
    entry = self.config.bandwidth_id if entry is None else entry
    return self.head(self.backbone(codes, entry))[..., None]

  def _check(self, x: Array, num_codebooks: int | None, num_tokens: int | None) -> None:
    c = self.config
    frames = -(-x.shape[1] // c.hop)
    check_encode(x.shape, c.channels, frames, num_codebooks, 1, num_tokens)

  def _tokens(self, quantized: Quantized) -> Tokens:
    ids = jax.lax.stop_gradient(quantized.ids)
    return Tokens.from_ids(ids, self.config.num_codes)


PRESETS = {
  "wavtokenizer-75": Config(),
  "wavtokenizer-40": Config(
    net=dataclasses.replace(_NET, ratios=(6, 5, 5, 4)),
    vocos=Vocos(n_fft=2400, hop=600),
  ),
}

_ENCODEC = "feature_extractor.encodec"

WEIGHTS = Table(
  rules=(
    *seanet_rules(f"{_ENCODEC}.encoder", "params/encoder", "original"),
    *ema_rules(f"{_ENCODEC}.quantizer.vq", form="original"),
    *vocos_rules("backbone", "head", "params"),
  ),
  ignore=(
    r"feature_extractor\.encodec\.decoder\..*",
    r"head\.istft\.window",
    # As the authors' loader: discriminators and losses are not read.
    r"(?!feature_extractor\.|backbone\.|head\.).*",
  ),
  steps=(WeightNorm(weights=r"feature_extractor\..*conv\.weight"),),
)
