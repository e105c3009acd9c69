"""Codebook search in XLA: blocks of scores that, on a CPU, stay in the cache.

The matrix product is the work; what a plain program loses is the trip of the scores to
memory and an arg-max that runs one number at a time. Here a block of scores is [codes, rows],
about 4 MiB, and its maximum is found in two steps:

  1. the maximum of each chunk of about sqrt(K) codes, along the outer axis, so that a vector
     instruction works on neighbouring rows;
  2. the arg-max of the chunk maxima, and then of the scores of the winning chunk.

A codebook longer than a block is walked through block by block with a running best.

Codes of a few features make hardly any product, and the scores' trip through the cache is
all there is. They are searched without a matrix: a few codes at a time are held against all
rows, each row with its running best in a register.

Accelerators without a kernel of their own take the same program in blocks that are worth a
launch (`search_in_large_blocks`).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# 8,192 codes by 128 rows are 4 MiB of scores.
_BLOCK = 8192
_SCORES, _MOST_ROWS = 2**20, 512
_SCORES_OF_LARGE, _MOST_ROWS_OF_LARGE = 2**24, 2**14
# Up to so many codes a row are found one after the other, in vectors over rows.
_FEW = 16
# The widest codes that are searched without a matrix, how many at a time, and the rows that
# make it worth a loop of K / 8 steps.
_NARROW, _AT_A_TIME, _FEWEST_ROWS, _NARROW_ROWS = 8, 8, 1024, 2**16


def search(
  x: Float[Array, "H N D"],
  codebook: Float[Array, "H K D"],
  bias: Float[Array, "H K"],
  *,
  top_k: int,
) -> tuple[Int[Array, "H N T"], Float[Array, "H N T"]]:
  """See `reference.search`."""
  is_narrow = x.shape[2] <= _NARROW and x.shape[1] >= _FEWEST_ROWS and top_k == 1
  one = _search_narrow
  if not is_narrow:
    one = functools.partial(_search, top_k=top_k, scores=_SCORES, most_rows=_MOST_ROWS)
  # One codebook after another: each keeps all cores busy by itself.
  return jax.lax.map(lambda arrays: one(*arrays), (x, codebook, bias))


def search_in_large_blocks(
  x: Float[Array, "H N D"],
  codebook: Float[Array, "H K D"],
  bias: Float[Array, "H K"],
  *,
  top_k: int,
) -> tuple[Int[Array, "H N T"], Float[Array, "H N T"]]:
  """See `reference.search`; 64 MiB of scores at a time, which all heads share."""
  one = functools.partial(
    _search,
    top_k=top_k,
    scores=_SCORES_OF_LARGE // x.shape[0],
    most_rows=_MOST_ROWS_OF_LARGE,
  )
  return jax.vmap(one)(x, codebook, bias)


def _search(
  x: Float[Array, "N D"],
  codebook: Float[Array, "K D"],
  bias: Float[Array, "K"],
  top_k: int,
  scores: int,
  most_rows: int,
) -> tuple[Int[Array, "N T"], Float[Array, "N T"]]:
  (n, d), k = x.shape, codebook.shape[0]
  chunk = min(2 ** max(4, math.isqrt(k).bit_length() - 1), 128, k)
  # As many blocks as are needed, and all of about the same size: 10,000 codes are two
  # blocks of 5,120 and not of 8,192.
  blocks = -(-k // _BLOCK)
  block = -(-k // (blocks * chunk)) * chunk
  padding = blocks * block - k
  codes = jnp.pad(codebook, ((0, padding), (0, 0))).reshape(-1, block, d)
  biases = jnp.pad(bias, (0, padding), constant_values=jnp.inf).reshape(-1, block)
  x_blocks = _in_blocks(x, max(128, min(most_rows, scores // block)))

  def of_rows(x_block, some_codes, some_biases):
    products = jnp.matmul(some_codes, x_block.T, precision=jax.lax.Precision.HIGHEST)
    return _best(products - some_biases[:, None], chunk, top_k)

  def of_codes(best, codes_of_block):
    some_codes, some_biases, first = codes_of_block

    def improve(block_of):
      x_block, *old = block_of
      ids, values = of_rows(x_block, some_codes, some_biases)
      return _merge(tuple(old), (ids + first, values), top_k)

    return jax.lax.map(improve, (x_blocks, *best)), None

  if blocks == 1:
    best = jax.lax.map(lambda rows: of_rows(rows, codes[0], biases[0]), x_blocks)
  else:
    # Blocks of codes outside: each is read once and stays in the cache for all rows.
    shape = (*x_blocks.shape[:2], top_k)
    best = jnp.zeros(shape, jnp.int32), jnp.full(shape, -jnp.inf)
    firsts = block * jnp.arange(blocks, dtype=jnp.int32)
    best, _ = jax.lax.scan(of_codes, best, (codes, biases, firsts))
  ids, values = (part.reshape(-1, top_k)[:n] for part in best)
  return ids, values


def _search_narrow(
  x: Float[Array, "N D"], codebook: Float[Array, "K D"], bias: Float[Array, "K"]
) -> tuple[Int[Array, "N 1"], Float[Array, "N 1"]]:
  d = x.shape[1]
  padding = -codebook.shape[0] % _AT_A_TIME
  codes = jnp.pad(codebook, ((0, padding), (0, 0)))
  biases = jnp.pad(bias, (0, padding), constant_values=jnp.inf)
  x_blocks = _in_blocks(x, _NARROW_ROWS)

  def of_rows(x_block):
    # Features apart, rows side by side: the axis that vector instructions run along.
    features = jax.lax.optimization_barrier(x_block.T)

    def of_codes(i, best):
      ids, scores = best
      first = i * _AT_A_TIME
      some = jax.lax.dynamic_slice(codes, (first, 0), (_AT_A_TIME, d))
      some_biases = jax.lax.dynamic_slice(biases, (first,), (_AT_A_TIME,))
      for code in range(_AT_A_TIME):
        score = -some_biases[code]
        for feature in range(d):
          score = score + some[code, feature] * features[feature]
        is_better = score > scores
        scores = jnp.where(is_better, score, scores)
        ids = jnp.where(is_better, first + code, ids)
      return ids, scores

    rows = x_block.shape[0]
    best = jnp.zeros(rows, jnp.int32), jnp.full(rows, -jnp.inf)
    return jax.lax.fori_loop(0, codes.shape[0] // _AT_A_TIME, of_codes, best)

  ids, scores = jax.lax.map(of_rows, x_blocks)
  return ids.reshape(-1, 1)[: x.shape[0]], scores.reshape(-1, 1)[: x.shape[0]]


def _in_blocks(x: Float[Array, "N D"], most: int) -> Float[Array, "B n D"]:
  """Rows in blocks of equal size, at most `most`, with zeros at the end."""
  blocks = -(-x.shape[0] // most)
  padding = -x.shape[0] % blocks
  return jnp.pad(x, ((0, padding), (0, 0))).reshape(blocks, -1, x.shape[1])


def _best(
  scores: Float[Array, "K N"], chunk: int, top_k: int
) -> tuple[Int[Array, "N T"], Float[Array, "N T"]]:
  """The ids and scores of the largest entries of each column, lowest id first at ties."""
  block, rows = scores.shape
  chunked = scores.reshape(block // chunk, chunk, rows)
  of_chunk = jnp.max(chunked, axis=1)
  if top_k == 1:
    winner = jnp.argmax(of_chunk, axis=0).astype(jnp.int32)
    inside = _take(chunked, winner[None, None, :])[0]
    place = jnp.argmax(inside, axis=0).astype(jnp.int32)
    return (winner * chunk + place)[:, None], jnp.max(inside, axis=0)[:, None]
  # The top k entries lie in the top k chunks; in ascending order, so that the lowest id
  # still comes first.
  few = min(top_k, block // chunk)
  winners = jnp.sort(_largest(of_chunk, few)[0], axis=0)
  inside = _take(chunked, winners[:, None, :])
  count = min(top_k, few * chunk)
  places, values = _largest(inside.reshape(few * chunk, rows), count)
  ids = _take(winners, places // chunk) * chunk + places % chunk
  missing = ((0, 0), (0, top_k - count))
  return (
    jnp.pad(ids.T, missing),
    jnp.pad(values.T, missing, constant_values=-jnp.inf),
  )


def _take(values: Array, places: Int[Array, "..."]) -> Array:
  """`take_along_axis` of the first axis, without a check of places that are known."""
  return jnp.take_along_axis(values, places, axis=0, mode="promise_in_bounds")


def _largest(
  values: Float[Array, "K N"], count: int
) -> tuple[Int[Array, "T N"], Float[Array, "T N"]]:
  """Places and values of the largest entries of each column, the first one first at ties."""
  if count > _FEW:
    found, places = jax.lax.top_k(values.T, count)
    return places.T.astype(jnp.int32), found.T
  place = jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)
  places, found = [], []
  for _ in range(count):
    found.append(jnp.max(values, axis=0))
    places.append(jnp.argmax(values, axis=0).astype(jnp.int32))
    values = jnp.where(place == places[-1][None], -jnp.inf, values)
  return jnp.stack(places), jnp.stack(found)


def _merge(
  best: tuple[Array, Array], new: tuple[Array, Array], top_k: int
) -> tuple[Array, Array]:
  """The best of two lists whose ids do not overlap, `best` having the lower ones."""
  if top_k == 1:
    is_better = new[1] > best[1]
    return jnp.where(is_better, new[0], best[0]), jnp.where(is_better, new[1], best[1])
  ids, values = (jnp.concatenate(pair, axis=1) for pair in zip(best, new, strict=True))
  places, values = _largest(values.T, top_k)
  return jnp.take_along_axis(ids, places.T, axis=1), values.T
