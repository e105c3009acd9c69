"""Codebook search for CPUs, in XLA: blocks of scores that stay in the cache.

The matrix product is the work; what a plain program loses is the trip of the scores to
memory and an arg-max that runs one number at a time. Here a block of scores is [codes, rows],
about 4 MiB, and its maximum is found in two steps:

  1. the maximum of each chunk of 128 codes, along the outer axis, so that a vector
     instruction works on neighbouring rows;
  2. the arg-max of the 64 chunk maxima, and then of the 128 scores of the winning chunk.

A codebook longer than a block is walked through block by block with a running best.

Codes of a few features make hardly any product, and the scores' trip through the cache is
all there is. They are searched without a matrix: a few codes at a time are held against all
rows, each row with its running best in a register.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Codes of a chunk and of a block: 128 gave the fastest maximum, and a block of 8,192 codes
# by 128 rows is 4 MiB of scores.
_CHUNK = 128
_BLOCK = 8192
_SCORES = 2**20
_MOST_ROWS = 2048
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
  one = _search_narrow if is_narrow else functools.partial(_search, top_k=top_k)
  # One codebook after another: each keeps all cores busy by itself.
  return jax.lax.map(lambda arrays: one(*arrays), (x, codebook, bias))


def _search(
  x: Float[Array, "N D"],
  codebook: Float[Array, "K D"],
  bias: Float[Array, "K"],
  top_k: int,
) -> tuple[Int[Array, "N T"], Float[Array, "N T"]]:
  (n, d), k = x.shape, codebook.shape[0]
  chunk = min(_CHUNK, k)
  # As many blocks as are needed, and all of about the same size: 10,000 codes are two
  # blocks of 5,120 and not of 8,192.
  blocks = -(-k // _BLOCK)
  block = -(-k // (blocks * chunk)) * chunk
  rows = min(n, max(_CHUNK, min(_MOST_ROWS, _SCORES // block)))
  padding = -k % block
  codes = jnp.pad(codebook, ((0, padding), (0, 0))).reshape(-1, block, d)
  biases = jnp.pad(bias, (0, padding), constant_values=jnp.inf).reshape(-1, block)
  firsts = jnp.arange(0, k + padding, block, dtype=jnp.int32)

  def of_rows(x_block):
    def of_codes(best, codes_of_block):
      some_codes, some_biases, first = codes_of_block
      scores = jnp.matmul(some_codes, x_block.T, precision=jax.lax.Precision.HIGHEST)
      new = _best(scores - some_biases[:, None], chunk, top_k)
      return _merge(best, (new[0] + first, new[1]), top_k), None

    best = (
      jnp.zeros((rows, top_k), jnp.int32),
      jnp.full((rows, top_k), -jnp.inf),
    )
    return jax.lax.scan(of_codes, best, (codes, biases, firsts))[0]

  return _by_rows(of_rows, x, rows, top_k)


def _search_narrow(
  x: Float[Array, "N D"], codebook: Float[Array, "K D"], bias: Float[Array, "K"]
) -> tuple[Int[Array, "N 1"], Float[Array, "N 1"]]:
  d = x.shape[1]
  padding = -codebook.shape[0] % _AT_A_TIME
  codes = jnp.pad(codebook, ((0, padding), (0, 0)))
  biases = jnp.pad(bias, (0, padding), constant_values=jnp.inf)
  rows = min(x.shape[0], _NARROW_ROWS)

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

    best = jnp.zeros(rows, jnp.int32), jnp.full(rows, -jnp.inf)
    ids, scores = jax.lax.fori_loop(0, codes.shape[0] // _AT_A_TIME, of_codes, best)
    return ids[:, None], scores[:, None]

  return _by_rows(of_rows, x, rows, 1)


def _by_rows(
  search_rows: Callable[[Array], tuple[Array, Array]],
  x: Float[Array, "N D"],
  rows: int,
  top_k: int,
) -> tuple[Int[Array, "N T"], Float[Array, "N T"]]:
  """Searches `rows` rows after the other."""
  n = x.shape[0]

  def visit(i, found):
    # The last block overlaps its neighbour instead of being padded.
    start = jnp.minimum(i * rows, n - rows)
    best = search_rows(jax.lax.dynamic_slice_in_dim(x, start, rows))
    return jax.tree.map(
      lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0),
      found,
      best,
    )

  found = (jnp.zeros((n, top_k), jnp.int32), jnp.full((n, top_k), -jnp.inf))
  return jax.lax.fori_loop(0, -(-n // rows), visit, found)


def _best(
  scores: Float[Array, "K N"], chunk: int, top_k: int
) -> tuple[Int[Array, "N T"], Float[Array, "N T"]]:
  """The ids and scores of the largest entries of each column, lowest id first at ties."""
  block, rows = scores.shape
  chunked = scores.reshape(block // chunk, chunk, rows)
  of_chunk = jnp.max(chunked, axis=1)
  if top_k == 1:
    winner = jnp.argmax(of_chunk, axis=0).astype(jnp.int32)
    inside = jnp.take_along_axis(chunked, winner[None, None, :], axis=0)[0]
    place = jnp.argmax(inside, axis=0).astype(jnp.int32)
    return (winner * chunk + place)[:, None], jnp.max(of_chunk, axis=0)[:, None]
  # The top k entries lie in the top k chunks; in ascending order, so that the lowest id
  # still comes first.
  few = min(top_k, block // chunk)
  _, winners = jax.lax.top_k(of_chunk.T, few)
  winners = jnp.sort(winners, axis=1).astype(jnp.int32)
  inside = jnp.take_along_axis(chunked, winners.T[:, None, :], axis=0)
  inside = inside.reshape(few * chunk, rows).T
  count = min(top_k, few * chunk)
  values, places = jax.lax.top_k(inside, count)
  ids = jnp.take_along_axis(winners, places // chunk, axis=1) * chunk + places % chunk
  missing = ((0, 0), (0, top_k - count))
  return (
    jnp.pad(ids.astype(jnp.int32), missing),
    jnp.pad(values, missing, constant_values=-jnp.inf),
  )


def _merge(
  best: tuple[Array, Array], new: tuple[Array, Array], top_k: int
) -> tuple[Array, Array]:
  """The best of two lists whose ids do not overlap, `best` having the lower ones."""
  if top_k == 1:
    is_better = new[1] > best[1]
    return jnp.where(is_better, new[0], best[0]), jnp.where(is_better, new[1], best[1])
  ids, values = (jnp.concatenate(pair, axis=1) for pair in zip(best, new, strict=True))
  values, places = jax.lax.top_k(values, top_k)
  return jnp.take_along_axis(ids, places, axis=1), values
