"""Sound of mel spectra, without a trained vocoder.

Mel magnitudes become those of a linear spectrum by non-negative least squares (multiplicative
updates, Lee and Seung 2001); their phases are found by Griffin and Lim's iteration (1984), which
goes back and forth between spectrum and wave. What comes out is intelligible at best: a trained
vocoder would be far better, and few mel bins tell little.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from tokzoo.errors import TokzooError
from tokzoo.nn.spectra import Mel, hann, mel_filters, stft

_TINY = 1e-9


def from_log_mel(
  logs: Float[Array, "B L m"],
  mel: Mel,
  rate_hz: int,
  rng: PRNGKeyArray,
  iterations: int = 32,
) -> Float[Array, "B T 1"]:
  """A wave whose log mel spectrum is about the given one, T = (L - 1) hop.

  Args:
    logs: what `mel` gives, natural logarithms.
    mel: centred, as `Mel` is by default, with log="e".
    rate_hz: of the sound.
    rng: of the first phases.
    iterations: of either step.

  Raises:
    TokzooError: another kind of spectrum, or too few frames for a window.
  """
  if mel.log != "e" or mel.padding != "center" or mel.normalized or mel.floor:
    raise TokzooError(f"only centred mel spectra in nats can be inverted, not {mel}.")
  if (logs.shape[1] - 1) * mel.hop <= mel.n_fft // 2:
    raise TokzooError(
      f"{logs.shape[1]} frames are shorter than a window of {mel.n_fft} samples: give more."
    )
  filters = mel_filters(rate_hz, mel.n_fft, mel.num_mels, mel.scale, mel.unit_area)
  found = _unmixed(jnp.exp(logs), jnp.asarray(filters), iterations)
  loudness = found.astype(jnp.complex64)
  angles = jax.random.uniform(rng, loudness.shape, maxval=2 * np.pi)

  def turn(_, phase):
    wave = _wave(loudness * phase, mel)
    found = stft(wave, mel.n_fft, mel.hop, center=True)
    return found / jnp.maximum(jnp.abs(found), _TINY).astype(found.dtype)

  first = jax.lax.complex(jnp.cos(angles), jnp.sin(angles))
  phase = jax.lax.fori_loop(0, iterations, turn, first)
  return _wave(loudness * phase, mel)[..., None]


def _unmixed(
  mels: Float[Array, "B L m"], filters: Float[Array, "K m"], iterations: int
) -> Float[Array, "B L K"]:
  """Magnitudes S of which S filters is nearest to the mel magnitudes, none below 0."""
  wanted = mels @ filters.T

  def move(_, s):
    return s * wanted / jnp.maximum((s @ filters) @ filters.T, _TINY)

  # Bins that no filter sees stay silent.
  start = jnp.where(filters.sum(1) > 0, 1.0, 0.0)
  start = jnp.broadcast_to(start[None, None], wanted.shape)
  return jax.lax.fori_loop(0, iterations, move, start)


def _wave(spectrum: Complex[Array, "B L K"], mel: Mel) -> Float[Array, "B T"]:
  """The inverse of the centred transform: windowed frames, added, over the windows' squares."""
  batch, length, _ = spectrum.shape
  window = hann(mel.n_fft)
  frames = jnp.fft.irfft(spectrum, mel.n_fft, axis=-1)
  frames = frames * jnp.asarray(window, jnp.float32)[None, None]
  places = np.arange(length)[:, None] * mel.hop + np.arange(mel.n_fft)[None]
  weight = np.zeros(places.max() + 1)
  np.add.at(weight, places, np.broadcast_to(window**2, places.shape))
  total = jnp.zeros((batch, len(weight)), jnp.float32).at[:, places].add(frames)
  first, samples = mel.n_fft // 2, (length - 1) * mel.hop
  kept = slice(first, first + samples)
  return total[:, kept] / jnp.asarray(np.maximum(weight, 1e-3), jnp.float32)[None, kept]
