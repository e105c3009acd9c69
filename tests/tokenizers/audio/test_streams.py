"""Streams of causal codecs: the pieces together are the whole; nothing looks ahead."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.base import compiled
from tests.tokenizers.audio.tiny import (
  CONFIGS,
  mostly_slow,
  run,
  sound,
  variables_of,
)
from tokzoo.errors import TokzooError
from tokzoo.nn.streaming import Stream
from tokzoo.tokens import Tokens
from tokzoo.train.sound_claims import ids_changed_before, streamed_against_whole

CAUSAL = [name for name, config in CONFIGS.items() if config.is_causal]
PIECES = {"encodec": [7, 1, 2, 1, 9], "mimi": [1, 1, 3, 1, 8, 1]}
"""Frames of each piece. Mimi's attention sees 5 half frames, less than most of these."""


def step(name: str, method: str, state, given):
  module = CONFIGS[name].build()
  # One program for the first piece and one for each length after it.
  apply = compiled(lambda v, s, x: module.apply(v, s, x, method=method))
  return apply(variables_of(name), state, given)


def test_causal_codecs_are_streamed():
  assert set(CAUSAL) == set(PIECES)


@pytest.mark.parametrize("name", CAUSAL)
def test_streamed_equals_whole(name):
  config, sizes = CONFIGS[name], PIECES[name]
  x = sound(config, config.hop * sum(sizes))
  whole = run(name, "encode", x)
  audio = run(name, "decode", whole)
  state = config.build().init_state(2)
  ids, parts, start = [], [], 0
  for size in sizes:
    piece = x[:, start * config.hop : (start + size) * config.hop]
    start += size
    state, tokens = step(name, "encode_step", state, piece)
    state, part = step(name, "decode_step", state, tokens)
    assert tokens.ids.shape == (2, size, 4)
    assert part.shape == (2, size * config.hop, 1)
    ids.append(np.asarray(tokens.ids))
    parts.append(np.asarray(part))
  np.testing.assert_array_equal(np.concatenate(ids, axis=1), whole.ids)
  np.testing.assert_allclose(np.concatenate(parts, axis=1), audio, atol=1e-5)
  assert float(np.abs(audio).mean()) > 1e-2


@pytest.mark.parametrize("name", CAUSAL)
def test_latents_of_a_stream(name):
  """Before the codebooks, which hide small differences."""
  config = CONFIGS[name]
  x = sound(config, config.hop * 12)
  module, variables = config.build(), variables_of(name)

  def streamed(module, x):
    memory, parts = {}, []
    for piece in jnp.split(x, [8 * config.hop], axis=1):
      stream = Stream(memory)
      latents = module.latents if name == "mimi" else module.encoder
      parts.append(latents(piece, stream))
      memory = stream.memory
    whole = latents(x)
    return jnp.concatenate(parts, axis=1), whole

  both = compiled(lambda v: module.apply(v, x, method=streamed))(variables)
  np.testing.assert_allclose(*both, atol=1e-5)


@pytest.mark.parametrize("name", mostly_slow("encodec", "mimi", "dac", "snac"))
def test_causality_is_as_the_config_says(name):
  config = CONFIGS[name]
  frames = 16
  x = sound(config, config.hop * frames)
  later = x.at[:, config.hop * 12 :].set(sound(config, config.hop * 4, seed=1))
  before, after = (np.asarray(run(name, "encode", given).ids) for given in (x, later))
  same = (before[:, :12] == after[:, :12]).all()
  assert same == config.is_causal
  assert (before != after).any()


def test_a_stream_says_which_pieces_fit():
  config = CONFIGS["encodec"]
  module, variables = config.build(), variables_of("encodec")
  state = module.init_state(2)

  def encode(x, state=state):
    return module.apply(variables, state, x, method="encode_step")

  with pytest.raises(TokzooError, match=r"first piece .* 56 samples at least.*has 48"):
    encode(sound(config, 48))
  with pytest.raises(
    TokzooError, match=r"63 samples is not a whole number of hops of 8"
  ):
    encode(sound(config, 63))
  with pytest.raises(TokzooError, match=r"stream of 2 rows got a piece of 3"):
    encode(sound(config, 64, batch=3))
  ids = Tokens.from_ids(jnp.zeros((2, 3, 4), jnp.int32), 16)
  with pytest.raises(TokzooError, match=r"must hold 7 frames at least, this one has 3"):
    module.apply(variables, state, ids, method="decode_step")


def test_what_cannot_stream_says_so():
  with pytest.raises(TokzooError, match="cannot stream: choose a causal one"):
    CONFIGS["encodec-stereo"].build().init_state(1)


def test_a_streams_state_is_a_pytree_of_one_size():
  config = CONFIGS["mimi"]
  state = config.build().init_state(1)
  x = sound(config, config.hop, batch=1)
  shapes = []
  for _ in range(3):
    state, _ = step("mimi", "encode_step", state, x)
    shapes.append(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state))
  assert shapes[0] == shapes[1] == shapes[2]
  assert len(jax.tree.leaves(state)) > 10


def test_what_claims_measure_of_a_codec():
  config = CONFIGS["encodec"]
  audio = sound(config, 40 * config.hop)
  ahead = dataclasses.replace(config.net, is_causal=False)
  assert ids_changed_before(config, 0, audio) == 0
  assert ids_changed_before(dataclasses.replace(config, net=ahead), 0, audio) > 0
  found = streamed_against_whole(config, 0, audio, frames=10)
  assert found["ids that differ"] == 0
  assert 0 <= found["largest error over largest value"] < 1e-5
