"""Bit packing for TPUs, in Pallas Mosaic: every array is read or written once.

  pack    x [rows, n] -> x > 0 -> matrix unit: sums of 16 powers of two -> words [w, rows]
  unpack  words [w, rows] -> bytes [4w, rows] -> matrix unit: byte j / 8 for each bit j
          -> shift by j % 8 -> [rows, n]

Bits lie along lanes and words would have to be gathered from or dealt out to them, 32 to one:
the matrix unit does that, exactly. The powers of two are bf16 and their sums, below 2^16,
float32; a byte is a bf16, and with one 1 in each column there is nothing to round. XLA's own
program reshapes to [rows, w, 32] first, which moves every number three times: 194 MiB for
64 MiB of latents of 128 bits, where this kernel moves 66. Up to 127 bits XLA keeps the rows in
columns and does well, and so it does with bool; there the kernels say that they do not apply.

Words stand in columns, as XLA keeps narrow arrays, so that 128 rows share a vector register.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, UInt32

from tokzoo.kernels.bit_packing.reference import WORD, Kind
from tokzoo.kernels.dispatch import Unsupported
from tokzoo.kernels.padding import pad_to

_LANES = 128
_MOST_BITS = 2048
# Numbers of a block: 1 MiB as float32, and two of them are in flight.
_BLOCK = 2**18


def pack(x: Array, *, interpret: bool = False) -> UInt32[Array, "*N w"]:
  """See `api.pack`.

  Args:
    interpret: run the kernel's program on the CPU.

  Raises:
    Unsupported: XLA does it as well, see above.
  """
  *lead, n = x.shape
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise Unsupported(f"the pack kernel takes floats, not {x.dtype}: use 'xla'.")
  _require_wide(n)
  x = x.reshape(-1, n)
  number, words, rows = len(x), -(-n // WORD), _rows(len(x), n)
  x = pad_to(x, 0, rows)
  packed = pl.pallas_call(
    _pack,
    grid=(len(x) // rows,),
    in_specs=[pl.BlockSpec((rows, n), lambda i: (i, 0))],
    out_specs=pl.BlockSpec((words, rows), lambda i: (0, i)),
    out_shape=jax.ShapeDtypeStruct((words, len(x)), jnp.uint32),
    cost_estimate=_cost(len(x), n, words, products=2, itemsize=x.dtype.itemsize),
    interpret=interpret,
    name="pack",
  )(x)
  return packed.T[:number].reshape(*lead, words)


def unpack(
  packed: UInt32[Array, "*N w"], n: int, kind: Kind, *, interpret: bool = False
) -> Array:
  """See `api.unpack`.

  Args:
    interpret: run the kernel's program on the CPU.

  Raises:
    Unsupported: XLA does it as well, see above.
  """
  if kind == "bool":
    raise Unsupported("the unpack kernel writes floats, not bool: use 'xla'.")
  _require_wide(n)
  *lead, words = packed.shape
  columns = packed.reshape(-1, words).T
  number, rows = columns.shape[1], _rows(columns.shape[1], n)
  columns = pad_to(columns, 1, rows)
  bits = pl.pallas_call(
    functools.partial(_unpack, kind=kind),
    grid=(columns.shape[1] // rows,),
    in_specs=[pl.BlockSpec((words, rows), lambda i: (0, i))],
    out_specs=pl.BlockSpec((rows, n), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((columns.shape[1], n), jnp.float32),
    cost_estimate=_cost(columns.shape[1], n, words, products=4, itemsize=4),
    interpret=interpret,
    name="unpack",
  )(columns)
  return bits[:number].reshape(*lead, n)


def _cost(
  rows: int, n: int, words: int, *, products: int, itemsize: int
) -> pl.CostEstimate:
  """Of products [rows, n] . [n, words], and of every array once."""
  return pl.CostEstimate(
    flops=2 * products * rows * n * words,
    bytes_accessed=rows * (n * itemsize + words * 4),
    transcendentals=0,
  )


def _require_wide(n: int) -> None:
  if not _LANES <= n <= _MOST_BITS:
    raise Unsupported(
      f"the packing kernels take {_LANES} to {_MOST_BITS} bits, not {n}: use 'xla'."
    )


def _rows(number: int, n: int) -> int:
  """Rows of a block: whole vector registers of words."""
  width = -(-n // _LANES) * _LANES
  rows = max(_LANES, _BLOCK // width // _LANES * _LANES)
  return min(rows, -(-number // _LANES) * _LANES)


def _pack(x, packed):
  # Not every TPU compares bf16.
  on = (x[...].astype(jnp.float32) > 0).astype(jnp.float32)
  word, place = _word_and_place((packed.shape[0], x.shape[1]), 1, 0)

  def half(low: int) -> Array:
    is_here = (word == 0) & (place >= low) & (place < low + 16)
    powers = jnp.where(is_here, jnp.left_shift(1, jnp.maximum(place - low, 0)), 0)
    # [w, n] . [rows, n]^T
    sums = _product(powers, on, ((1,), (1,)))
    return sums.astype(jnp.int32)

  words = half(0) | jnp.left_shift(half(16), 16)
  packed[...] = jax.lax.bitcast_convert_type(words, jnp.uint32)


def _unpack(packed, bits, *, kind: Kind):
  words = jax.lax.bitcast_convert_type(packed[...], jnp.int32)
  n = bits.shape[1]
  word, place = _word_and_place((words.shape[0], n), 1, 0)
  byte_of_bit = jnp.zeros(bits.shape, jnp.float32)
  for byte in range(4):
    value = jnp.right_shift(words, 8 * byte) & 255
    is_here = (word == 0) & (place >= 8 * byte) & (place < 8 * byte + 8)
    # [w, rows]^T . [w, n]
    byte_of_bit += _product(value, is_here.astype(jnp.int32), ((0,), (0,)))
  bit = jax.lax.broadcasted_iota(jnp.int32, bits.shape, 1) & 7
  on = jnp.right_shift(byte_of_bit.astype(jnp.int32), bit) & 1
  if kind == "sign":
    on = 2 * on - 1
  bits[...] = on.astype(jnp.float32)


def _word_and_place(shape, bit_axis: int, word_axis: int) -> tuple[Array, Array]:
  """0 where a bit lies in the word of its row, and its place in it."""
  bit = jax.lax.broadcasted_iota(jnp.int32, shape, bit_axis)
  word = jax.lax.broadcasted_iota(jnp.int32, shape, word_axis)
  return jnp.right_shift(bit, 5) - word, bit & (WORD - 1)


def _product(left: Array, right: Array, contracting) -> Float[Array, "..."]:
  """Of numbers that bf16 holds exactly."""
  left, right = (a.astype(jnp.float32).astype(jnp.bfloat16) for a in (left, right))
  return jax.lax.dot_general(
    left, right, (contracting, ((), ())), preferred_element_type=jnp.float32
  )
