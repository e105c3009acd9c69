"""Loudness by ITU-R BS.1770-4, and what training data are done with it: DAC's transforms.

The meter is pyloudnorm's and audiotools': its two filters follow the audio cookbook's formulas
instead of the standard's printed coefficients, and sounds below half a second are filled up with
silence.
"""

import functools

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

QUIETEST = -120.0
"""LUFS of what has no block above the absolute gate, such as silence."""

_BLOCK_S = 0.4
"""Of a block; the next begins after a quarter of it."""
_OFFSET, _ABSOLUTE, _RELATIVE = -0.691, -70.0, -10.0


def loudness(samples: Float[Array, "T C"], rate_hz: int) -> float:
  """Integrated loudness in LUFS, of 1 or 2 channels in [-1, 1]."""
  short = max(int(0.5 * rate_hz) - len(samples), 0)
  weighted = np.pad(samples.astype(np.float64), ((0, short), (0, 0)))
  for b, a in _k_weighting(rate_hz):
    weighted = _filtered(b, a, weighted)
  block, step = int(_BLOCK_S * rate_hz), int(_BLOCK_S * rate_hz * 0.25)
  starts = range(0, len(weighted) - block + 1, step)
  power = np.stack([np.square(weighted[s : s + block]).sum(0) for s in starts])
  power = power.sum(1) / (_BLOCK_S * rate_hz)  # over channels, whose gains are 1
  heard = power[_lufs(power) > _ABSOLUTE]
  if not len(heard):
    return QUIETEST
  heard = heard[_lufs(heard) > _lufs(heard.mean()) + _RELATIVE]
  return max(float(_lufs(heard.mean())), QUIETEST)


def at_loudness(
  samples: Float[Array, "T C"], rate_hz: int, db: float
) -> Float[Array, "T C"]:
  """The sound at a loudness of `db` LUFS; a channel whose peak is then above 1 is made softer."""
  louder = samples * 10.0 ** ((db - loudness(samples, rate_hz)) / 20.0)
  return (louder / np.maximum(np.abs(louder).max(0), 1.0)).astype(np.float32)


def phase_shifted(samples: Float[Array, "T C"], shift: float) -> Float[Array, "T C"]:
  """Every frequency's phase moved by `shift` radians.

  By one transform of the whole sound, where audiotools goes through short ones.
  """
  spectrum = np.fft.rfft(samples.astype(np.float64), axis=0) * np.exp(1j * shift)
  return np.fft.irfft(spectrum, len(samples), axis=0).astype(np.float32)


def _lufs(power: Array) -> Array:
  with np.errstate(divide="ignore"):
    return _OFFSET + 10.0 * np.log10(power)


def _filtered(b: Array, a: Array, samples: Float[Array, "T C"]) -> Float[Array, "T C"]:
  import scipy.signal  # slow to import; jax brings it

  return np.asarray(scipy.signal.lfilter(b, a, samples, axis=0))


@functools.cache
def _k_weighting(rate_hz: int) -> tuple[tuple[Array, Array], ...]:
  """Numerators and denominators: a shelf for the head, a high pass for low frequencies."""

  def angles(hz: float, q: float) -> tuple[float, float]:
    turn = 2.0 * np.pi * hz / rate_hz
    return float(np.cos(turn)), float(np.sin(turn) / (2.0 * q))

  gain = 10.0 ** (4.0 / 40.0)
  cos, alpha = angles(1500.0, 1.0 / np.sqrt(2.0))
  root = 2.0 * np.sqrt(gain) * alpha
  up, down = gain + 1.0, gain - 1.0
  b = gain * np.array(
    [up + down * cos + root, -2.0 * (down + up * cos), up + down * cos - root]
  )
  a = np.array(
    [up - down * cos + root, 2.0 * (down - up * cos), up - down * cos - root]
  )
  shelf = b / a[0], a / a[0]
  cos, alpha = angles(38.0, 0.5)
  b = np.array([(1.0 + cos) / 2.0, -(1.0 + cos), (1.0 + cos) / 2.0])
  a = np.array([1.0 + alpha, -2.0 * cos, 1.0 - alpha])
  return shelf, (b / a[0], a / a[0])
