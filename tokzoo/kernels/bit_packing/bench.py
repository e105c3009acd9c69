"""Bit packing against NumPy's own, and packed products and distances against plain forms."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from tokzoo.kernels.bit_packing.api import hamming, pack, packed_matmul, unpack
from tokzoo.kernels.racing import Row, jitted, race

TOKENS, BITS = 2**17, 128
"""2^24 bits, the tokens of 1,024 pictures of 128 tokens."""
_WIDTH = 64


def bench(turns: int = 5) -> Iterator[Row]:
  """Every op against its peers, `turns` times."""
  rng = np.random.default_rng(0)
  spec = f"{TOKENS}x{BITS}"
  latents = rng.standard_normal((TOKENS, BITS), np.float32)
  bits = latents > 0
  words = pack(jnp.asarray(bits))
  few, others = words[: TOKENS // 8], words[::-1]
  weights = jnp.asarray(rng.standard_normal((BITS, _WIDTH), np.float32))
  as_bytes = np.asarray(words).view(np.uint8)

  def packbits(x: np.ndarray) -> np.ndarray:
    return np.packbits(x, axis=-1, bitorder="little")

  race_ = functools.partial(race, spec=spec, turns=turns)
  if jax.default_backend() == "cpu":  # where NumPy is, too
    yield from race_(
      "pack",
      ours={"tokzoo": (pack, (jnp.asarray(bits),))},
      peers={"numpy": lambda: packbits(bits)},
    )
    yield from race_(
      "pack latents",
      ours={"tokzoo": (pack, (jnp.asarray(latents),))},
      peers={"numpy": lambda: packbits(latents > 0)},
    )
    yield from race_(
      "unpack",
      ours={"tokzoo": (lambda w: unpack(w, BITS), (words,))},
      peers={"numpy": lambda: np.unpackbits(as_bytes, axis=-1, bitorder="little")},
    )
  yield from race_(
    "packed_matmul",
    spec=f"{TOKENS // 8}x{BITS}x{_WIDTH}",
    ours={"tokzoo": (packed_matmul, (few, weights))},
    peers={"unpacked": jitted(_unpacked_matmul, few, weights)},
  )
  yield from race_(
    "hamming",
    ours={"tokzoo": (hamming, (words, others))},
    peers={"unpacked": jitted(_unpacked_hamming, words, others)},
  )


def _unpacked_matmul(
  words: UInt32[Array, "N w"], weights: Float[Array, "n D"]
) -> Float[Array, "N D"]:
  """The bits as an array in memory, then their product."""
  bits = jax.lax.optimization_barrier(unpack(words, BITS, "sign"))
  return jnp.matmul(bits, weights, precision=jax.lax.Precision.HIGHEST)


def _unpacked_hamming(
  a: UInt32[Array, "N w"], b: UInt32[Array, "N w"]
) -> Int[Array, "N"]:
  a, b = (jax.lax.optimization_barrier(unpack(words, BITS)) for words in (a, b))
  return jnp.sum(a != b, axis=-1, dtype=jnp.int32)
