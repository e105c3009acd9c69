"""Codecs of sound: rates, long sounds in pieces, streams, and what they refuse."""

import jax
import numpy as np
import pytest

import tokzoo
from tests.codecs import CAUSAL, RATE, STEREO, pretrained, save_codec, sound
from tokzoo.errors import TokzooError
from tokzoo.hub import PretrainedCodec, codec
from tokzoo.tokens import Origin


@pytest.fixture(scope="module")
def causal() -> PretrainedCodec:
  return pretrained(CAUSAL)


@pytest.fixture
def short_pieces(monkeypatch):
  """Pieces of half a second, so that three seconds are long."""
  monkeypatch.setattr(codec, "CHUNK_S", 0.5)
  monkeypatch.setattr(codec, "CONTEXT_S", 0.25)


def blocks_of(wave, size=97):
  return [wave[i : i + size] for i in range(0, len(wave), size)]


def test_a_codec_is_loaded_as_one(tmp_path):
  loaded = tokzoo.load(save_codec(tmp_path / "m.safetensors"))
  assert isinstance(loaded, PretrainedCodec) and loaded.config == CAUSAL
  tokens = loaded.encode(sound(0.1))
  assert tokens.ids.shape == (1, 20, 4)
  assert tokens.origin == Origin("encodec", loaded.fingerprint)


def test_rates_pick_codebooks_and_others_are_refused(causal):
  assert causal.codebooks_of(1.6) == 2 and causal.codebooks_of(None) is None
  with pytest.raises(
    TokzooError, match=r"no rate of 6 kbps: choose one of 0\.8, 1\.6, 3\.2"
  ):
    causal.codebooks_of(6)
  tokens = causal.encode(sound(0.5), causal.codebooks_of(1.6))
  assert tokens.ids.shape == (1, 100, 2)
  assert np.isclose(causal.kbps_of(tokens, 800), 1.6)


def test_a_sound_comes_back_at_its_length(causal):
  for length in (1, 7, 8, 801):
    wave = sound(1.0)[:length]
    made = causal.reconstruct(wave)
    assert made.shape == (1, length, 1) and made.dtype == np.float32
    assert np.abs(made).max() <= 1
  batch = np.stack([sound(0.25), sound(0.25, seed=1)])
  both = causal.encode(batch)
  for row in range(2):
    alone = causal.encode(batch[row])
    assert np.array_equal(both.ids[row], alone.ids[0])


def test_a_long_sound_of_a_causal_codec_is_that_of_the_whole(causal, short_pieces):
  wave = sound(2.97)
  tokens, samples = causal.encode_blocks(blocks_of(wave), 3)
  whole = causal._encode(causal.variables, wave[None], 3)
  assert samples == len(wave) and tokens.grid == (tokens.ids.shape[1],)
  assert tokens.ids.shape == whole.ids.shape
  assert np.mean(np.asarray(tokens.ids) == np.asarray(whole.ids)) > 0.995
  made = causal.decode(tokens, samples)
  plain = tokens.replace(origin=None)
  at_once = np.asarray(causal._decode(causal.variables, plain, jax.random.key(0)))
  assert made.shape == (1, samples, 1)
  assert np.abs(made - np.clip(at_once, -1, 1)[:, :samples]).max() < 1e-4
  pieces = list(causal.decode_blocks(tokens, samples))
  assert len(pieces) == 6 and np.array_equal(np.concatenate(pieces), made[0])


# The last chunk, or the last two, are not full; 3.97: the third begins in the second's end.
@pytest.mark.parametrize("length", [4.6, 3.97])
def test_chunks_of_a_codec_that_has_them_are_those_of_the_whole(monkeypatch, length):
  monkeypatch.setattr(codec, "CHUNK_S", 2.0)
  stereo = pretrained(STEREO)
  wave = sound(length, channels=2)
  tokens, samples = stereo.encode_blocks(blocks_of(wave, 1_000))
  whole = stereo._encode(stereo.variables, wave[None], None)
  assert tokens.scale.shape == whole.scale.shape
  assert np.array_equal(tokens.ids, whole.ids)
  assert np.allclose(tokens.scale, whole.scale, rtol=1e-5)
  made = stereo.decode(tokens, samples)
  plain = tokens.replace(origin=None)
  at_once = np.asarray(stereo._decode(stereo.variables, plain, jax.random.key(0)))
  assert np.abs(made - np.clip(at_once, -1, 1)[:, :samples]).max() < 1e-4


@pytest.mark.slow
def test_windows_of_a_convolutional_codec_are_those_of_the_whole(short_pieces):
  from tokzoo.nn.dac import DACNet
  from tokzoo.tokenizers.audio.dac import Config

  net = DACNet(encoder_dim=4, rates=(2, 4), decoder_dim=8)
  dac = pretrained(Config(sample_rate_hz=RATE, net=net, num_codebooks=2, num_codes=16))
  wave = sound(3.01)
  tokens, samples = dac.encode_blocks(blocks_of(wave))
  whole = dac._encode(dac.variables, wave[None], None)
  assert np.mean(np.asarray(tokens.ids) == np.asarray(whole.ids)) > 0.995
  made = dac.decode(tokens, samples)
  plain = tokens.replace(origin=None)
  at_once = np.asarray(dac._decode(dac.variables, plain, jax.random.key(0)))
  length = min(samples, at_once.shape[1])
  assert np.abs(made - np.clip(at_once, -1, 1))[:, :length].max() < 1e-4


def test_tokens_of_another_codec_are_refused(causal):
  other = pretrained(CAUSAL, seed=1)
  with pytest.raises(TokzooError, match="were made by encodec@"):
    other.decode(causal.encode(sound(0.1)))
  tokens = causal.encode(sound(0.1))
  more = tokens.replace(ids=np.zeros((1, 20, 5), np.int32))
  with pytest.raises(TokzooError, match="5 codebooks, this codec has 1 to 4"):
    causal.decode(more)
  with pytest.raises(TokzooError, match="cannot stream"):
    pretrained(STEREO).init_state()


@pytest.mark.parametrize(
  "bad, message",
  [
    (np.zeros((0, 1), np.float32), r"\[B, T, 1\]"),
    (np.zeros((100, 2), np.float32), "mix the channels"),
    (np.full((100, 1), np.nan, np.float32), "100 samples are NaN"),
    (np.full((100, 1), 3.0, np.float32), r"this reaches 3"),
    (np.zeros((100, 1), np.int16), "int16"),
  ],
)
def test_sound_that_is_not_sound(causal, bad, message):
  with pytest.raises(TokzooError, match=message):
    causal.encode(bad)
