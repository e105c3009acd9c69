"""Products of packed bits for Hopper GPUs, in Pallas Mosaic GPU.

  grid (N / 128, D / 128); two warpgroups that compute, one that fetches

  GMEM   words uint32[w, N]              thirds of the weights bf16[3 x 32w, D]
             |                                | TMA, several stages ahead
  SMEM   stage: one word of each row     stage: thirds of its 32 rows of weights
             | bits by shifts, bf16           |
  SMEM   bits [64, 32] of a warpgroup --- wgmma x 3 --- registers f32[64, 128]

The bits exist 32 a row at a time. As 0, 1 or -1 they are exact in bf16, and so are the thirds
of a float32 weight (see `codebook_search/split.py`): the products are exact and only the
float32 sum rounds. XLA writes the unpacked bits to memory before it multiplies.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float, UInt32

from tokzoo.kernels.bit_packing.reference import WORD, Kind
from tokzoo.kernels.codebook_search.split import thirds
from tokzoo.kernels.cost import kernel_cost
from tokzoo.kernels.dispatch import interpreter, require_hopper
from tokzoo.kernels.padding import pad_to

_WARPGROUPS = 2
_ROWS = 64
_COLUMNS = 128
_STAGES = 4


def packed_matmul(
  packed: UInt32[Array, "*N w"],
  weights: Float[Array, "n D"],
  kind: Kind,
  *,
  interpret: bool = False,
) -> Float[Array, "*N D"]:
  """See `api.packed_matmul`.

  Args:
    interpret: run the kernel's program on the CPU.

  Raises:
    Unsupported: the GPU is no Hopper.
  """
  if not interpret:
    require_hopper("product of packed bits")
  *lead, words = packed.shape
  block = _ROWS * _WARPGROUPS
  columns = pad_to(packed.reshape(-1, words).T, 1, block)
  number, d = int(packed.size // words), weights.shape[1]
  factors = _by_word(pad_to(pad_to(weights, 0, WORD), 1, _COLUMNS))
  layout = (plgpu.TilingTransform((8, WORD)), plgpu.SwizzleTransform(2 * WORD))
  multiply = plgpu.kernel(
    functools.partial(_kernel, kind=kind),
    out_type=jax.ShapeDtypeStruct((columns.shape[1], factors.shape[1]), jnp.float32),
    scratch_types=[
      plgpu.SMEM((_STAGES, block), jnp.uint32),
      plgpu.SMEM((_STAGES, 3 * WORD, _COLUMNS), jnp.bfloat16, transforms=layout),
      plgpu.SMEM((_WARPGROUPS, _ROWS, WORD), jnp.bfloat16, transforms=layout),
      plgpu.SMEM((_WARPGROUPS, _ROWS, _COLUMNS), jnp.float32),
      plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES),
      plgpu.Barrier(num_arrivals=_WARPGROUPS, num_barriers=_STAGES),
    ],
    grid=(columns.shape[1] // block, factors.shape[1] // _COLUMNS),
    grid_names=("block", "column"),
    num_threads=_WARPGROUPS + 1,
    thread_name="warpgroup",
    compiler_params=plgpu.CompilerParams(
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup
    ),
    interpret=interpreter() if interpret else False,
  )
  # Words and factors are read again for each block of the other, the product is written once.
  rows, width = columns.shape[1], factors.shape[1]
  with kernel_cost(
    flops=2 * rows * factors.shape[0] * width,
    bytes_accessed=4 * words * rows * (width // _COLUMNS)
    + 2 * factors.size * (rows // block)
    + 4 * rows * width,
  ):
    product = multiply(columns, factors)
  return product[:number, :d].reshape(*lead, d)


def _by_word(weights: Float[Array, "n D"]) -> BFloat16[Array, "3*n D"]:
  """The thirds of the 32 weights of each word, one under the other, smallest first."""
  parts = [part.reshape(-1, WORD, part.shape[1]) for part in reversed(thirds(weights))]
  return jnp.concatenate(parts, axis=1).reshape(-1, weights.shape[1])


def _kernel(
  packed,
  factors,
  product,
  words_smem,
  factors_smem,
  bits_smem,
  product_smem,
  loaded,
  consumed,
  *,
  kind: Kind,
):
  block, column = jax.lax.axis_index("block"), jax.lax.axis_index("column")
  warpgroup = jax.lax.axis_index("warpgroup")
  words = packed.shape[0]
  first_row = block * _ROWS * _WARPGROUPS
  columns = pl.ds(column * _COLUMNS, _COLUMNS)

  @pl.when(warpgroup == _WARPGROUPS)
  def _fetch():
    plgpu.set_max_registers(40, action="decrease")

    @pl.loop(0, words)
    def _stage(word):
      slot = jax.lax.rem(word, _STAGES)

      @pl.when(word >= _STAGES)
      def _wait_until_free():
        plgpu.barrier_wait(consumed.at[slot])

      plgpu.copy_gmem_to_smem(
        packed.at[word, pl.ds(first_row, _ROWS * _WARPGROUPS)],
        words_smem.at[slot],
        loaded.at[slot],
      )
      plgpu.copy_gmem_to_smem(
        factors.at[pl.ds(word * 3 * WORD, 3 * WORD), columns],
        factors_smem.at[slot],
        loaded.at[slot],
      )

    # Nothing is left waiting on a barrier when the block ends.
    for word in range(max(0, words - _STAGES), words):
      plgpu.barrier_wait(consumed.at[word % _STAGES])

  @pl.when(warpgroup < _WARPGROUPS)
  def _compute():
    plgpu.set_max_registers(232, action="increase")
    own = pl.ds(warpgroup * _ROWS, _ROWS)

    def multiply(sums):
      @pl.loop(0, words)
      def _word(word):
        slot = jax.lax.rem(word, _STAGES)
        plgpu.barrier_wait(loaded.at[slot])
        of_row = jax.lax.broadcast_in_dim(words_smem[slot, own], (_ROWS, WORD), [0])
        place = jax.lax.broadcasted_iota(jnp.uint32, (_ROWS, WORD), 1)
        bit = (
          jax.lax.shift_right_logical(of_row, place) & jnp.uint32(1)
        ) == jnp.uint32(1)
        off = -1.0 if kind == "sign" else 0.0
        bits_smem[warpgroup] = jnp.where(bit, jnp.float32(1), jnp.float32(off)).astype(
          jnp.bfloat16
        )
        plgpu.commit_smem()
        for third in range(3):
          plgpu.wgmma(
            sums,
            bits_smem.at[warpgroup],
            factors_smem.at[slot, pl.ds(third * WORD, WORD)],
          )
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(consumed.at[slot])

      return sums[...]

    product_smem[warpgroup] = pl.run_scoped(
      multiply, plgpu.ACC((_ROWS, _COLUMNS), jnp.float32)
    )
    plgpu.commit_smem()
    rows = pl.ds(first_row + warpgroup * _ROWS, _ROWS)
    plgpu.copy_smem_to_gmem(product_smem.at[warpgroup], product.at[rows, columns])
    plgpu.wait_smem_to_gmem(0)
