"""Metrics of sound: ratios by hand, packages where they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.data.synthesis import utterance
from tokzoo.errors import TokzooError
from tokzoo.metrics import SISNR, mel_distance, si_sdr, si_snr
from tokzoo.metrics import audio as metrics

RATE = 16_000


def voice(seconds=1.0, seed=0):
  return utterance(np.random.default_rng(seed), RATE, seconds).samples


def with_noise(x, decibels, seed=1):
  noise = np.random.default_rng(seed).normal(size=x.shape)
  noise -= noise.mean()
  noise *= np.sqrt((x**2).sum() / (noise**2).sum()) * 10 ** (-decibels / 20)
  return (x + noise).astype(np.float32)


def test_ratios_are_those_of_the_noise():
  x = voice()
  x -= x.mean()
  rows = np.stack([x, x, 0.3 * x])
  heard = np.stack([with_noise(x, 20), 0.2 * with_noise(x, 5), with_noise(x, 10)])
  found = jax.jit(si_snr)(rows, heard)
  assert np.allclose(found, [20, 5, 10], atol=0.1)
  offset = heard + 0.1
  assert np.allclose(jax.jit(si_snr)(rows, offset), found, atol=1e-2)
  assert float(jax.jit(si_sdr)(rows, offset)[0]) < float(found[0]) - 1
  by_hand = np.vdot(x, heard[1]) / np.vdot(x, x) * x
  ratio = 10 * np.log10((by_hand**2).sum() / ((heard[1] - by_hand) ** 2).sum())
  assert np.allclose(found[1], ratio, atol=1e-3)


def test_ratios_at_their_ends():
  x = voice(0.1)[None]
  run = jax.jit(si_snr)
  assert 60 < float(run(x, x)[0]) <= metrics.CEILING_DB
  assert float(run(x, 0 * x)[0]) <= 0.0
  assert np.isnan(run(0 * x, x)[0])
  with pytest.raises(TokzooError, match="one shape"):
    si_snr(x, x[:, 1:])


def test_the_mean_leaves_silent_and_filling_rows_out():
  x = voice(0.2)
  rows = np.stack([x, 0 * x, x, x])
  heard = np.stack([with_noise(x, 10), x, with_noise(x, 20), np.full_like(x, np.nan)])
  valid = jnp.asarray([True, True, True, False])
  state = SISNR.from_batch(jnp.asarray(rows), jnp.asarray(heard), valid)
  assert float(state.count) == 2 and np.isclose(state.compute(), 15, atol=0.1)
  assert np.isclose(state.merge(state).compute(), 15, atol=0.1)
  silent = SISNR.from_batch(jnp.asarray(rows[1:2]), jnp.asarray(heard[1:2]))
  assert np.isnan(silent.compute())


def test_mel_distance_grows_with_the_noise_and_knows_short_sounds():
  x = voice()[None]
  run = jax.jit(mel_distance, static_argnums=2)
  found = [float(run(x, with_noise(x, db), RATE)[0]) for db in (30, 10)]
  assert 0 < found[0] < found[1]
  assert float(run(x, x, RATE)[0]) == 0
  assert np.isfinite(run(x[:, :40], x[:, 40:80], RATE)).all()
  assert np.isnan(run(x[:, :4], x[:, 4:8], RATE)).all()


def test_sdr_forgives_a_filter_but_not_noise():
  x = voice(0.5)[:, 0]
  echo = np.convolve(x, [0.6, 0, 0, -0.3, 0.1])[: len(x)]
  assert (
    metrics.sdr(x, echo) > 25 > float(si_snr(x[None, :, None], echo[None, :, None])[0])
  )
  noisy = with_noise(x, 10)
  assert 9 < metrics.sdr(x, noisy) < 12
  assert metrics.sdr(x, x) == metrics.CEILING_DB
  assert np.isnan(metrics.sdr(0 * x, x))


def test_perceptual_metrics_are_those_of_their_packages():
  package = pytest.importorskip("pystoi")
  x = voice()[:, 0]
  noisy = with_noise(x, 5)
  assert metrics.stoi(x, noisy, RATE) == float(package.stoi(x, noisy, RATE))
  assert metrics.stoi(x, x, RATE) > 0.999 > metrics.stoi(x, noisy, RATE)
  theirs = pytest.importorskip("pesq").pesq(RATE, x, noisy, "wb")
  assert metrics.pesq(x, noisy) == float(theirs) and metrics.pesq(x, x) > 4


def test_what_cannot_be_judged_is_not_computed():
  x = voice(0.05)[:, 0]
  assert metrics.stoi(x, x, RATE) is None
  assert metrics.pesq(x, x) is None
  assert metrics.stoi(np.zeros(RATE), x, RATE) is None
  assert metrics.dnsmos(np.zeros(RATE)) is None


def test_without_packages_nothing_is_approximated(monkeypatch):
  monkeypatch.setattr(metrics, "_package", lambda name: None)
  x = voice(0.5)[:, 0]
  assert metrics.not_at_hand() == ["STOI", "PESQ", "DNSMOS"]
  assert metrics.stoi(x, x, RATE) is metrics.pesq(x, x) is metrics.dnsmos(x) is None


@pytest.mark.slow
def test_dnsmos_hears_noise():
  pytest.importorskip("speechmos.dnsmos")
  x = voice(2.0)[:, 0]
  clean, noisy = metrics.dnsmos(x), metrics.dnsmos(with_noise(x, 0))
  assert set(clean) == {"overall", "signal", "background", "p808"}
  assert noisy["background"] < clean["background"]
