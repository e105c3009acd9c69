"""Flax checkpoints: known by their first bytes, whole or refused, arrays of numbers alone."""

import pickle

import flax.serialization
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.weights import is_flax, read_state, write_flax

PARAMS = {
  "encoder": {"Conv_0": {"kernel": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}},
  "half": np.ones(2, np.float16),
  "short": jnp.full((2,), 1.5, jnp.bfloat16),
  "scalar": np.array(3.5),
}


def save(path, tree):
  path.write_bytes(flax.serialization.msgpack_serialize(tree))
  return path


@pytest.mark.parametrize("name", ["model_checkpoint", "w.msgpack", "w.bin", "w.ckpt"])
def test_arrays_come_back_whatever_the_name(tmp_path, name):
  path = save(tmp_path / name, {"params": PARAMS})
  state = read_state(path)
  assert set(state) == {"encoder/Conv_0/kernel", "half", "short", "scalar"}
  kernel = PARAMS["encoder"]["Conv_0"]["kernel"]
  np.testing.assert_array_equal(state["encoder/Conv_0/kernel"], kernel)
  assert state["short"].dtype == np.float32 and state["short"].tolist() == [1.5, 1.5]
  assert state["half"].dtype == np.float16 and state["scalar"].shape == ()
  write_flax(tmp_path / "again", state)
  again = read_state(tmp_path / "again")
  assert again.keys() == state.keys()
  for key, array in state.items():
    np.testing.assert_array_equal(again[key], array)


def test_large_maps_and_arrays_in_pieces(tmp_path, monkeypatch):
  many = {f"layer_{i}": np.full(3, i, np.float32) for i in range(70_000)}
  monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)
  big = np.arange(100, dtype=np.float32).reshape(4, 25)
  for tree, size in ((many, 70_000), (dict(list(many.items())[:20]), 20), ({}, 0)):
    path = save(tmp_path / "w", {"params": {**tree, "big": big}})
    state = read_state(path)
    assert len(state) == size + 1
    np.testing.assert_array_equal(state["big"], big)
    # As an outermost map, too, of each of the three kinds of length.
    assert is_flax(save(tmp_path / "bare", {**tree, "big": big}))


def test_what_is_no_flax_checkpoint(tmp_path):
  path = tmp_path / "w"
  kinds = [pickle.dumps({"params": 1}, protocol) for protocol in range(6)]
  kinds += [
    b"",
    b"\x80",
    b"\x81",
    b"\xde\x00",
    b"PK\x03\x04",
    b"<html>",
    b"\x81\x01\x02",
  ]
  for data in kinds:
    path.write_bytes(data)
    assert not is_flax(path), data
    with pytest.raises(TokzooError, match=r"ending ''; .*as which it does not begin"):
      read_state(path)


def test_a_file_cut_short_or_changed(tmp_path):
  path = save(tmp_path / "w", {"params": PARAMS})
  whole = path.read_bytes()
  for length in range(len(whole)):
    path.write_bytes(whole[:length])
    said = "not a whole one" if length > 1 else "does not begin"
    with pytest.raises(TokzooError, match=said):
      read_state(path)
  path.write_bytes(whole + b"x")
  with pytest.raises(TokzooError, match="not a whole one"):
    read_state(path)
  refused = 0
  for place in range(len(whole)):
    for bit in range(8):
      damaged = bytearray(whole)
      damaged[place] ^= 1 << bit
      path.write_bytes(damaged)
      try:  # a number that changed cannot be told; nothing else than one sentence comes
        read_state(path)
      except TokzooError as error:
        refused += 1
        assert "\n" not in str(error), str(error)
  assert refused > 2 * len(whole)


@pytest.mark.parametrize(
  ("leaf", "kind"),
  [
    (1j, "complex"),
    (np.ones(2, np.complex64), "complex64 array"),
    (np.ones(2, bool), "bool array"),
    (np.float32(1), "float32"),
    (3, "int"),
    (None, "NoneType"),
    ("text", "str"),
    (b"bytes", "bytes"),
    ([1, 2], "list"),
  ],
)
def test_leaves_that_are_no_numbers(tmp_path, leaf, kind):
  path = save(tmp_path / "w", {"params": {"a": {"b": leaf}}})
  with pytest.raises(TokzooError, match=f"holds 'a/b', of the kind {kind}, instead"):
    read_state(path)


def test_an_object_array_is_not_opened(tmp_path):
  import msgpack

  inner = msgpack.packb(((1,), "object", b"\x00" * 8))
  data = msgpack.packb({"params": {"a": msgpack.ExtType(1, inner)}})
  (tmp_path / "w").write_bytes(data)
  with pytest.raises(TokzooError, match="not a whole one"):
    read_state(tmp_path / "w")


def test_entries_beside_the_weights(tmp_path):
  state = {"params": PARAMS, "step": 3}
  path = save(tmp_path / "w", state)
  with pytest.raises(
    TokzooError, match="of 'params', 'step', where 'params' alone was"
  ):
    read_state(path)
  assert len(read_state(path, "params")) == 4
  with pytest.raises(
    TokzooError, match="has no entry 'ema'; it holds 'params', 'step'"
  ):
    read_state(path, "ema")
  bare = save(tmp_path / "bare", PARAMS)
  with pytest.raises(TokzooError, match="where 'params' alone was expected"):
    read_state(bare)
  odd = save(tmp_path / "odd", {"params": {"a/b": np.ones(1)}})
  with pytest.raises(TokzooError, match="'a/b' under '', where a name without a slash"):
    read_state(odd)
