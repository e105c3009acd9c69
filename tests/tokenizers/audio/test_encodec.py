"""EnCodec's chunks, and the order and the noise of SNAC's tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tokenizers.audio.tiny import CONFIGS, run, sound, variables_of
from tokzoo.errors import TokzooError
from tokzoo.tokenizers.audio import encodec, snac
from tokzoo.tokens import Origin, Tokens, load_tokens, save_tokens

STEREO = CONFIGS["encodec-stereo"]


@pytest.mark.parametrize(
  "config", [STEREO, encodec.PRESETS["encodec-48khz"]], ids=["tiny", "published"]
)
def test_tokens_and_chunks_say_how_long_each_chunk_is(config):
  step = max(1, config.stride // 97)
  ends = [k * config.stride + r for k in (1, 2, 3) for r in range(-3, 4)]
  for samples in [*range(1, 4 * config.stride, step), *ends]:
    frames = config.frames(samples)
    assert len(frames) == -(-samples // config.stride)
    assert config.frames_of(sum(frames), len(frames)) == frames
  with pytest.raises(TokzooError, match="3 frames are not those of 3 chunks"):
    config.frames_of(3, 4 - 1)


@pytest.mark.parametrize("samples", [78, 155, 76 * 11 + 5])
def test_a_chunk_is_coded_by_itself(samples):
  """Tokens and scale of every chunk are those of the chunk alone; 12 chunks run in a loop."""
  x = sound(STEREO, samples, batch=1)
  tokens = run("encodec-stereo", "encode", x)
  frames = STEREO.frames(samples)
  assert tokens.scale.shape == (1, len(frames))
  at = 0
  for i, count in list(enumerate(frames))[:2] + list(enumerate(frames))[-2:]:
    at = sum(frames[:i])
    piece = x[:, i * STEREO.stride : i * STEREO.stride + STEREO.chunk]
    alone = run("encodec-stereo", "latents", piece[:, : STEREO.chunk])[1][:, :1]
    np.testing.assert_allclose(tokens.scale[:, i : i + 1], alone, rtol=1e-5)
    if piece.shape[1] > STEREO.stride:
      continue
    own = run("encodec-stereo", "encode", piece)
    np.testing.assert_array_equal(tokens.ids[:, at : at + count], own.ids)


def test_loudness_goes_into_the_scale():
  x = sound(STEREO, 300)
  quiet, loud = (run("encodec-stereo", "encode", x * gain) for gain in (0.01, 1.0))
  np.testing.assert_array_equal(quiet.ids, loud.ids)
  np.testing.assert_allclose(quiet.scale, loud.scale * 0.01, rtol=1e-4)
  audio = run("encodec-stereo", "decode", quiet)
  np.testing.assert_allclose(
    audio, run("encodec-stereo", "decode", loud) * 0.01, atol=1e-6
  )


def test_silence_has_a_scale():
  tokens = run("encodec-stereo", "encode", jnp.zeros((1, 100, 2)))
  tokens.check()
  assert (np.asarray(tokens.scale) > 0).all()
  audio = run("encodec-stereo", "decode", tokens)
  assert np.abs(audio).max() < 1e-6


def test_overlapping_chunks_fade_into_each_other():
  ones = jnp.ones((1, 3, 80, 2)) * jnp.asarray([1.0, 2.0, 3.0])[None, :, None, None]
  y = np.asarray(encodec._overlap_add(ones, [80, 80, 40], 76))[0, :, 0]
  assert len(y) == 2 * 76 + 40
  np.testing.assert_allclose(y[:76], 1, rtol=1e-6)
  np.testing.assert_allclose(y[80:152], 2, rtol=1e-6)
  assert (np.diff(y[75:81]) > 0).all() and y[156:].max() < 3 + 1e-5


def test_tokens_without_their_scale_are_refused(tmp_path):
  x = sound(STEREO, 200)
  tokens = run("encodec-stereo", "encode", x)
  module = STEREO.build()
  with pytest.raises(TokzooError, match="have no scale, which this codec needs"):
    module.apply(
      variables_of("encodec-stereo"), tokens.replace(scale=None), method="decode"
    )
  config = CONFIGS["encodec"]
  scaled = Tokens.from_ids(jnp.zeros((1, 2, 1), jnp.int32), 16, scale=jnp.ones((1, 1)))
  with pytest.raises(TokzooError, match="have a scale, which this codec has not"):
    config.build().apply(variables_of("encodec"), scaled, method="decode")
  # A file keeps it.
  origin = Origin(system="encodec", weights="ab" * 32)
  save_tokens(tmp_path / "a.tok", tokens.replace(origin=origin))
  loaded, _ = load_tokens(tmp_path / "a.tok", origin)
  again = run("encodec-stereo", "decode", loaded.replace(origin=None))
  np.testing.assert_array_equal(again, run("encodec-stereo", "decode", tokens))


def test_chunks_must_fit_together():
  with pytest.raises(TokzooError, match="both a length and a stride"):
    dataclasses.replace(STEREO, stride=None)
  with pytest.raises(TokzooError, match="overlap by no more than one stride"):
    dataclasses.replace(STEREO, stride=30)
  with pytest.raises(TokzooError, match="need is_normalized"):
    dataclasses.replace(STEREO, is_normalized=False)


def test_snacs_ids_go_depth_first():
  order = snac.PRESETS["snac-24khz"].order().tolist()
  assert order == [[0, 0], [1, 0], [2, 0], [2, 1], [1, 1], [2, 2], [2, 3]]
  config = CONFIGS["snac"]
  tokens = Tokens.from_ids(jnp.arange(14, dtype=jnp.int32).reshape(1, 2, 7), 16)
  coarse, middle, fine = config.build().bind({}).by_codebook(tokens.ids)
  assert coarse.tolist() == [[0, 7]] and middle.tolist() == [[1, 4, 8, 11]]
  assert fine.tolist() == [[2, 3, 5, 6, 9, 10, 12, 13]]
  with pytest.raises(TokzooError, match=r"do not nest"):
    dataclasses.replace(config, strides=(4, 3, 1))


def test_snacs_noise_comes_from_the_key():
  x = sound(CONFIGS["snac"], 100)
  tokens = run("snac", "encode", x)
  plain = run("snac", "decode", tokens)
  noisy = [
    run("snac", lambda m, t, s=s: m.decode(t, rng=jax.random.key(s)), tokens)
    for s in (0, 0, 1)
  ]
  np.testing.assert_array_equal(noisy[0], noisy[1])
  assert not np.allclose(noisy[0], noisy[2], atol=1e-3)
  assert not np.allclose(noisy[0], plain, atol=1e-3)
