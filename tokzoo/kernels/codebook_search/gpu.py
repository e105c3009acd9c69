"""Codebook search for Hopper GPUs, in Pallas Mosaic GPU.

  grid (H, N / 128); a block has two warpgroups that compute and one that fetches

  GMEM   thirds of x bf16[N, 3D]      thirds of the codebook bf16[3D, K]     bias f32[K]
              |                              | TMA, several stages ahead        |
  SMEM   x: whole rows if they fit,   stages of [3 x 32 features, 256 codes]     |
         else with each stage                |                                   |
              '----------- wgmma x 6 --------'                                   |
  registers        scores f32[64, 256] of each warpgroup  - bias  <--------------'
                          |
                   best score and id of each of its 64 rows

No score leaves the registers. The six products of `split.py` accumulate in float32, so the
ids are those of float32 and not of TF32 or bf16. x is split a slice of rows at a time, which
keeps its thirds small beside the input. Hopper only: `wgmma` came and went with it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float, Int

from tokzoo.kernels.codebook_search import split
from tokzoo.kernels.cost import kernel_cost
from tokzoo.kernels.dispatch import Unsupported, interpreter, require_hopper
from tokzoo.kernels.padding import pad_to

_WARPGROUPS = 2
_SLICE = 2**16
_SHARED_MEMORY = 216 * 1024
_NEVER = 2**30


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Sizes of a step.

  features:     of a stage, a width that shared memory can be swizzled by
  chunks:       stages that make up all features
  is_resident:  whether a block's rows of x stay in shared memory from code to code
  stages:       in flight
  rows:         of a warpgroup
  codes:        of a stage
  """

  features: int
  chunks: int
  is_resident: bool
  stages: int
  rows: int = 64
  codes: int = 256

  @classmethod
  def of(cls, d: int) -> "Tiles":
    """Tiles for d features that fit the shared memory of a block, about 220 KiB."""
    features = 16 if d <= 16 else 32
    chunks = -(-d // features)
    of_x = 2 * 3 * features * cls.rows * _WARPGROUPS
    of_codes = 2 * 3 * features * cls.codes
    is_resident = chunks * of_x + 2 * of_codes <= _SHARED_MEMORY
    fixed, of_stage = (chunks * of_x, of_codes) if is_resident else (0, of_x + of_codes)
    stages = min(4, (_SHARED_MEMORY - fixed) // of_stage)
    return cls(features, chunks, is_resident, stages)


def search(
  x: Float[Array, "H N D"],
  codebook: Float[Array, "H K D"],
  bias: Float[Array, "H K"],
  *,
  top_k: int,
  interpret: bool = False,
) -> tuple[Int[Array, "H N T"], Float[Array, "H N T"]]:
  """See `reference.search`; one code a row.

  Args:
    interpret: run the kernel's program on the CPU.

  Raises:
    Unsupported: `top_k` is not 1, or the GPU is no Hopper.
  """
  if top_k != 1:
    raise Unsupported(
      f"the Hopper kernel finds one code a row, not {top_k}: use another implementation."
    )
  if not interpret:
    require_hopper("search")
  heads, n, d = x.shape
  tiles = Tiles.of(d)
  codes = _by_chunk(pad_to(codebook, 1, tiles.codes), tiles).swapaxes(1, 2)
  # A code that only fills up a block is never chosen.
  bias = pad_to(bias, 1, tiles.codes, jnp.inf)

  def of_slice(rows: Float[Array, "H n D"]) -> tuple[Array, Array]:
    return _call(_by_chunk(rows, tiles), codes, bias, tiles, interpret)

  block = tiles.rows * _WARPGROUPS
  slices = -(-n // _SLICE)
  # Slices of equal size, so that the last one is not mostly padding.
  x = pad_to(x, 1, block * slices).reshape(heads, slices, -1, d)
  ids, scores = jax.lax.map(of_slice, x.swapaxes(0, 1))
  return tuple(
    found.swapaxes(0, 1).reshape(heads, -1)[:, :n, None] for found in (ids, scores)
  )


def _by_chunk(array: Float[Array, "H N D"], tiles: Tiles) -> BFloat16[Array, "H N 3*D"]:
  """The thirds of each chunk of features, side by side."""
  parts = split.thirds(pad_to(array, 2, tiles.features))
  parts = [p.reshape(*p.shape[:2], tiles.chunks, tiles.features) for p in parts]
  return jnp.concatenate(parts, axis=-1).reshape(*array.shape[:2], -1)


def _call(x, codebook, bias, tiles: Tiles, interpret: bool):
  heads, n, _ = x.shape
  block = tiles.rows * _WARPGROUPS
  width = 3 * tiles.features
  # Both factors of wgmma lie in shared memory in the same way.
  layout = (
    plgpu.TilingTransform((8, tiles.features)),
    plgpu.SwizzleTransform(2 * tiles.features),
  )
  kernel = plgpu.kernel(
    functools.partial(_kernel, tiles=tiles),
    out_type=[
      jax.ShapeDtypeStruct((heads, n), jnp.int32),
      jax.ShapeDtypeStruct((heads, n), jnp.float32),
    ],
    scratch_types=[
      plgpu.SMEM(
        (tiles.chunks if tiles.is_resident else tiles.stages, block, width),
        jnp.bfloat16,
        transforms=layout,
      ),
      plgpu.SMEM((tiles.stages, width, tiles.codes), jnp.bfloat16, transforms=layout),
      plgpu.SMEM((tiles.stages, tiles.codes), jnp.float32),
      plgpu.SMEM((_WARPGROUPS, tiles.rows), jnp.int32),
      plgpu.SMEM((_WARPGROUPS, tiles.rows), jnp.float32),
      plgpu.Barrier(num_arrivals=tiles.chunks if tiles.is_resident else 1),
      plgpu.Barrier(
        num_arrivals=2 if tiles.is_resident else 3, num_barriers=tiles.stages
      ),
      plgpu.Barrier(num_arrivals=_WARPGROUPS, num_barriers=tiles.stages),
    ],
    grid=(heads, n // block),
    grid_names=("head", "block"),
    num_threads=_WARPGROUPS + 1,
    thread_name="warpgroup",
    compiler_params=plgpu.CompilerParams(
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup
    ),
    interpret=interpreter() if interpret else False,
  )
  k, d = codebook.shape[-1], x.shape[-1]
  # Each block of rows reads the whole codebook, mostly from the cache of the chip.
  with kernel_cost(
    flops=2 * heads * n * k * d * split.TERMS // 3,
    bytes_accessed=heads * (2 * n * d + 2 * k * d + 4 * k + 8 * n),
  ):
    return kernel(x, codebook, bias)


def _kernel(
  x,
  codebook,
  bias,
  ids,
  scores,
  x_smem,
  codes_smem,
  bias_smem,
  ids_smem,
  scores_smem,
  x_loaded,
  loaded,
  consumed,
  *,
  tiles: Tiles,
):
  head, block = jax.lax.axis_index("head"), jax.lax.axis_index("block")
  warpgroup = jax.lax.axis_index("warpgroup")
  steps = codebook.shape[2] // tiles.codes
  stages = steps * tiles.chunks
  width = 3 * tiles.features
  rows = pl.ds(block * tiles.rows * _WARPGROUPS, tiles.rows * _WARPGROUPS)

  @pl.when(warpgroup == _WARPGROUPS)
  def _fetch():
    plgpu.set_max_registers(40, action="decrease")
    if tiles.is_resident:
      for chunk in range(tiles.chunks):
        features = pl.ds(chunk * width, width)
        plgpu.copy_gmem_to_smem(x.at[head, rows, features], x_smem.at[chunk], x_loaded)

    @pl.loop(0, stages)
    def _stage(stage):
      slot = jax.lax.rem(stage, tiles.stages)
      step, chunk = jax.lax.div(stage, tiles.chunks), jax.lax.rem(stage, tiles.chunks)
      features = pl.ds(chunk * width, width)

      @pl.when(stage >= tiles.stages)
      def _wait_until_free():
        plgpu.barrier_wait(consumed.at[slot])

      codes = pl.ds(step * tiles.codes, tiles.codes)
      plgpu.copy_gmem_to_smem(
        codebook.at[head, features, codes], codes_smem.at[slot], loaded.at[slot]
      )
      plgpu.copy_gmem_to_smem(bias.at[head, codes], bias_smem.at[slot], loaded.at[slot])
      if not tiles.is_resident:
        plgpu.copy_gmem_to_smem(
          x.at[head, rows, features], x_smem.at[slot], loaded.at[slot]
        )

    # Nothing is left waiting on a barrier when the block ends.
    for stage in range(max(0, stages - tiles.stages), stages):
      plgpu.barrier_wait(consumed.at[stage % tiles.stages])

  @pl.when(warpgroup < _WARPGROUPS)
  def _compute():
    plgpu.set_max_registers(232, action="increase")
    own = pl.ds(warpgroup * tiles.rows, tiles.rows)
    if tiles.is_resident:
      plgpu.barrier_wait(x_loaded)

    def multiply(acc, stage, chunk):
      slot = jax.lax.rem(stage, tiles.stages)
      plgpu.barrier_wait(loaded.at[slot])
      x_tile = x_smem.at[chunk if tiles.is_resident else slot]
      for of_x, of_code in split.PAIRS:
        plgpu.wgmma(
          acc,
          x_tile.at[own, pl.ds(of_x * tiles.features, tiles.features)],
          codes_smem.at[slot, pl.ds(of_code * tiles.features, tiles.features)],
        )
      plgpu.wgmma_wait(0)
      return slot

    def step_through(step, found):
      best_ids, best = found
      first, last = step * tiles.chunks, (step + 1) * tiles.chunks - 1

      def products(acc):
        @pl.loop(0, tiles.chunks - 1)
        def _chunk(chunk):
          slot = multiply(acc, first + chunk, chunk)
          plgpu.barrier_arrive(consumed.at[slot])

        multiply(acc, last, tiles.chunks - 1)
        return acc[...]

      of_step = pl.run_scoped(
        products, plgpu.ACC((tiles.rows, tiles.codes), jnp.float32)
      )
      # The last stage is held until its bias is read.
      slot = jax.lax.rem(last, tiles.stages)
      of_step -= jax.lax.broadcast_in_dim(bias_smem[slot], of_step.shape, [1])
      plgpu.barrier_arrive(consumed.at[slot])

      highest = jnp.max(of_step, axis=1)
      column = jax.lax.broadcasted_iota(jnp.int32, of_step.shape, 1)
      is_highest = of_step == jax.lax.broadcast_in_dim(highest, of_step.shape, [0])
      winner = jnp.min(jnp.where(is_highest, column, _NEVER), axis=1)
      # Only a higher score replaces that of a lower id.
      is_better = highest > best
      best_ids = jnp.where(is_better, winner + step * tiles.codes, best_ids)
      return best_ids, jnp.where(is_better, highest, best)

    none = (
      jnp.zeros((tiles.rows,), jnp.int32),
      jnp.full((tiles.rows,), -jnp.inf, jnp.float32),
    )
    best_ids, best = jax.lax.fori_loop(0, steps, step_through, none)
    ids_smem[warpgroup] = best_ids
    scores_smem[warpgroup] = best
    plgpu.commit_smem()
    out = pl.ds((block * _WARPGROUPS + warpgroup) * tiles.rows, tiles.rows)
    plgpu.copy_smem_to_gmem(ids_smem.at[warpgroup], ids.at[head, out])
    plgpu.copy_smem_to_gmem(scores_smem.at[warpgroup], scores.at[head, out])
    plgpu.wait_smem_to_gmem(0)
