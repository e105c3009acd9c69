"""Metrics of sound: SI-SNR, SI-SDR, SDR, mel distance, and the perceptual ones of packages.

Waves are float32[B, T, C] in [-1, 1] (in jit), or float[T] of one channel (on the host). A reference
that is silent has no ratio: its rows do not count, and single values are NaN.

STOI, PESQ and DNSMOS come from the packages pystoi, pesq and speechmos (the extra `audio-eval`),
which are the ones that papers quote. Where a package is not installed, or a sound is too short for
the measure, the value is None: not computed, never approximated.
"""

import functools
import importlib
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from tokzoo.metrics.state import Additive, ratio, sum_rows
from tokzoo.nn.spectra import dac_mels, require_same

CEILING_DB = 100.0
"""Of every ratio: beyond it float32 cannot tell a reconstruction from its original."""

RATE_HZ = 16_000
"""That PESQ (wide band) and DNSMOS are defined for: resample before."""

SDR_TAPS = 512
"""Of the filter that SDR forgives, as in BSS-eval."""


def si_snr(
  x: Float[Array, "B T C"], y: Float[Array, "B T C"], is_centred: bool = True
) -> Float[Array, "B"]:
  """Scale-invariant signal-to-noise ratio in dB of y against the original x, at most 100.

  s = (<y, x> / |x|^2) x;  10 log10(|s|^2 / |y - s|^2), the mean over channels. NaN where x is
  silent.

  Args:
    x: the originals.
    y: the reconstructions.
    is_centred: take the means away first (SI-SNR); otherwise not (SI-SDR).
  """
  require_same(x, y)
  x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  if is_centred:
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
  energy = jnp.square(x).sum(1, keepdims=True)
  is_silent = energy <= 0
  scale = (x * y).sum(1, keepdims=True) / jnp.where(is_silent, 1.0, energy)
  target = scale * x
  signal = jnp.square(target).sum(1)
  noise = jnp.square(y - target).sum(1)
  # Ratios between the floor and the ceiling, also of a reconstruction that is silent.
  floor = 10 ** (-CEILING_DB / 10)
  share = (signal + floor * 1e-6) / jnp.maximum(noise, floor * signal + floor * 1e-6)
  decibels = 10 * jnp.log10(jnp.clip(share, floor, 1 / floor))
  return jnp.where(is_silent[:, 0], jnp.nan, decibels).mean(-1)


def si_sdr(x: Float[Array, "B T C"], y: Float[Array, "B T C"]) -> Float[Array, "B"]:
  """As `si_snr`, of the waves as they are (Le Roux et al., arXiv 1811.02508)."""
  return si_snr(x, y, is_centred=False)


def mel_distance(
  x: Float[Array, "B T C"], y: Float[Array, "B T C"], rate_hz: int
) -> Float[Array, "B"]:
  """DAC's multi-scale log-mel distance of each row: sum over windows of mean |log10 difference|.

  Of sounds that are short, only the windows that fit: compare sounds of one length. NaN where
  none does (16 samples or fewer).
  """
  require_same(x, y)
  fitting = sum(16 * 2**i < x.shape[1] for i in range(7))
  total = jnp.full((x.shape[0],), 0.0 if fitting else jnp.nan)
  for mel in dac_mels(fitting):
    difference = jnp.abs(mel(x, rate_hz) - mel(y, rate_hz))
    total = total + difference.reshape(x.shape[0], -1).mean(1)
  return total


@struct.dataclass
class SISNR(Additive):
  """Mean SI-SNR in dB over rows whose original is not silent.

  total, count:  float32[]
  """

  total: Float[Array, ""]
  count: Float[Array, ""]

  @classmethod
  def from_batch(
    cls,
    audio: Float[Array, "B T C"],
    reconstructions: Float[Array, "B T C"],
    valid: Bool[Array, "B"] | None = None,
  ) -> "SISNR":
    """Waves in [-1, 1], any float dtype."""
    decibels = si_snr(audio, reconstructions)
    counts = ~jnp.isnan(decibels)
    return cls(*sum_rows(decibels, counts if valid is None else counts & valid))

  def compute(self) -> float:
    return ratio(self.total, self.count) if float(self.count) else float("nan")


# ---------------------------------------------------------------- on the host


def sdr(x: Float[np.ndarray, "T"], y: Float[np.ndarray, "T"]) -> float:
  """BSS-eval's SDR in dB: what no filter of 512 taps of the original explains is distortion.

  Args:
    x: the original, one channel.
    y: the reconstruction, of the same length.

  Returns:
    dB, at most 100; NaN where the original is silent.
  """
  from numpy.fft import irfft, rfft
  from scipy.linalg import solve_toeplitz

  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if not np.any(x):
    return float("nan")
  size = 2 ** int(np.ceil(np.log2(len(x) + SDR_TAPS)))
  spectrum, other = rfft(x, size), rfft(y, size)
  correlation = irfft(np.abs(spectrum) ** 2, size)[:SDR_TAPS]
  correlation[0] *= 1 + 1e-10  # a pure tone makes the system singular
  crossed = irfft(np.conj(spectrum) * other, size)[:SDR_TAPS]
  filter_taps: np.ndarray = solve_toeplitz(correlation, crossed)  # pyright: ignore
  explained = irfft(rfft(filter_taps, size) * spectrum, size)[: len(x) + SDR_TAPS - 1]
  rest = np.pad(y, (0, SDR_TAPS - 1)) - explained
  share = np.sum(explained**2) / max(np.sum(rest**2), 1e-20)
  return float(np.clip(10 * np.log10(max(share, 1e-10)), -CEILING_DB, CEILING_DB))


def stoi(
  x: Float[np.ndarray, "T"], y: Float[np.ndarray, "T"], rate_hz: int
) -> float | None:
  """Short-time objective intelligibility by pystoi, 0 to 1; None: not computed.

  None of sounds with less than 384 ms that are not silent, and without the package.
  """
  package = _package("pystoi")
  if package is None or not _can_be_judged(x):
    return None
  with warnings.catch_warnings():
    # pystoi warns and returns 1e-5 where it has too few frames.
    warnings.simplefilter("error", RuntimeWarning)
    try:
      return float(package.stoi(x, y, rate_hz))
    except (RuntimeWarning, ValueError, IndexError):
      return None


def pesq(x: Float[np.ndarray, "T"], y: Float[np.ndarray, "T"]) -> float | None:
  """Wide-band PESQ (ITU-T P.862.2) of sounds at 16 kHz by the package pesq; None: not computed.

  None of sounds that are silent or shorter than a quarter of a second, and without the package.
  """
  package = _package("pesq")
  if package is None or not _can_be_judged(x) or len(x) < RATE_HZ / 4:
    return None
  try:
    return float(package.pesq(RATE_HZ, np.asarray(x), np.asarray(y), "wb"))
  except (package.PesqError, ValueError, ZeroDivisionError):
    return None


def dnsmos(y: Float[np.ndarray, "T"]) -> dict[str, float] | None:
  """DNSMOS of a sound by itself, at 16 kHz, by the package speechmos; None: not computed.

  Returns:
    `overall`, `signal`, `background` (P.835) and `p808`, opinions from 1 to 5.
  """
  package = _package("speechmos.dnsmos")
  if package is None or not _can_be_judged(y):
    return None
  found = package.run(np.clip(np.asarray(y, np.float32), -1, 1), RATE_HZ)
  names = {"overall": "ovrl", "signal": "sig", "background": "bak", "p808": "p808"}
  return {ours: float(found[f"{theirs}_mos"]) for ours, theirs in names.items()}


PACKAGES = {"STOI": "pystoi", "PESQ": "pesq", "DNSMOS": "speechmos.dnsmos"}
"""Metric -> the module that computes it."""


def not_at_hand() -> list[str]:
  """The perceptual metrics whose packages are not installed here."""
  return [metric for metric, name in PACKAGES.items() if _package(name) is None]


def _can_be_judged(x: np.ndarray) -> bool:
  return bool(len(x)) and bool(np.any(x))


@functools.cache
def _package(name: str) -> Any:
  """A module of the extra `audio-eval`, or None."""
  try:
    return importlib.import_module(name)
  except ImportError:
    return None
