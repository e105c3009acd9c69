"""Bit packing: n bits of a token in ceil(n / 32) words, and what can be done on the words."""

from tokzoo.kernels.bit_packing.api import (
  hamming,
  ids_to_packed,
  pack,
  packed_matmul,
  packed_to_ids,
  unpack,
  words_per_token,
)

__all__ = [
  "hamming",
  "ids_to_packed",
  "pack",
  "packed_matmul",
  "packed_to_ids",
  "unpack",
  "words_per_token",
]
