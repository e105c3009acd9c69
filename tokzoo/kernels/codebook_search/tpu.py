"""Codebook search for TPUs, in Pallas Mosaic.

  grid (H, N / rows, K / codes); the last axis runs in order, its blocks double-buffered

  HBM    x f32[N, D]        codebook f32[K, D]     bias f32[1, K]      ids, scores [T, N]
            | once a row        | every step           |                    ^ last step
            v block             v                      |                    |
  VMEM   split -> bf16[rows, 6D] . bf16[codes, 6D] - bias = scores f32[rows, codes]
                                                       |                    |
                                                       v                    |
         best score and its chunk of 128 codes, one for each row and lane: [rows, 128]

No score leaves the chip. For one code a row, a step keeps a running best in each of the
128 lanes (a subtraction, a comparison and two selections a score) and the lanes meet only
once, in the last step. For several, a step takes the best `top_k` of its scores and of
the running ones.

The products are those of `split.py`: float32 semantics on the bf16 units. A TPU's own
default rounds both sides to bf16 and answers with other ids.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from tokzoo.kernels.codebook_search import split
from tokzoo.kernels.dispatch import Unsupported
from tokzoo.kernels.padding import pad_to

LANES = 128
_NEVER = 2**30
# Up to how many features, rows and codes of a step.
_TILES = ((128, 512, 1024), (384, 256, 512), (768, 256, 256), (1536, 128, 128))


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Sizes of a step.

  rows:   rows of x
  codes:  codebook rows, a multiple of 128
  """

  rows: int
  codes: int

  @classmethod
  def of(cls, n: int, k: int, d: int) -> "Tiles":
    """Tiles whose scores, twice, and factors stay under about 10 MiB of VMEM.

    Raises:
      Unsupported: more than 1,536 features.
    """
    for most, rows, codes in _TILES:
      if d <= most:
        return cls(min(rows, _up(n, LANES)), min(codes, _up(k, LANES)))
    raise Unsupported(
      f"the search kernel holds rows of up to {_TILES[-1][0]} features, not {d}: use "
      "another implementation."
    )


def search(
  x: Float[Array, "H N D"],
  codebook: Float[Array, "H K D"],
  bias: Float[Array, "H K"],
  *,
  top_k: int,
  interpret: bool = False,
) -> tuple[Int[Array, "H N T"], Float[Array, "H N T"]]:
  """See `reference.search`; `top_k` up to 128.

  Args:
    interpret: run the kernel's program on the CPU.

  Raises:
    Unsupported: more than 1,536 features.
  """
  heads, n, d = x.shape
  k = codebook.shape[1]
  tiles = Tiles.of(n, k, d)
  # Features go in by whole tiles of bf16 rows; zeros add nothing to a product.
  x = pad_to(pad_to(x, 1, tiles.rows), 2, 16)
  codebook = pad_to(pad_to(codebook, 1, tiles.codes), 2, 16)
  # A code that only fills up a block is never chosen.
  bias = pad_to(bias, 1, tiles.codes, jnp.inf)[:, None, :]
  rows, codes = x.shape[1] // tiles.rows, codebook.shape[1] // tiles.codes
  features = x.shape[2]
  # XLA keeps narrow rows in columns, where 128 lanes are not mostly padding.
  is_narrow = d < LANES
  if is_narrow:
    x = jnp.swapaxes(x, 1, 2)
    of_x = pl.BlockSpec((None, features, tiles.rows), lambda h, i, j: (h, 0, i))
  else:
    of_x = pl.BlockSpec((None, tiles.rows, features), lambda h, i, j: (h, i, 0))
  found = jax.ShapeDtypeStruct((heads, top_k, rows * tiles.rows), jnp.int32)
  out = pl.BlockSpec((None, top_k, tiles.rows), lambda h, i, j: (h, 0, i))
  ids, scores = pl.pallas_call(
    functools.partial(_kernel, top_k=top_k, is_narrow=is_narrow),
    grid=(heads, rows, codes),
    in_specs=[
      of_x,
      pl.BlockSpec((None, tiles.codes, features), lambda h, i, j: (h, j, 0)),
      pl.BlockSpec((None, 1, tiles.codes), lambda h, i, j: (h, 0, j)),
    ],
    out_specs=[out, out],
    out_shape=[found, jax.ShapeDtypeStruct(found.shape, jnp.float32)],
    scratch_shapes=[
      pltpu.VMEM((tiles.rows, split.TERMS * features), jnp.bfloat16),
      pltpu.VMEM((tiles.rows, LANES), jnp.int32),
      pltpu.VMEM((tiles.rows, LANES), jnp.float32),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary")
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * split.TERMS * heads * n * k * d,
      bytes_accessed=4 * heads * (n * d + rows * k * d + 2 * n * top_k),
      transcendentals=0,
    ),
    interpret=interpret,
    name="codebook_search",
  )(x, codebook, bias)
  ids, scores = (jnp.swapaxes(a, 1, 2)[:, :n] for a in (ids, scores))
  return ids, scores


def _kernel(
  x, codebook, bias, ids, scores, factors, best_ids, best, *, top_k, is_narrow
):
  step = pl.program_id(2)

  @pl.when(step == 0)
  def _start():
    factors[...] = split.left(x[...].T if is_narrow else x[...])
    best_ids[...] = jnp.zeros(best_ids.shape, jnp.int32)
    best[...] = jnp.full(best.shape, -jnp.inf)

  products = jax.lax.dot_general(
    factors[...],
    split.right(codebook[...]),
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  of_step = products - bias[...]
  update = _update_lanes if top_k == 1 else functools.partial(_update_top, top_k=top_k)
  best_ids[...], best[...] = update(step, of_step, best_ids[...], best[...])

  @pl.when(step == pl.num_programs(2) - 1)
  def _finish():
    # Transposed, so that rows lie along lanes: 128 times less to write.
    last_ids, last = best_ids[...].T, best[...].T
    if top_k == 1:
      lane = jax.lax.broadcasted_iota(jnp.int32, last.shape, 0)
      highest = jnp.max(last, axis=0, keepdims=True)
      winners = jnp.where(last == highest, last_ids * LANES + lane, _NEVER)
      ids[...] = jnp.min(winners, axis=0, keepdims=True)
      scores[...] = highest
    else:
      ids[...] = last_ids[:top_k]
      scores[...] = last[:top_k]


def _update_lanes(step, of_step, best_ids, best):
  """The best of each lane and its chunk. Only a higher score replaces an earlier one."""
  chunks = of_step.shape[1] // LANES
  for chunk in range(chunks):
    here = of_step[:, chunk * LANES : (chunk + 1) * LANES]
    is_better = here > best
    best = jnp.where(is_better, here, best)
    best_ids = jnp.where(is_better, step * chunks + chunk, best_ids)
  return best_ids, best


def _update_top(step, of_step, best_ids, best, *, top_k):
  """The best `top_k` of the scores of a step and of the running ones, in lanes 0, 1, ..."""
  first = step * of_step.shape[1]
  of_step_ids = first + jax.lax.broadcasted_iota(jnp.int32, of_step.shape, 1)
  lane = jax.lax.broadcasted_iota(jnp.int32, best.shape, 1)
  new_ids, new = jnp.zeros_like(best_ids), jnp.full_like(best, -jnp.inf)
  for place in range(top_k):
    highest = jnp.maximum(
      jnp.max(of_step, axis=1, keepdims=True), jnp.max(best, axis=1, keepdims=True)
    )
    winner = jnp.minimum(
      _lowest(jnp.where(of_step == highest, of_step_ids, _NEVER)),
      _lowest(jnp.where(best == highest, best_ids, _NEVER)),
    )
    new_ids = jnp.where(lane == place, winner, new_ids)
    new = jnp.where(lane == place, highest, new)
    of_step = jnp.where(of_step_ids == winner, -jnp.inf, of_step)
    best = jnp.where(best_ids == winner, -jnp.inf, best)
  return new_ids, new


def _lowest(ids):
  return jnp.min(ids, axis=1, keepdims=True)


def _up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple
