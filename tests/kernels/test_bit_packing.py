"""Bit packing against NumPy's own bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokzoo.kernels.bit_packing import pack_bits, unpack_bits, words_per_token


def packed_by_numpy(bits: np.ndarray) -> np.ndarray:
  """Little-endian bytes, four to a word."""
  padded = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % 32)])
  return np.packbits(padded, axis=-1, bitorder="little").view("<u4")


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 100), st.sampled_from([(), (3,), (2, 3)]), st.integers(0, 999))
def test_packs_as_numpy_does_and_unpacks(bits, lead, seed):
  drawn = np.random.default_rng(seed).random((*lead, bits)) > 0.5
  packed = np.asarray(pack_bits(jnp.asarray(drawn)))
  assert packed.dtype == np.uint32 and packed.shape == (*lead, words_per_token(bits))
  np.testing.assert_array_equal(packed, packed_by_numpy(drawn))
  np.testing.assert_array_equal(np.asarray(unpack_bits(packed, bits)), drawn)


@pytest.mark.parametrize(
  "dtype", [jnp.bool_, jnp.int32, jnp.uint8, jnp.float32, jnp.bfloat16]
)
def test_every_dtype_packs_alike(dtype):
  drawn = np.random.default_rng(0).random((2, 40)) > 0.5
  np.testing.assert_array_equal(
    np.asarray(pack_bits(jnp.asarray(drawn, dtype))), packed_by_numpy(drawn)
  )


def test_bit_j_stands_in_word_j_over_32_at_place_j_mod_32():
  for bit in (0, 1, 31, 32, 39):
    packed = np.asarray(pack_bits(jnp.asarray(np.eye(40, dtype=bool)[bit])))
    expected = np.zeros(2, np.uint32)
    expected[bit // 32] = np.uint32(1) << np.uint32(bit % 32)
    np.testing.assert_array_equal(packed, expected)


def test_numbers_above_a_half_count_as_one():
  values = jnp.asarray([0.0, 0.5, 0.500001, 1.0])
  assert np.asarray(unpack_bits(pack_bits(values), 4)).tolist() == [
    False,
    False,
    True,
    True,
  ]


def test_works_inside_jit():
  drawn = jnp.asarray(np.random.default_rng(1).random((2, 3, 64)) > 0.5)
  there_and_back = jax.jit(lambda bits: unpack_bits(pack_bits(bits), 64))
  np.testing.assert_array_equal(np.asarray(there_and_back(drawn)), np.asarray(drawn))


def test_a_wrong_number_of_words_is_an_error():
  with pytest.raises(ValueError, match="40 bits are packed in 2 words, not 1"):
    unpack_bits(jnp.zeros((3, 1), jnp.uint32), 40)
