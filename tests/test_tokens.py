"""Tokens and their files: what is saved comes back, what is not sound is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tokzoo.errors import TokzooError
from tokzoo.files import digest, read_safetensors
from tokzoo.tokens import Origin, Tokens, load_tokens, save_tokens
from tokzoo.weights import write_safetensors

ORIGIN = Origin(system="instella-t2i", weights="ab" * 32)
SIDES = st.integers(1, 5)
# The folder of a test is made once; every example writes its own file over the last one.
ANY_FOLDER = settings(
  max_examples=25,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def binary(batch=2, length=3, bits=40, seed=0, **fields) -> Tokens:
  drawn = np.random.default_rng(seed).random((batch, length, bits)) > 0.5
  return Tokens.from_bits(jnp.asarray(drawn), origin=ORIGIN, **fields)


def assert_same(a: Tokens, b: Tokens) -> None:
  assert jax.tree.structure(a) == jax.tree.structure(
    b
  )  # static fields and which are set
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@st.composite
def any_tokens(draw) -> Tokens:
  """Tokens of all three kinds, with and without a mask and a grid."""
  batch, length = draw(SIDES), draw(SIDES)
  kind = draw(st.sampled_from(["ids", "levels", "packed", "values"]))
  fields = {"origin": ORIGIN}
  if draw(st.booleans()):
    fields["mask"] = jnp.asarray(draw(hnp.arrays(bool, (batch, length))))
  if draw(st.booleans()):
    fields["grid"] = (1, length)
  if draw(st.booleans()):
    positive = st.floats(min_value=2.0**-20, max_value=2.0**20, width=32)
    scales = draw(hnp.arrays(np.float32, (batch, draw(SIDES)), elements=positive))
    fields["scale"] = jnp.asarray(scales)
  if kind == "packed":
    shape = (batch, length, draw(st.integers(1, 70)))
    return Tokens.from_bits(jnp.asarray(draw(hnp.arrays(bool, shape))), **fields)
  if kind == "values":
    shape = (batch, length, draw(SIDES))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    values = draw(hnp.arrays(np.float32, shape, elements=finite))
    return Tokens.from_values(jnp.asarray(values), **fields)
  vocab = draw(st.integers(1, 2**31 - 1))
  shape = (batch, length) if kind == "ids" else (batch, length, draw(SIDES))
  ids = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, vocab - 1)))
  return Tokens.from_ids(jnp.asarray(ids), vocab, **fields)


@ANY_FOLDER
@given(tokens=any_tokens(), extra=st.dictionaries(st.text(), st.text(), max_size=3))
def test_what_is_saved_comes_back(tmp_path, tokens, extra):
  path = tmp_path / "picture.tok"
  save_tokens(path, tokens, extra)
  loaded, told = load_tokens(path, ORIGIN)
  assert_same(loaded, without_what_is_left_out(tokens))
  assert told == extra


def without_what_is_left_out(tokens: Tokens) -> Tokens:
  """As a file keeps them: zeros where the mask is False."""
  if tokens.mask is None:
    return tokens
  array = np.array(tokens.array)
  array[~np.asarray(tokens.mask)] = 0
  return tokens.replace(**{tokens.kind: jnp.asarray(array)})


@pytest.mark.parametrize(
  ("tokens", "size"),
  [
    (Tokens.from_ids(jnp.full((1, 32), 4095), 4096, origin=ORIGIN), 48),
    (Tokens.from_ids(jnp.full((1, 5), 2), 3, origin=ORIGIN), 2),
    (binary(batch=1, length=3, bits=40), 15),
  ],
)
def test_a_file_is_as_small_as_its_information(tmp_path, tokens, size):
  path = tmp_path / "picture.tok"
  save_tokens(path, tokens)
  arrays, _ = read_safetensors(path, "token file")
  assert sum(array.nbytes for array in arrays.values()) == size
  few = jnp.arange(tokens.length)[None] < 2
  save_tokens(path, tokens.replace(mask=few))
  arrays, _ = read_safetensors(path, "token file")
  kept = -(-2 * tokens.bits_per_token // 8)
  assert arrays[tokens.kind].nbytes == kept and arrays["mask"].nbytes <= 4


def test_the_first_format_is_still_read(tmp_path):
  path = tmp_path / "old.tok"
  arrays = {
    "ids": np.array([[5, 0, 7]], np.int32),
    "mask": np.array([[True, True, False]]),
  }
  layout = {"kind": "ids", "vocab": 9, "bits": None, "grid": [3]}
  header = {"format": "tokzoo-tokens", "version": "1", "system": "instella-t2i"}
  header |= {"weights": "ab" * 32, "layout": json.dumps(layout), "extra": "{}"}
  write_safetensors(path, arrays, header | {"digest": digest(header, arrays)})
  loaded, _ = load_tokens(path, ORIGIN)
  expected = Tokens.from_ids(arrays["ids"], 9, mask=arrays["mask"], origin=ORIGIN)
  assert_same(loaded, expected)


def test_kinds_lengths_and_bits_per_token():
  ids = jnp.zeros((2, 6, 3), jnp.int32)
  cases = [
    (binary(bits=40), "packed", 3, 40.0),
    (Tokens.from_ids(ids[..., 0], 1024), "ids", 6, 10.0),
    (Tokens.from_ids(ids, 1024), "ids", 6, 30.0),
    (Tokens.from_values(jnp.zeros((2, 6, 4))), "values", 6, 128.0),
  ]
  for tokens, kind, length, bits in cases:
    assert (tokens.kind, tokens.batch, tokens.length) == (kind, 2, length)
    assert tokens.bits_per_token == pytest.approx(bits)
    assert tokens.grid == (length,)


def test_tokens_pass_through_jit_and_keep_what_is_static():
  tokens = binary()
  assert_same(jax.jit(lambda t: t)(tokens), tokens)


def test_a_flip_of_any_bit_is_refused(tmp_path):
  path = tmp_path / "picture.tok"
  save_tokens(path, binary(1, 1, 33), {"height": "8"})
  whole = path.read_bytes()
  for place in range(len(whole)):
    for bit in {place % 8, 5}:  # 5 also turns letters to their other case
      damaged = bytearray(whole)
      damaged[place] ^= 1 << bit
      path.write_bytes(damaged)
      with pytest.raises(TokzooError) as caught:
        load_tokens(path)
      assert str(path) in str(caught.value)
      assert "\n" not in str(caught.value)


def test_a_file_cut_at_any_length_is_refused(tmp_path):
  path = tmp_path / "picture.tok"
  save_tokens(path, binary(1, 1, 33))
  whole = path.read_bytes()
  for length in range(len(whole)):
    path.write_bytes(whole[:length])
    with pytest.raises(TokzooError, match="not a whole token file"):
      load_tokens(path)
  path.write_bytes(whole + b"\0")
  with pytest.raises(TokzooError, match="not a whole token file"):
    load_tokens(path)


def test_files_that_are_something_else(tmp_path):
  with pytest.raises(TokzooError, match=r"no token file at .*: check the path"):
    load_tokens(tmp_path / "missing.tok")
  weights = tmp_path / "weights.safetensors"
  write_safetensors(weights, {"w": np.zeros(3, np.float32)})
  with pytest.raises(TokzooError, match="holds no tokens"):
    load_tokens(weights)


def test_a_newer_format_asks_for_an_upgrade(tmp_path, monkeypatch):
  path = tmp_path / "picture.tok"
  monkeypatch.setattr("tokzoo.tokens.VERSION", 10)
  save_tokens(path, binary(scale=jnp.ones((2, 1))))
  monkeypatch.setattr("tokzoo.tokens.VERSION", 9)
  with pytest.raises(TokzooError, match=r"token format 10.* up to 9: upgrade"):
    load_tokens(path)


def test_only_files_with_scales_differ(tmp_path):
  plain, scaled = tmp_path / "plain.tok", tmp_path / "scaled.tok"
  save_tokens(plain, binary())
  save_tokens(scaled, binary(scale=jnp.full((2, 3), 0.25)))
  arrays, header = read_safetensors(plain, "token file")
  assert set(arrays) == {"packed"} and header["version"] == "2"
  arrays, header = read_safetensors(scaled, "token file")
  assert set(arrays) == {"packed", "scale"} and header["version"] == "3"
  assert binary(scale=jnp.ones((2, 3))).total_bits == binary().total_bits + 6 * 32


@pytest.mark.parametrize(
  ("scale", "message"),
  [
    (np.ones((3, 1), np.float32), r"float32\[2, S\]; this one is float32\[3, 1\]"),
    (np.ones(2, np.float32), r"this one is float32\[2\]"),
    (np.zeros((2, 1), np.float32), "finite and above 0"),
    (np.full((2, 1), np.nan, np.float32), "finite and above 0"),
  ],
)
def test_scales_that_are_not_sound_are_refused(scale, message):
  with pytest.raises(TokzooError, match=message):
    binary(scale=jnp.asarray(scale)).check()


def test_another_tokenizers_tokens_are_refused(tmp_path):
  path = tmp_path / "picture.tok"
  save_tokens(path, binary())
  other = Origin(system="instella-t2i", weights="cd" * 32)
  with pytest.raises(
    TokzooError, match=r"made by instella-t2i@ababab.*instella-t2i@cdcdcd"
  ):
    load_tokens(path, other)
  with pytest.raises(TokzooError, match="made by an unknown tokenizer"):
    binary().replace(origin=None).require_origin(ORIGIN)
  assert binary().require_origin(ORIGIN).origin == ORIGIN


def test_tokens_without_origin_are_not_saved(tmp_path):
  with pytest.raises(TokzooError, match="unknown tokenizer cannot be saved"):
    save_tokens(tmp_path / "a.tok", binary().replace(origin=None))
  assert not (tmp_path / "a.tok").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(TokzooError, match="cannot write"):
    save_tokens(tmp_path / "file" / "a.tok", binary())


@pytest.mark.parametrize(
  ("tokens", "message"),
  [
    (Tokens(), "hold exactly one of"),
    (Tokens(ids=np.zeros((1, 2), np.int32), values=np.zeros((1, 2, 3))), "exactly one"),
    (Tokens(ids=np.array([[0, 7]], np.int32), vocab=7), "id 7 is out of range.*0 to 6"),
    (Tokens(ids=np.array([[-1, 2]], np.int32), vocab=7), "id -1 is out of range"),
    (Tokens(ids=np.zeros((1, 2), np.int64), vocab=7), r"ids are int32.*int64\[1, 2\]"),
    (Tokens(ids=np.zeros((1, 2), np.int32)), "need vocab of at least 1; it is None"),
    (Tokens(packed=np.zeros((1, 2, 1), np.uint32)), "need bits of at least 1"),
    (Tokens(packed=np.zeros((1, 2, 1), np.uint32), bits=40), r"uint32\[B, L, 2\]"),
    (Tokens(packed=np.full((1, 2, 1), 256, np.uint32), bits=8), "bit above the 8 bits"),
    (Tokens(values=np.zeros((1, 2), np.float32)), r"float32\[B, L, D\]"),
    (Tokens(values=np.full((1, 2, 3), np.nan, np.float32)), "NaN or infinity"),
    (binary().replace(mask=np.ones((2, 4), bool)), r"mask is bool\[2, 3\]"),
    (binary().replace(mask=np.ones((2, 3), np.int8)), "mask is bool.*int8"),
    (binary().replace(grid=(2, 2)), "cannot unfold to the grid"),
  ],
)
def test_tokens_that_are_not_sound(tokens, message):
  with pytest.raises(TokzooError, match=message):
    tokens.check()


def test_bits_of_other_kinds_are_refused():
  with pytest.raises(TokzooError, match="binary tokens were expected; these hold ids"):
    Tokens.from_ids(jnp.zeros((1, 2), jnp.int32), 4).unpacked()
