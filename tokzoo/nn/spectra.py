"""Short-time Fourier transforms and mel filters, as torch, torchaudio and librosa define them.

Signals are float32[B, T]. Frames are cut by slicing, not by gathering, so that their gradient
is a sum of slices on every machine. Windows are Hann windows, periodic, as in torch.stft, unless
they are said to be flat.
"""

import dataclasses
import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Complex, Float

from tokzoo.errors import TokzooError

MelScale = Literal["htk", "slaney"]
"""htk: 2595 log10(1 + f / 700), torchaudio's default. slaney: linear below 1 kHz and
logarithmic above, librosa's default."""


def frames(x: Float[Array, "B T"], size: int, hop: int) -> Float[Array, "B F n"]:
  """Overlapping frames that lie wholly within: F = 1 + (T - size) // hop.

  Raises:
    TokzooError: the signal is shorter than a frame.
  """
  if x.shape[1] < size:
    raise TokzooError(
      f"a window of {size} samples does not fit a signal of {x.shape[1]}: give longer sounds, "
      "or shorter windows."
    )
  number = 1 + (x.shape[1] - size) // hop
  per_frame = -(-size // hop)
  needed = (number - 1 + per_frame) * hop
  x = jnp.pad(x, ((0, 0), (0, max(needed - x.shape[1], 0))))[:, :needed]
  blocks = x.reshape(x.shape[0], -1, hop)
  shifted = [blocks[:, i : i + number] for i in range(per_frame)]
  return jnp.concatenate(shifted, -1)[..., :size]


def stft(
  x: Float[Array, "B T"],
  n_fft: int,
  hop: int,
  win: int | None = None,
  center: bool = False,
  normalized: bool = False,
  flat: bool = False,
) -> Complex[Array, "B F K"]:
  """torch.stft with a Hann window: complex64[B, F, n_fft / 2 + 1].

  Args:
    x: the signal.
    n_fft: samples of a frame.
    hop: between frames.
    win: samples of the window, in the middle of a frame; None: n_fft.
    center: pad n_fft / 2 samples on both sides by reflection.
    normalized: divide by the root of the window's summed squares (torchaudio's
      `normalized=True`).
    flat: a window of ones instead (torch's `window=None`).
  """
  if center:
    x = reflect(x, n_fft // 2, n_fft // 2)
  window = np.ones(n_fft) if flat else hann(win or n_fft, n_fft)
  if normalized:
    window = window / np.sqrt(np.sum(window**2))
  cut = frames(x.astype(jnp.float32), n_fft, hop)
  return jnp.fft.rfft(cut * jnp.asarray(window, jnp.float32)[None, None])


def reflect(x: Float[Array, "B T"], left: int, right: int) -> Float[Array, "B t"]:
  """Pads by reflection, as torch's pad mode does.

  Raises:
    TokzooError: the signal is no longer than what is reflected.
  """
  if x.shape[1] <= max(left, right):
    raise TokzooError(
      f"{max(left, right)} samples cannot be reflected of a signal of {x.shape[1]}: give "
      "longer sounds."
    )
  return jnp.pad(x, ((0, 0), (left, right)), mode="reflect")


def magnitude(spectrum: Complex[Array, "B F K"]) -> Float[Array, "B F K"]:
  """|S|, with gradient 0 where S is 0."""
  power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  is_zero = power == 0
  return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, power)))


@functools.cache
def hann(size: int, padded: int | None = None) -> np.ndarray:
  """A periodic Hann window, float64[padded], in the middle of zeros."""
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
  left = ((padded or size) - size) // 2
  return np.pad(window, (left, (padded or size) - size - left))


@functools.cache
def mel_filters(
  rate_hz: int,
  n_fft: int,
  num_mels: int,
  scale: MelScale = "slaney",
  is_normalized: bool = True,
  low_hz: float = 0.0,
  high_hz: float | None = None,
) -> np.ndarray:
  """Triangular filters, float32[n_fft / 2 + 1, num_mels].

  librosa.filters.mel and torchaudio's MelScale (norm="slaney") agree with them.

  Args:
    rate_hz: of the signal.
    n_fft: of the transform.
    num_mels: number of filters; with short transforms some of them see no bin and are 0.
    scale: where the centres lie.
    is_normalized: each filter has the area of 1 Hz (Slaney), not the height 1.
    low_hz, high_hz: where the first begins and the last ends; None: half the rate.
  """
  to_mel, to_hz = _SCALES[scale]
  top = rate_hz / 2 if high_hz is None else high_hz
  edges = to_hz(
    np.linspace(to_mel(np.array(low_hz)), to_mel(np.array(top)), num_mels + 2)
  )
  bins = np.linspace(0, rate_hz / 2, n_fft // 2 + 1)
  slopes = edges[None] - bins[:, None]
  widths = np.diff(edges)
  rising = -slopes[:, :-2] / widths[None, :-1]
  falling = slopes[:, 2:] / widths[None, 1:]
  filters = np.maximum(0, np.minimum(rising, falling))
  if is_normalized:
    filters *= (2.0 / (edges[2:] - edges[:-2]))[None]
  return filters.astype(np.float32)


"""What mel magnitudes are raised to before a logarithm, in every published variant."""


@dataclasses.dataclass(frozen=True)
class Mel:
  """One mel spectrogram.

  n_fft:       samples of a window
  hop:         between windows
  num_mels:    filters
  scale:       where they lie
  padding:     center: half a window by reflection; hop: (n_fft - hop) / 2 by reflection;
               none: windows lie within the signal
  normalized:  divide by the root of the window's summed squares
  unit_area:   each filter has the area of 1 Hz (Slaney's), not the height 1
  floor:       added to every magnitude
  log:         e, 10, or none
  least:       the smallest value that has a logarithm of its own
  """

  n_fft: int
  hop: int
  num_mels: int
  scale: MelScale = "slaney"
  padding: Literal["center", "hop", "none"] = "center"
  normalized: bool = False
  unit_area: bool = True
  floor: float = 0.0
  log: Literal["e", "10", "none"] = "10"
  least: float = 1e-5

  def __call__(self, wave: Array, rate_hz: int) -> Float[Array, "N F M"]:
    """Waves float32[B, T, C] to mel spectra, one a channel: N = B C."""
    x = signals(wave)
    if self.padding == "hop":
      side = (self.n_fft - self.hop) // 2
      x = reflect(x, side, side)
    spectrum = stft(
      x,
      self.n_fft,
      self.hop,
      center=self.padding == "center",
      normalized=self.normalized,
    )
    filters = mel_filters(
      rate_hz, self.n_fft, self.num_mels, self.scale, self.unit_area
    )
    mels = (magnitude(spectrum) + self.floor) @ jnp.asarray(filters)
    if self.log == "none":
      return mels
    logs = jnp.log(jnp.maximum(mels, self.least))
    return logs / jnp.log(10.0) if self.log == "10" else logs


def dac_mels(number: int = 7) -> tuple[Mel, ...]:
  """DAC's spectra: windows 32, 64, ... of 5, 10, ... librosa mels, log10; 7 as published."""
  counts = (5, 10, 20, 40, 80, 160, 320)[:number]
  return tuple(Mel(32 * 2**i, 8 * 2**i, m) for i, m in enumerate(counts))


def signals(wave: Float[Array, "B T C"]) -> Float[Array, "N T"]:
  """Every channel as a signal of its own, float32."""
  return rearrange(wave.astype(jnp.float32), "b t c -> (b c) t")


def require_same(x: Array, y: Array) -> None:
  """Raises a TokzooError unless both are waves [B, T, C] of one shape."""
  if x.shape != y.shape or x.ndim != 3:
    raise TokzooError(
      f"waves of shape {list(x.shape)} were compared with {list(y.shape)}: both must be "
      "[B, T, C] of one shape; cut the longer."
    )


def _htk_mel(hz: np.ndarray) -> np.ndarray:
  return 2595.0 * np.log10(1.0 + hz / 700.0)


def _htk_hz(mel: np.ndarray) -> np.ndarray:
  return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


_STEP = np.log(6.4) / 27.0
"""Slaney: 27 filters from 1 kHz to 6.4 kHz; 15 mel at 1 kHz."""


def _slaney_mel(hz: np.ndarray) -> np.ndarray:
  return np.where(
    hz < 1000.0, 3.0 * hz / 200.0, 15.0 + np.log(np.maximum(hz, 1e-3) / 1000.0) / _STEP
  )


def _slaney_hz(mel: np.ndarray) -> np.ndarray:
  return np.where(mel < 15.0, 200.0 * mel / 3.0, 1000.0 * np.exp(_STEP * (mel - 15.0)))


_SCALES = {"htk": (_htk_mel, _htk_hz), "slaney": (_slaney_mel, _slaney_hz)}
