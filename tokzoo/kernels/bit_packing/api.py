"""Bit packing: m bits of a token in ceil(m / 32) words, and back."""

import jax
from jaxtyping import Array, Bool, Float, Int, UInt32

from tokzoo.kernels.bit_packing import reference


def words_per_token(bits: int) -> int:
  """How many uint32 words hold one token of `bits` bits."""
  return -(-bits // 32)


def pack_bits(
  bits: Bool[Array, "*N m"] | Float[Array, "*N m"] | Int[Array, "*N m"],
) -> UInt32[Array, "*N w"]:
  """Packs the last axis, 32 bits a word, bit j of the token in word j // 32 at place j % 32.

  Args:
    bits: `[*N, m]`, bool, or numbers that are 0 or 1 (anything above 0.5 counts as 1).

  Returns:
    `uint32[*N, ceil(m / 32)]`; the unused high bits of the last word are 0.
  """
  return reference.pack_bits(bits)


def unpack_bits(packed: UInt32[Array, "*N w"], bits: int) -> Bool[Array, "*N m"]:
  """The inverse of `pack_bits`: `bool[*N, bits]`.

  Raises:
    ValueError: the last axis is not ceil(bits / 32) words.
  """
  if packed.shape[-1] != words_per_token(bits):
    raise ValueError(
      f"{bits} bits are packed in {words_per_token(bits)} words, not {packed.shape[-1]}."
    )
  return reference.unpack_bits(jax.numpy.asarray(packed), bits)
