"""The packaged codecs of sound: a held-out second of speech comes back; EnCodec streams."""

from pathlib import Path

import jax
import numpy as np
import pytest

import tokzoo
from tokzoo.data.sound import read_sound
from tokzoo.metrics import mel_distance, si_snr

PROMPT = Path(__file__).parent / "data" / "prompt.flac"


@pytest.fixture(scope="module")
def codec():
  return tokzoo.load("encodec-speech-nano")


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
  return read_sound(PROMPT, 16_000, 1)


@pytest.fixture(scope="module")
def tokens(codec, speech):
  return codec.encode(speech)


def test_a_held_out_second_comes_back_better_with_every_doubling(codec, speech, tokens):
  assert tokens.ids.shape == (1, 100, 8)
  assert codec.kbps_of(tokens, len(speech)) == pytest.approx(6.4)
  ratios, distances = [], []
  for codebooks in (1, 8):
    few = tokens.replace(ids=tokens.ids[..., :codebooks])
    made = codec.decode(few, len(speech))
    ratios.append(float(si_snr(speech[None], made)[0]))
    distances.append(float(mel_distance(speech[None], made, 16_000)[0]))
  assert ratios[0] < ratios[1] and ratios[1] > 8.0
  assert distances[0] > distances[1] and distances[1] < 2.75


def test_its_codes_are_alive(tokens):
  assert all(len(np.unique(book)) > 30 for book in np.asarray(tokens.ids)[0].T)


def test_it_streams(codec, speech, tokens):
  module, variables = codec.module, codec.variables
  step = jax.jit(lambda s, x: module.apply(variables, s, x, method="encode_step"))
  state, ids = module.apply(variables, 1, method="init_state"), []
  for piece in np.split(speech[None], 5, 1):
    state, found = step(state, piece)
    ids.append(np.asarray(found.ids))
  assert np.array_equal(np.concatenate(ids, 1), np.asarray(tokens.ids))


OTHERS = {
  "wavtokenizer": 7.0,
  "mimi": 4.0,
  "speechtokenizer": 3.0,
  "dac": 7.0,
  "snac": 6.5,
  "xcodec": 7.5,
}
"""SI-SNR in dB that the second has at least."""


@pytest.mark.parametrize("slug", OTHERS)
def test_the_other_codecs_give_it_back(slug, speech):
  other = tokzoo.load(f"{slug}-speech-nano")
  tokens = other.encode(speech)
  made = other.decode(tokens, len(speech))
  rate = other.kbps_of(tokens, len(speech))
  assert rate == pytest.approx(max(other.config.rates_kbps))
  assert float(si_snr(speech[None], made)[0]) > OTHERS[slug]
