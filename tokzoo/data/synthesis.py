"""Synthesised sounds: what a codec can be tried on where there is no recording.

An utterance is a row of units, each a vowel-like colour: harmonics of a gliding pitch, weighted
by the resonances (formants) of the unit's vowel, after a short noise burst at every second unit.
It is no speech, but has what codecs stumble over: pitch, moving resonances, onsets, silence.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

VOWELS_HZ = (
  (270, 2290, 3010),
  (390, 1990, 2550),
  (530, 1840, 2480),
  (660, 1720, 2410),
  (730, 1090, 2440),
  (570, 840, 2410),
  (440, 1020, 2240),
  (300, 870, 2240),
)
"""First three resonances of eight vowels (Peterson and Barney 1952, means of men), in Hz."""

NUM_PITCHES = 8
"""Steps of pitch that `Utterance.pitches_at` tells apart."""

_BANDWIDTHS_HZ = (80.0, 110.0, 160.0)
_CONTROL_HZ = 200
"""Rate at which amplitudes are computed; between they are interpolated."""


@dataclasses.dataclass(frozen=True)
class Utterance:
  """A synthesised sound and what it is made of.

  samples:   float32[T, 1] in [-1, 1]
  units:     int32[N], indices into VOWELS_HZ
  ends_s:    float64[N], when each unit ends, in seconds
  pitch_hz:  of its start
  track_hz:  float64[T], the gliding pitch
  rate_hz:   samples a second
  """

  samples: Float[np.ndarray, "T 1"]
  units: Int[np.ndarray, "N"]
  ends_s: Float[np.ndarray, "N"]
  pitch_hz: float
  track_hz: Float[np.ndarray, "T"]
  rate_hz: int

  def units_at(self, times_s: Float[np.ndarray, "L"]) -> Int[np.ndarray, "L"]:
    """The unit at each time; that of the last one after it."""
    places = np.searchsorted(self.ends_s, times_s, side="right")
    return self.units[np.minimum(places, len(self.units) - 1)]

  def pitches_at(self, times_s: Float[np.ndarray, "L"]) -> Int[np.ndarray, "L"]:
    """The pitch at each time as one of `NUM_PITCHES` steps of an even scale from 70 to 330 Hz."""
    places = np.minimum((times_s * self.rate_hz).astype(int), len(self.track_hz) - 1)
    octaves = np.log(self.track_hz[places] / 70) / np.log(330 / 70)
    return np.clip((NUM_PITCHES * octaves).astype(np.int32), 0, NUM_PITCHES - 1)


def utterance(
  rng: np.random.Generator, rate_hz: int, seconds: float, unit_s: float = 0.16
) -> Utterance:
  """One utterance.

  Args:
    rng: of all draws.
    rate_hz: samples a second.
    seconds: its length.
    unit_s: mean length of a unit; they vary by a third.
  """
  length = max(round(seconds * rate_hz), 1)
  ends, units = [], []
  while not ends or ends[-1] < seconds:
    units.append(int(rng.integers(len(VOWELS_HZ))))
    ends.append((ends[-1] if ends else 0.0) + unit_s * rng.uniform(2 / 3, 4 / 3))
  ends_s, chosen = np.array(ends), np.array(units, np.int32)
  pitch = float(np.exp(rng.uniform(np.log(90), np.log(240))))
  glide, wobble = rng.uniform(-0.3, 0.3), rng.uniform(3, 6)
  times = np.arange(length) / rate_hz
  frequency = pitch * np.exp(
    glide * times / seconds + 0.02 * np.sin(2 * np.pi * wobble * times)
  )
  phase = 2 * np.pi * np.cumsum(frequency) / rate_hz

  control = np.arange(0, seconds + 2 / _CONTROL_HZ, 1 / _CONTROL_HZ)
  places = np.minimum(np.searchsorted(ends_s, control, side="right"), len(chosen) - 1)
  formants = np.array(VOWELS_HZ, np.float64)[chosen[places]]
  formants = _smoothed(formants)
  starts = np.concatenate([[0.0], ends_s[:-1]])
  loud = _loudness(control - starts[places], (ends_s - starts)[places])

  sound = np.zeros(length)
  highest = min(rate_hz / 2, 5_000.0)
  for harmonic in range(1, int(highest / frequency.max()) + 1):
    at = harmonic * np.interp(control, times, frequency)
    gain = sum(
      weight / (1 + ((at - formants[:, i]) / _BANDWIDTHS_HZ[i]) ** 2)
      for i, weight in enumerate((1.0, 0.5, 0.25))
    )
    amplitude = np.interp(times, control, loud * (gain + 0.02 / harmonic))
    sound += amplitude * np.sin(harmonic * phase)
  sound /= max(np.abs(sound).max(), 1e-9)
  for start in starts[::2]:
    begin = round(start * rate_hz)
    burst = rng.normal(size=round(0.03 * rate_hz))[: max(length - begin, 0)]
    fade = np.exp(-np.arange(len(burst)) / (0.008 * rate_hz))
    sound[begin : begin + len(burst)] += 0.15 * burst * fade
  level = rng.uniform(0.3, 0.8) / max(np.abs(sound).max(), 1e-9)
  samples = (level * sound).astype(np.float32)[:, None]
  return Utterance(samples, chosen, ends_s, pitch, frequency, rate_hz)


def teacher(
  labels: Int[np.ndarray, "L"], num_labels: int, dim: int, seed: int
) -> Float[np.ndarray, "L D"]:
  """Features of a made-up teacher: a random vector for each label, smoothed over five frames.

  Args:
    labels: of every frame, in [0, num_labels).
    num_labels: how many there are.
    dim: D.
    seed: of the vectors: two seeds are two teachers that have nothing in common.
  """
  vectors = np.random.default_rng(seed).normal(size=(num_labels, dim))
  return _smoothed(vectors[labels]).astype(np.float32)


def _smoothed(formants: np.ndarray) -> np.ndarray:
  """Resonances that move within 25 ms: a Hann window of five control points."""
  window = np.hanning(7)[1:-1] / np.hanning(7)[1:-1].sum()
  padded = np.pad(formants, ((2, 2), (0, 0)), mode="edge")
  shifted = np.stack([padded[i : i + len(formants)] for i in range(len(window))])
  return np.einsum("i,i...->...", window, shifted)


def _loudness(since_s: np.ndarray, length_s: np.ndarray) -> np.ndarray:
  """Each unit swells within 20 ms and dies away in its last 30 ms."""
  attack = np.clip(since_s / 0.02, 0, 1)
  return attack * np.clip((length_s - since_s) / 0.03, 0, 1)
