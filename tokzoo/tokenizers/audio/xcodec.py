"""X-Codec: residual codebooks over acoustic and semantic latents, side by side.

Ye et al., "Codec Does Matter: Exploring the Semantic Shortcoming of Codec for Audio Language
Model", arXiv 2408.17175. Written from what transformers' XcodecModel (5.23.0) computes, for
the checkpoints whose semantic model is HuBERT (others have WavLM, which is not here).

  audio   float32[B, T, 1] in [-1, 1], 16 kHz, filled up with zeros to a multiple of the hop
  tokens  ids [B, L, Q], L = ceil(T / hop), 50 frames a second

The mean of HuBERT's hidden states goes through a small convolutional encoder, DAC's encoder
hears the audio; both are concatenated, mixed by a linear layer and quantized. A linear layer
and DAC's decoder (without its tanh, and without its short odd strides) make audio again.
HuBERT does not learn.

Losses in training: `commitment`, the mean over the codebooks in use, and `semantic`, the mean
square between HuBERT's states and those that are decoded from the codes (published weight 100).
Features: `semantic` float32[B, L, D], the latter, and `semantic_target`, the former. Rng streams in training: `quantizer` (bit rate) and `codebook`.

Differences from the source: the audio is filled up to whole frames; see `tokzoo.nn.dac` and
`tokzoo.tokenizers.audio.codebooks`.
"""

import dataclasses
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.errors import TokzooError
from tokzoo.nn import hubert
from tokzoo.nn.conv1d import CONV1D, Conv1d
from tokzoo.nn.dac import DACNet, Decoder, Encoder, dac_rules
from tokzoo.nn.hubert import HuBERT, hubert_rules
from tokzoo.quantizers import ChosenDropout
from tokzoo.tokenizers.audio.codebooks import FLAG, ema_residual
from tokzoo.tokenizers.audio.waves import check_encode, of_length, pad_end, read_ids
from tokzoo.tokens import Tokens
from tokzoo.weights import Rule, Table, WeightNorm, linear_rules

_NET = DACNet(
  encoder_dim=64,
  rates=(8, 5, 4, 2),
  latent_dim=256,
  decoder_dim=1024,
  decoder_rates=(8, 5, 4, 2),
  has_tanh=False,
  output_padding=True,
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the codec; the defaults are the published ones."""

  sample_rate_hz: int = 16_000
  """Samples a second."""
  net: DACNet = _NET
  """Acoustic encoder and decoder."""
  semantic: HuBERT = dataclasses.field(default_factory=HuBERT)
  """The semantic model."""
  channel_ratios: tuple[float, ...] = (1, 1)
  """Features of each block of the semantic encoder over HuBERT's; the last is 1."""
  dilations: tuple[int, ...] = (1, 1)
  """Of the residual units in each of these blocks."""
  kernel: int = 3
  """Taps of the semantic encoder's first convolution and of the decoder's two outer ones."""
  unit_kernel: int = 3
  """Taps inside a residual unit."""
  num_codebooks: int = 8
  """Q at most."""
  num_codes: int = 1024
  """K of each codebook."""
  bandwidths_kbps: tuple[float, ...] = (0.5, 1, 1.5, 2, 4)
  """Published bit rates; training draws from them."""
  reset_below: float | None = 2.0
  """In training, tokens a step below which a code starts anew; None: never."""

  channels = 1
  is_causal = False

  def __post_init__(self):
    if self.channel_ratios[-1] != 1:
      raise TokzooError(
        f"the semantic encoder ends in HuBERT's features, not in {self.channel_ratios[-1]} "
        "times as many: let channel_ratios end in 1."
      )

  @property
  def dim(self) -> int:
    """Features of a code."""
    return self.net.dim + self.semantic.dim

  @property
  def hop(self) -> int:
    """Samples a frame."""
    return self.net.hop

  @property
  def rates_kbps(self) -> dict[float, int]:
    """Published bit rate -> codebooks."""
    bits = math.log2(self.num_codes) * math.ceil(self.sample_rate_hz / self.hop)
    return {
      rate: max(1, math.floor(1000 * rate / bits)) for rate in self.bandwidths_kbps
    }

  def build(self) -> "XCodec":
    return XCodec(self)


class ResidualUnit(nn.Module):
  """x + two convolutions, each after an ELU."""

  kernel: int
  dilation: int

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    features = x.shape[-1]
    y = Conv1d(
      features,
      self.kernel,
      dilation=self.dilation,
      padding=(self.kernel - 1) // 2 * self.dilation,
      use_bias=False,
      name="conv1",
    )(nn.elu(x))
    return x + Conv1d(features, 1, use_bias=False, name="conv2")(nn.elu(y))


class SemanticEncoder(nn.Module):
  """HuBERT's states to semantic latents."""

  config: Config

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    c = self.config
    x = _outer(c, c.semantic.dim, "conv")(x)
    for i, ratio in enumerate(c.channel_ratios):
      for j, dilation in enumerate(c.dilations):
        unit = ResidualUnit(c.unit_kernel, dilation, name=f"block_{i}_unit_{j}")
        x = unit(x)
      features = int(c.semantic.dim * ratio)
      x = Conv1d(features, 3, padding=1, name=f"block_{i}_conv")(x)
    return x


class SemanticDecoder(nn.Module):
  """Semantic latents to HuBERT's states."""

  config: Config

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    c = self.config
    x = _outer(c, int(c.semantic.dim * c.channel_ratios[0]), "conv1")(x)
    for i, ratio in enumerate((*c.channel_ratios[1:], 1)):
      features = int(c.semantic.dim * ratio)
      x = Conv1d(features, 3, padding=1, name=f"block_{i}_conv")(x)
      for j, dilation in enumerate(c.dilations):
        unit = ResidualUnit(c.unit_kernel, dilation, name=f"block_{i}_unit_{j}")
        x = unit(x)
    return _outer(c, c.semantic.dim, "conv2")(x)


def _outer(config: Config, features: int, name: str) -> Conv1d:
  kernel = config.kernel
  return Conv1d(features, kernel, padding=kernel // 2, use_bias=False, name=name)


class XCodec(nn.Module):
  """The codec (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    c = self.config
    self.semantic_model = hubert.Model(c.semantic)
    self.encoder_semantic = SemanticEncoder(c)
    self.encoder = Encoder(c.net)
    self.fc = nn.Dense(c.dim)
    self.quantizer = ema_residual(
      c.num_codebooks,
      c.num_codes,
      c.dim,
      reset_below=c.reset_below,
      dropout=ChosenDropout(tuple(c.rates_kbps.values())),
    )
    self.fc1 = nn.Dense(c.semantic.dim)
    self.fc2 = nn.Dense(c.net.dim)
    self.decoder_semantic = SemanticDecoder(c)
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
    z, _ = self.latents(pad_end(x, self.config.hop))
    return self._tokens(self.quantizer(z, num_levels=num_codebooks))

  def decode(
    self, tokens: Tokens, *, rng: PRNGKeyArray | None = None
  ) -> Float[Array, "B T 1"]:
    """Ids to audio, L * hop samples, not clipped. Deterministic: `rng` is not used.

    Raises:
      TokzooError: tokens of another kind, codebook or number of codebooks.
    """
    ids = read_ids(tokens, self.config.num_codes, self.config.num_codebooks)
    return self.decoder(self.fc2(self.quantizer.ids_to_codes(ids)))

  def __call__(
    self,
    x: Float[Array, "B T 1"],
    train: bool = False,
    num_codebooks: int | None = None,
  ) -> Output:
    """Reconstructs audio at its own length, and HuBERT's states.

    Args:
      x: audio in [-1, 1].
      train: codebooks move, and the bit rate is drawn unless it is given.
      num_codebooks: Q; None: all, or drawn in training.
    """
    self._check(x, num_codebooks, None)
    z, states = self.latents(pad_end(x, self.config.hop))
    quantized = self.quantizer(z, train=train, num_levels=num_codebooks)
    codes = quantized.values.astype(z.dtype)
    audio = self.decoder(self.fc2(codes))
    decoded = self.decoder_semantic(self.fc1(codes))
    far = jnp.square((decoded - states).astype(jnp.float32)).mean()
    return Output(
      reconstruction=of_length(audio, x.shape[1]).astype(jnp.float32),
      tokens=self._tokens(quantized),
      losses={**quantized.losses, "semantic": far},
      stats=quantized.stats,
      features={"semantic": decoded, "semantic_target": states},
    )

  def latents(
    self, x: Float[Array, "B T 1"]
  ) -> tuple[Float[Array, "B L D"], Float[Array, "B L E"]]:
    """What the codebooks quantize, and the mean of HuBERT's states, without a gradient."""
    c = self.config
    around = ((0, 0), (c.hop // 2, c.hop // 2), (0, 0))
    padded = jnp.pad(x, around)
    states = jnp.stack(self.semantic_model(padded[..., 0])).mean(axis=0)
    states = jax.lax.stop_gradient(states)
    # Where the two would have other numbers of frames, both hear the padding.
    is_even = _frames(c.net, x.shape[1]) == states.shape[1]
    acoustic = self.encoder(x if is_even else padded)
    both = [acoustic, self.encoder_semantic(states)]
    return self.fc(jnp.concatenate(both, axis=-1)), states

  def _check(self, x: Array, num_codebooks: int | None, num_tokens: int | None) -> None:
    c = self.config
    frames = -(-x.shape[1] // c.hop)
    check_encode(x.shape, 1, frames, num_codebooks, c.num_codebooks, num_tokens)

  def _tokens(self, quantized: Quantized) -> Tokens:
    ids = jax.lax.stop_gradient(quantized.ids)
    return Tokens.from_ids(ids, self.config.num_codes)


def _frames(net: DACNet, samples: int) -> int:
  """Frames that DAC's encoder makes of so many samples."""
  for rate in net.rates:
    samples = (samples + 2 * math.ceil(rate / 2) - 2 * rate) // rate + 1
  return samples


PRESETS = {
  "xcodec-hubert-librispeech": Config(),
  "xcodec-hubert-general": Config(),
}


class CodeSums:
  """A step of the table: moving sums for files that have none."""

  def to_ours(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state with embed_avg = embed * cluster_size wherever it is not there."""
    more = {}
    for key, codes in state.items():
      stem = key.removesuffix("codebook.embed")
      sums, counts = f"{stem}codebook.embed_avg", f"{stem}codebook.cluster_size"
      if stem != key and sums not in state and counts in state:
        more[sums] = codes * state[counts][:, None]
    return {**state, **more}

  def to_authors(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same."""
    return dict(state)


def _semantic_rules(name: str) -> tuple[Rule, ...]:
  block, ours = f"{name}.conv_blocks.{{i}}", f"params/{name}/block_{{i}}"
  units = (
    Rule(
      f"{block}.res_units.{{j}}.conv{n}.weight",
      f"{ours}_unit_{{j}}/conv{n}/kernel",
      CONV1D,
    )
    for n in (1, 2)
  )
  outer = (
    Rule(f"{name}.{conv}.weight", f"params/{name}/{conv}/kernel", CONV1D)
    for conv in ("conv", "conv1", "conv2")
  )
  return (
    *outer,
    *units,
    Rule(f"{block}.conv.weight", f"{ours}_conv/kernel", CONV1D),
    Rule(f"{block}.conv.bias", f"{ours}_conv/bias"),
  )


_BOOK, _OURS = "quantizer.quantizers.{q}.codebook", "codebook/quantizer/levels_{q}"

WEIGHTS = Table(
  rules=(
    *hubert_rules("semantic_model.", "params/semantic_model"),
    *_semantic_rules("encoder_semantic"),
    *_semantic_rules("decoder_semantic"),
    *dac_rules("acoustic_encoder", "acoustic_decoder", "params"),
    *(r for fc in ("fc", "fc1", "fc2") for r in linear_rules(fc, f"params/{fc}")),
    Rule(f"{_BOOK}.embed", f"{_OURS}/codes"),
    Rule(f"{_BOOK}.embed_avg", f"{_OURS}/sums"),
    Rule(f"{_BOOK}.cluster_size", f"{_OURS}/counts"),
    Rule(f"{_BOOK}.inited", f"{_OURS}/is_started", FLAG),
  ),
  ignore=(r"semantic_model\.masked_spec_embed",),
  steps=(WeightNorm(), CodeSums()),
)
