"""Waves of mel spectra: the transform's inverse, and a wave that has the given spectrum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.nn.griffin_lim import _wave, from_log_mel
from tokzoo.nn.spectra import Mel, stft

RATE = 2_000
MEL = Mel(128, 40, 24, log="e")


def chord() -> jnp.ndarray:
  times = np.arange(1_200) / RATE
  rising = np.sin(2 * np.pi * (200 + 300 * times) * times)
  return jnp.asarray(0.4 * rising + 0.2 * np.sin(2 * np.pi * 620 * times), jnp.float32)


def test_the_inverse_of_the_transform():
  wave = chord()[None]
  back = jax.jit(lambda x: _wave(stft(x, 128, 40, center=True), MEL))(wave)
  np.testing.assert_allclose(back, wave, atol=1e-5)


def test_the_wave_has_the_spectrum():
  logs = MEL(chord()[None, :, None], RATE)
  run = jax.jit(functools.partial(from_log_mel, mel=MEL, rate_hz=RATE))
  wave = run(logs, rng=jax.random.key(0))
  assert wave.shape == (1, 1_200, 1)
  loud = np.asarray(logs) > np.asarray(logs).max() - 3
  error = np.abs(np.asarray(MEL(wave, RATE)) - np.asarray(logs))
  assert error[loud].mean() < 0.15
  # What a wave with any phases would have.
  noise = 0.3 * jax.random.normal(jax.random.key(1), wave.shape)
  assert np.abs(np.asarray(MEL(noise, RATE)) - np.asarray(logs))[loud].mean() > 0.5


def test_what_cannot_be_inverted():
  with pytest.raises(TokzooError, match="only centred mel spectra"):
    from_log_mel(jnp.zeros((1, 9, 24)), Mel(128, 40, 24), RATE, jax.random.key(0))
  with pytest.raises(TokzooError, match="2 frames are shorter than a window"):
    from_log_mel(jnp.zeros((1, 2, 24)), MEL, RATE, jax.random.key(0))
