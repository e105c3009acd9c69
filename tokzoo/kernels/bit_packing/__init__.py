"""Bit packing: m bits of a token in ceil(m / 32) words."""

from tokzoo.kernels.bit_packing.api import pack_bits, unpack_bits, words_per_token

__all__ = ["pack_bits", "unpack_bits", "words_per_token"]
