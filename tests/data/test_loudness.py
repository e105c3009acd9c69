"""Loudness: the standard's tone, gates, crops; phases; and a recipe's data that have them."""

import dataclasses

import numpy as np
import pytest

from tokzoo.cli.experiments import load_experiment
from tokzoo.data import DataConfig, loader
from tokzoo.data.loudness import QUIETEST, at_loudness, loudness, phase_shifted
from tokzoo.data.packaged import sound_crops
from tokzoo.data.transforms import random_part

RATE = 48_000


def tone(seconds, hz=997.0, peak=1.0, channels=1):
  wave = peak * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)
  return np.repeat(wave[:, None], channels, 1).astype(np.float32)


@pytest.mark.parametrize("channels, expected", [(1, -3.01), (2, 0.0)])
def test_the_standards_tone(channels, expected):
  # BS.1770-4: 997 Hz at 0 dB in one channel is -3.01 LKFS.
  assert loudness(tone(3.0, channels=channels), RATE) == pytest.approx(
    expected, abs=0.05
  )


def test_low_tones_are_softer_and_high_ones_louder():
  low, middle, high = (loudness(tone(3.0, hz), RATE) for hz in (30.0, 997.0, 8_000.0))
  assert low < middle - 3 and high == pytest.approx(middle + 3.3, abs=0.3)


def test_pauses_do_not_count():
  with_pause = np.concatenate([tone(3.0), 1e-3 * tone(6.0)])
  assert loudness(with_pause, RATE) == pytest.approx(loudness(tone(3.0), RATE), abs=0.3)
  assert loudness(np.zeros((RATE, 1), np.float32), RATE) == QUIETEST


def test_a_sound_at_a_loudness():
  soft = at_loudness(tone(2.0, peak=0.01), RATE, -16.0)
  assert soft.dtype == np.float32 and loudness(soft, RATE) == pytest.approx(
    -16, abs=0.01
  )
  clicks = np.zeros((RATE, 2), np.float32)
  clicks[:: RATE // 4, 0] = 0.1
  loud = at_loudness(clicks, RATE, -16.0)
  assert np.abs(loud).max() == pytest.approx(1.0)
  silence = np.zeros((RATE // 3, 1), np.float32)
  np.testing.assert_array_equal(at_loudness(silence, RATE, -16.0), silence)


def test_phases_move_by_an_angle():
  turned = phase_shifted(tone(1.0), np.pi / 2)  # a sine becomes a cosine
  expected = np.cos(2 * np.pi * 997.0 * np.arange(RATE) / RATE)
  np.testing.assert_allclose(turned[:, 0], expected, atol=1e-5)
  np.testing.assert_allclose(phase_shifted(tone(1.0), np.pi), -tone(1.0), atol=1e-5)


def test_crops_have_the_loudness_and_a_phase_of_their_own():
  plain = sound_crops("train", 16_000, 0.38)
  config = dataclasses.replace(plain, loudness_db=-16.0, shift_phase=True)
  still = dataclasses.replace(config, shift_phase=False)
  crops = [next(loader(c, 8, seed=0))["audio"] for c in (plain, still, config)]
  found = [loudness(np.asarray(crop), 16_000) for crop in crops[1]]
  assert np.median(found) == pytest.approx(-16, abs=0.01)
  # The phase is drawn after the place: the crops are the same, their spectra too.
  sizes = [np.abs(np.fft.rfft(crop[..., 0])) for crop in crops[1:]]
  np.testing.assert_allclose(sizes[0][:, 1:-1], sizes[1][:, 1:-1], atol=1e-2)
  assert np.abs(crops[1] - crops[2]).max() > 0.1


def test_soft_crops_are_drawn_again_but_not_for_ever():
  """Two seconds of tone in sixteen: one crop in seven hears it, one of eight draws mostly does."""
  silence = np.zeros((16 * RATE, 1), np.float32)
  half = silence.copy()
  half[: 2 * RATE] = tone(2.0, peak=0.1)
  uniform = DataConfig(source="tones", crop="random", seconds=0.38, channels=1)
  loud = dataclasses.replace(uniform, softest_db=-40.0)

  def heard(config: DataConfig, samples: np.ndarray) -> int:
    record = {"audio": samples, "rate_hz": RATE, "key": "x"}
    rngs = (np.random.default_rng(seed) for seed in range(40))
    crops = [random_part(config, record, rng)["audio"] for rng in rngs]
    return sum(loudness(crop, RATE) > -40.0 for crop in crops)

  assert heard(uniform, half) < 12
  assert heard(loud, half) > 20
  assert heard(loud, silence) == 0


@pytest.mark.parametrize("rate", ["16khz", "24khz", "44khz"])
def test_dacs_published_settings_are_those_of_conf_final(rate):
  """Not of conf/base.yml, where all items drop out and training is shorter."""
  recipe = load_experiment("dac").RECIPES[rate]()
  assert recipe.steps == 400_000 and recipe.batch_size == 72
  assert recipe.task.model.quantizer_dropout == 0.5
  assert recipe.task.adversary.network.networks[0].always_pads


def test_dacs_published_data_have_all_three():
  recipe = load_experiment("dac").RECIPES["44khz"]()
  for data in (recipe.data, recipe.evaluators["held_out"].data):
    assert data.loudness_db == -16.0 and data.shift_phase and data.softest_db == -40.0
