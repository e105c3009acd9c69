"""Bit packing: n bits of a token in ceil(n / 32) words, and what can be done on the words.

The order is little-endian: bit j of a token, its feature j, lies in word j // 32 at place
j % 32, place 0 being worth 1. As bytes that is `numpy.packbits(..., bitorder="little")`.
The unused high places of the last word are 0.

The ids of LFQ and BSQ are big-endian (feature 0 is the highest bit), so for n <= 31 bits

  id = reverse of the 32 bits of the word, shifted right by 32 - n

which `packed_to_ids` and `ids_to_packed` do. The reason for two orders: an id is read as a
number, in the order that the papers write; a word keeps its place when bits are appended.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from tokzoo.errors import TokzooError, unknown
from tokzoo.kernels.bit_packing import dispatch, reference, xla
from tokzoo.kernels.bit_packing.reference import KINDS, WORD, Kind

_MOST_ID_BITS = 31


def words_per_token(bits: int) -> int:
  """How many uint32 words hold one token of `bits` bits."""
  return -(-bits // WORD)


def pack(
  x: Bool[Array, "*N n"] | Float[Array, "*N n"] | Int[Array, "*N n"],
  *,
  implementation: dispatch.Implementation | None = None,
) -> UInt32[Array, "*N w"]:
  """Packs the last axis, 32 bits a word. A bit is 1 where x > 0.

  That one rule covers bits as bool or as 0 and 1, codes of -1 and 1, and real latents,
  whose sign is taken and packed in one pass. NaN gives 0.

  Args:
    x: bool, integers or floats of any width.
    implementation: of `dispatch.IMPLEMENTATIONS`; None: the best for the machine.

  Returns:
    `uint32[*N, ceil(n / 32)]`; the unused high bits of the last word are 0.

  Raises:
    TokzooError: x has no axis, no bits on the last one, or is complex.
  """
  x = jnp.asarray(x)
  if x.ndim < 1 or x.shape[-1] < 1:
    raise TokzooError(
      f"the bits of a token lie along the last axis, which {list(x.shape)} lacks: "
      "give an array [..., n] with n of at least 1."
    )
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    raise TokzooError(
      f"bits are bool, integers or floats, not {x.dtype}: convert them."
    )
  return dispatch.run("pack", x, implementation=implementation)


def unpack(
  packed: UInt32[Array, "*N w"],
  n: int,
  kind: Kind = "bool",
  *,
  implementation: dispatch.Implementation | None = None,
) -> Bool[Array, "*N n"] | Float[Array, "*N n"]:
  """The inverse of `pack`.

  Args:
    packed: words.
    n: bits of a token.
    kind: "bool"; "sign" for float32 -1 and 1; "float" for float32 0 and 1.
    implementation: see `pack`.

  Raises:
    TokzooError: the words are not uint32, or not ceil(n / 32), or the kind is unknown.
  """
  packed = _words(packed, n, kind)
  return dispatch.run("unpack", packed, n=n, kind=kind, implementation=implementation)


def packed_matmul(
  packed: UInt32[Array, "*N w"],
  weights: Float[Array, "n D"],
  kind: Kind = "sign",
  *,
  implementation: dispatch.Implementation | None = None,
) -> Float[Array, "*N D"]:
  """`unpack(packed, n, kind) @ weights` in float32, without the unpacked bits in memory.

  The embedding of binary tokens. Gradients reach the weights.

  Args:
    packed: words.
    weights: n rows, one a bit, any float dtype; multiplied in float32.
    kind: what a bit counts as: "sign" -1 or 1; "float" (or "bool") 0 or 1.
    implementation: see `pack`.

  Raises:
    TokzooError: see `unpack`; or the weights are no matrix of floats.
  """
  weights = jnp.asarray(weights)
  if weights.ndim != 2 or not jnp.issubdtype(weights.dtype, jnp.floating):
    raise TokzooError(
      f"the weights of packed bits are a matrix of floats [n, D], not {weights.dtype}"
      f"{list(weights.shape)}."
    )
  packed = _words(packed, weights.shape[0], kind)
  return _multiply(packed, weights.astype(jnp.float32), kind, implementation)


def hamming(a: UInt32[Array, "*N w"], b: UInt32[Array, "*N w"]) -> Int[Array, "*N"]:
  """How many bits differ, int32, by population count. Leading axes broadcast.

  Plain XLA on every machine: the compilers make one pass of it that only reads the words.

  Raises:
    TokzooError: the words are not uint32, or do not number the same.
  """
  a, b = jnp.asarray(a), jnp.asarray(b)
  for words in (a, b):
    if words.dtype != jnp.uint32 or words.ndim < 1:
      raise TokzooError(
        f"packed bits are uint32[..., words], not {words.dtype}{list(words.shape)}: "
        "pack them first."
      )
  if a.shape[-1] != b.shape[-1]:
    raise TokzooError(
      f"tokens of {a.shape[-1]} and of {b.shape[-1]} words have no Hamming distance: "
      "pack the same number of bits."
    )
  shape = jnp.broadcast_shapes(a.shape, b.shape)
  return reference.hamming(jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape))


def packed_to_ids(packed: UInt32[Array, "*N 1"], n: int) -> Int[Array, "*N"]:
  """The big-endian ids, as of LFQ and BSQ, of packed tokens of up to 31 bits.

  Raises:
    TokzooError: more than 31 bits, or see `unpack`.
  """
  packed = _words(packed, _id_bits(n), "bool")
  return (_reversed(packed[..., 0]) >> jnp.uint32(WORD - n)).astype(jnp.int32)


def ids_to_packed(ids: Int[Array, "*N"], n: int) -> UInt32[Array, "*N 1"]:
  """The inverse of `packed_to_ids`, for ids in [0, 2^n).

  Raises:
    TokzooError: more than 31 bits, or the ids are no integers.
  """
  ids = jnp.asarray(ids)
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TokzooError(f"ids are integers, not {ids.dtype}.")
  return _reversed(ids.astype(jnp.uint32) << jnp.uint32(WORD - _id_bits(n)))[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _multiply(packed, weights, kind, implementation):
  return dispatch.run(
    "packed_matmul", packed, weights, kind=kind, implementation=implementation
  )


def _multiply_forward(packed, weights, kind, implementation):
  # Only the words are kept for the way back.
  return _multiply(packed, weights, kind, implementation), (packed, weights)


def _multiply_backward(kind, implementation, kept, cotangent):
  packed, weights = kept
  return None, xla.weights_gradient(packed, cotangent, weights.shape[0], kind)


_multiply.defvjp(_multiply_forward, _multiply_backward)


def _id_bits(n: int) -> int:
  if not 1 <= n <= _MOST_ID_BITS:
    raise TokzooError(
      f"an int32 id holds 1 to {_MOST_ID_BITS} bits, not {n}: keep longer tokens packed."
    )
  return n


def _words(packed: Array, n: int, kind: str) -> Array:
  packed = jnp.asarray(packed)
  if kind not in KINDS:
    raise unknown("kind of unpacked bits", kind, KINDS)
  if packed.dtype != jnp.uint32 or packed.ndim < 1:
    raise TokzooError(
      f"packed bits are uint32[..., words], not {packed.dtype}{list(packed.shape)}: pack "
      "them first."
    )
  if n < 1 or packed.shape[-1] != words_per_token(n):
    raise TokzooError(
      f"{n} bits are packed in {words_per_token(n)} words, not {packed.shape[-1]}: give "
      "the number of bits that were packed."
    )
  return packed


def _reversed(words: UInt32[Array, "*N"]) -> UInt32[Array, "*N"]:
  """Each word with its 32 bits in the opposite order."""
  for step, low in (
    (1, 0x55555555),
    (2, 0x33333333),
    (4, 0x0F0F0F0F),
    (8, 0x00FF00FF),
    (16, 0x0000FFFF),
  ):
    mask, by = jnp.uint32(low), jnp.uint32(step)
    words = ((words >> by) & mask) | ((words & mask) << by)
  return words
