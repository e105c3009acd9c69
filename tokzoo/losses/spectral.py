"""Distances between spectra: multi-scale mel losses as published, and multi-resolution STFT.

Waves are float32[B, T, C]; every channel is a signal of its own. The published settings:

  encodec(rate)            windows 2^5 .. 2^11, 64 mels, L1 + L2 of mel magnitudes of a normalised
                           STFT, mean over windows (arXiv 2210.13438, eq. 3)
  dac(rate)                windows 32 .. 2048, 5 .. 320 mels (librosa's), L1 of log10, sum
  speechtokenizer(rate)    1024 / 2^i with hop 240 / 2^i, 80 mels, L1 of the natural log, weighed
                           45, 1, 1, 1; DM-Codec's too
  wavtokenizer(rate)       1024 with hop 256, 100 mels, L1 of the natural log (Vocos's)

EnCodec's paper gives its loss in a formula and its repository does not hold it: `L2` is taken
as the mean square, the hop as a quarter of the window, the filters as torchaudio's defaults.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from tokzoo.nn.spectra import Mel, dac_mels, require_same, signals, stft


@dataclasses.dataclass(frozen=True)
class MelLoss:
  """A sum of distances between mel spectra.

  rate_hz:  of the waves
  mels:     the spectra
  weights:  one for each
  squares:  weight of the mean square beside the mean absolute difference
  """

  rate_hz: int
  mels: tuple[Mel, ...]
  weights: tuple[float, ...]
  squares: float = 0.0

  def __call__(self, x: Array, y: Array) -> Float[Array, ""]:
    """Between two waves float32[B, T, C]; y gets a gradient as well.

    Raises:
      TokzooError: shapes differ, or sounds shorter than the longest window.
    """
    require_same(x, y)
    total = jnp.zeros((), jnp.float32)
    for mel, weight in zip(self.mels, self.weights, strict=True):
      difference = mel(x, self.rate_hz) - mel(y, self.rate_hz)
      one = jnp.abs(difference).mean()
      if self.squares:
        one = one + self.squares * jnp.square(difference).mean()
      total = total + weight * one
    return total


def encodec(rate_hz: int, longest: int = 11) -> MelLoss:
  """EnCodec's, up to windows of 2^longest samples (2^11 as published)."""
  sizes = [2**i for i in range(5, longest + 1)]
  mels = tuple(
    Mel(n, n // 4, 64, "htk", normalized=True, unit_area=False, log="none")
    for n in sizes
  )
  return MelLoss(rate_hz, mels, (1.0 / len(mels),) * len(mels), squares=1.0)


def dac(rate_hz: int, longest: int = 7) -> MelLoss:
  """DAC's, of its first `longest` windows (7 as published)."""
  mels = dac_mels(longest)
  return MelLoss(rate_hz, mels, (1.0,) * len(mels))


def speechtokenizer(rate_hz: int) -> MelLoss:
  """SpeechTokenizer's and DM-Codec's, its weights within."""
  mels = tuple(
    Mel(1024 // 2**i, 240 // 2**i, 80, "htk", "hop", floor=1e-9, log="e")
    for i in range(4)
  )
  return MelLoss(rate_hz, mels, (45.0, 1.0, 1.0, 1.0))


def wavtokenizer(rate_hz: int) -> MelLoss:
  """WavTokenizer's, which is Vocos's (decoder/loss.py)."""
  mel = Mel(1024, 256, 100, "htk", unit_area=False, log="e", least=1e-7)
  return MelLoss(rate_hz, (mel,), (1.0,))


@dataclasses.dataclass(frozen=True)
class Resolution:
  """One STFT: samples of transform, hop and window."""

  n_fft: int
  hop: int
  win: int


@dataclasses.dataclass(frozen=True)
class STFTLoss:
  """Multi-resolution STFT (Parallel WaveGAN, arXiv 1910.11480): of each resolution the spectral
  convergence |X - Y| / |X| (Frobenius) and the mean absolute difference of log magnitudes,
  mean over resolutions.

  x is the original: it stands in the denominator.
  """

  resolutions: tuple[Resolution, ...] = (
    Resolution(1024, 120, 600),
    Resolution(2048, 240, 1200),
    Resolution(512, 50, 240),
  )

  def __call__(self, x: Array, y: Array) -> Float[Array, ""]:
    """Between an original and a reconstruction float32[B, T, C].

    Raises:
      TokzooError: shapes differ, or sounds are shorter than half the longest transform.
    """
    require_same(x, y)
    total = jnp.zeros((), jnp.float32)
    for r in self.resolutions:
      pair = (signals(x), signals(y))
      # Magnitudes of at least sqrt(1e-7), as in the published code.
      real, fake = (
        jnp.sqrt(jnp.maximum(_power(stft(s, r.n_fft, r.hop, r.win, center=True)), 1e-7))
        for s in pair
      )
      convergence = _norm(real - fake) / _norm(real)
      logs = jnp.abs(jnp.log(real) - jnp.log(fake)).mean()
      total = total + convergence + logs
    return total / len(self.resolutions)


def _norm(x: Array) -> Float[Array, ""]:
  """Frobenius's, with gradient 0 at 0."""
  square = jnp.square(x).sum()
  return jnp.where(square == 0, 0.0, jnp.sqrt(jnp.where(square == 0, 1.0, square)))


def _power(spectrum: Array) -> Array:
  return jnp.square(spectrum.real) + jnp.square(spectrum.imag)
