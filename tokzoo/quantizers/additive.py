"""Additive quantization: a vector is a sum of one full-size codeword from each codebook.

Babenko & Lempitsky, "Additive Quantization for Extreme Vector Compression" (CVPR 2014).
With M codebooks C^m [K, D], x ~ sum_m c^m_{i_m}. Encoding is a Markov random field, since

  |x - sum_m c^m|^2 = |x|^2 - 2 sum_m x . c^m + sum_m |c^m|^2 + 2 sum_{m<l} c^m . c^l

has a term for each pair of codebooks, and is searched, not solved:

  AdditiveBeam  keep the best distinct partial sums, extended by codewords of any codebook that
                they have none of (the paper)
  Icm           iterated conditional modes from random perturbations: each codebook in turn
                takes the best codeword given the others (Martinez et al., "Revisiting Additive
                Quantization", ECCV 2016, and LSQ++, ECCV 2018)

Given the codes, the best codebooks are least squares (`update_codes`): with B [N, M K] the
one-hot rows, C = (B^T B + lambda I)^-1 B^T X. Residual quantization is the special case of
greedy encoding and codebooks fitted one after another.

Searching needs no decoding: |y - xhat|^2 = |y|^2 - 2 sum_m y . c^m_{i_m} + |xhat|^2, the last
of which is stored with each item (`squared_norms`, `additive_distances`).
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.contract import Quantized
from tokzoo.errors import TokzooError
from tokzoo.kernels.codebook_search import search
from tokzoo.quantizers.codebook import nearest
from tokzoo.quantizers.gradients import straight_through
from tokzoo.quantizers.kmeans import first_means, kmeans
from tokzoo.quantizers.masks import count_codes, hide, latents, losses_in, masked_mean

_EXACT = jax.lax.Precision.HIGHEST
_LLOYD = 10


def decode(
  codes: Float[Array, "M K D"], ids: Int[Array, "*N M"]
) -> Float[Array, "*N D"]:
  """sum_m c^m_{i_m}; an id of -1 adds 0."""
  books = jnp.arange(codes.shape[0]).reshape((1,) * (ids.ndim - 1) + (-1,))
  parts = jnp.where(ids[..., None] < 0, 0.0, codes[books, jnp.maximum(ids, 0)])
  # One by one, so that every caller gets the same bits.
  return functools.reduce(jnp.add, [parts[..., m, :] for m in range(codes.shape[0])])


def squared_error(
  x: Float[Array, "*N D"], codes: Float[Array, "M K D"], ids: Int[Array, "*N M"]
) -> Float[Array, "*N"]:
  """|x - sum_m c^m_{i_m}|^2."""
  return jnp.sum((x - decode(codes, ids)) ** 2, axis=-1)


@dataclasses.dataclass(frozen=True)
class AdditiveBeam:
  """Beam search over partial sums, codebooks in any order."""

  width: int = 16
  """Partial sums that are kept."""

  def __call__(
    self, x: Float[Array, "N D"], codes: Float[Array, "M K D"]
  ) -> Int[Array, "N M"]:
    """int32[N, M], the ids of the best sum found."""
    num_books, num_codes, dim = codes.shape
    top = min(self.width, num_codes)
    is_book = jnp.eye(num_books, dtype=bool)[None, None, :, None, :]

    def extend(state: tuple[Array, Array], _) -> tuple[tuple[Array, Array], None]:
      ids, error = state
      rest = (x[:, None] - decode(codes, ids)).reshape(1, -1, dim)
      queries = jnp.broadcast_to(rest, (num_books, *rest.shape[1:]))
      # The best `top` of each codebook are enough: a tuple behind them has as many before it.
      found, grown_error = search(queries, codes, top_k=top, with_distances=True)
      shape = (num_books, x.shape[0], self.width, top)
      found, grown_error = (
        jnp.moveaxis(y.reshape(shape), 0, 2) for y in (found, grown_error)
      )
      is_open = (ids < 0) & jnp.isfinite(error)[..., None]
      grown_error = jnp.where(is_open[..., None], grown_error, jnp.inf)
      grown = jnp.where(is_book, found[..., None], ids[:, :, None, None, :])
      grown = grown.reshape(x.shape[0], -1, num_books)
      return self._best_distinct(grown, grown_error.reshape(x.shape[0], -1)), None

    # One empty sum; the other places are free, which an infinite error says.
    ids = jnp.full((x.shape[0], self.width, num_books), -1, jnp.int32)
    error = jnp.where(jnp.arange(self.width)[None] == 0, 0.0, jnp.inf)
    state = (ids, jnp.broadcast_to(error, ids.shape[:2]))
    (ids, _), _ = jax.lax.scan(extend, state, length=num_books)
    return ids[:, 0]

  def _best_distinct(
    self, ids: Int[Array, "N C M"], error: Float[Array, "N C"]
  ) -> tuple[Int[Array, "N W M"], Float[Array, "N W"]]:
    """The tuples of least error, each once: it can be reached in as many ways as it has
    codewords, by adding any of them last."""
    count = min(self.width * ids.shape[-1], ids.shape[1])
    negative, order = jax.lax.top_k(-error, count)
    ids = jnp.take_along_axis(ids, order[..., None], axis=1)
    is_same = functools.reduce(
      jnp.logical_and,
      [ids[:, :, None, m] == ids[:, None, :, m] for m in range(ids.shape[-1])],
    )
    earlier = jnp.tril(jnp.ones((count, count), bool), k=-1)
    is_again = jnp.any(is_same & earlier[None], axis=-1)
    negative, order = jax.lax.top_k(jnp.where(is_again, -jnp.inf, negative), self.width)
    return jnp.take_along_axis(ids, order[..., None], axis=1), -negative


@dataclasses.dataclass(frozen=True)
class Icm:
  """Iterated conditional modes with random perturbations (iterated local search).

  Starts from the greedy codes; never ends with a larger error than it started with.
  """

  rounds: int = 8
  """Perturbations, each followed by a descent that is kept where it is an improvement."""
  flips: int = 2
  """Codewords of a vector that a perturbation redraws."""
  sweeps: int = 4
  """Times that a descent visits each codebook."""
  seed: int = 0
  """Of the perturbations."""

  def __call__(
    self, x: Float[Array, "N D"], codes: Float[Array, "M K D"]
  ) -> Int[Array, "N M"]:
    """int32[N, M], the ids of the best sum found."""
    return self.improve(x, codes, encode_greedily(x, codes))

  def improve(
    self, x: Float[Array, "N D"], codes: Float[Array, "M K D"], ids: Int[Array, "N M"]
  ) -> Int[Array, "N M"]:
    """Ids of no larger error than those given, for each vector."""

    def search_from(best: Array, proposed: Array) -> Array:
      found = self._descend(x, codes, proposed)
      is_better = squared_error(x, codes, found) < squared_error(x, codes, best)
      return jnp.where(is_better[:, None], found, best)

    def visit(best: Array, key: PRNGKeyArray) -> tuple[Array, None]:
      return search_from(best, self._perturb(best, codes.shape[1], key)), None

    keys = jax.random.split(jax.random.key(self.seed), self.rounds)
    best, _ = jax.lax.scan(visit, search_from(ids, ids), keys)
    return best

  def _perturb(
    self, ids: Int[Array, "N M"], num_codes: int, key: PRNGKeyArray
  ) -> Int[Array, "N M"]:
    where, what = jax.random.split(key)
    lots = jax.random.uniform(where, ids.shape)
    rank = jnp.argsort(jnp.argsort(lots, axis=1), axis=1)
    drawn = jax.random.randint(what, ids.shape, 0, num_codes)
    return jnp.where(rank < self.flips, drawn, ids)

  def _descend(
    self, x: Float[Array, "N D"], codes: Float[Array, "M K D"], ids: Int[Array, "N M"]
  ) -> Int[Array, "N M"]:
    def visit(ids: Array, book: Array) -> tuple[Array, None]:
      others = ids.at[:, book].set(-1)
      rest = x - decode(codes, others)
      return ids.at[:, book].set(nearest(rest, codes[book], "euclidean")), None

    order = jnp.tile(jnp.arange(codes.shape[0]), self.sweeps)
    return jax.lax.scan(visit, ids, order)[0]


def encode_greedily(
  x: Float[Array, "N D"], codes: Float[Array, "M K D"]
) -> Int[Array, "N M"]:
  """One codebook after the other, as residual quantization does."""

  def visit(rest: Array, book: Array) -> tuple[Array, Array]:
    ids = nearest(rest, book, "euclidean")
    return rest - book[ids], ids

  return jax.lax.scan(visit, x, codes)[1].T


def update_codes(
  x: Float[Array, "N D"],
  ids: Int[Array, "N M"],
  num_codes: int,
  ridge: float = 1e-3,
) -> Float[Array, "M K D"]:
  """The codebooks of least squared error for given ids.

  Args:
    x: vectors.
    ids: int32[N, M], in [0, K).
    num_codes: K.
    ridge: lambda, in vectors; without it the codebooks are not determined, since adding to
      one what is taken from another changes no sum.

  Returns:
    float32[M, K, D]; a code that no vector has is 0.
  """
  num_books = ids.shape[1]
  lines = ids + num_codes * jnp.arange(num_books)[None]
  size = num_books * num_codes
  pairs = lines[:, :, None] * size + lines[:, None, :]
  gram = jnp.bincount(pairs.reshape(-1), length=size * size).reshape(size, size)
  spread = jnp.broadcast_to(x[:, None], (*ids.shape, x.shape[1])).reshape(
    -1, x.shape[1]
  )
  sums = jax.ops.segment_sum(spread, lines.reshape(-1), size)
  system = gram.astype(jnp.float32) + ridge * jnp.eye(size)
  solved = jax.scipy.linalg.solve(system, sums, assume_a="pos")
  return solved.reshape(num_books, num_codes, -1)


def fit_residual(
  x: Float[Array, "N D"], key: PRNGKeyArray, *, num_codebooks: int, num_codes: int
) -> Float[Array, "M K D"]:
  """Codebooks for greedy encoding: k-means of what the codebooks before left over.

  Args:
    x: float32 vectors.
    key: for the first means, which are random vectors.
    num_codebooks: M.
    num_codes: K.

  Returns:
    float32[M, K, D].
  """

  def fit(rest: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
    book, _ = kmeans(rest, first_means(rest, num_codes, key), _LLOYD)
    return rest - book[nearest(rest, book, "euclidean")], book

  return jax.lax.scan(fit, x, jax.random.split(key, num_codebooks))[1]


def fit_additive(
  x: Float[Array, "N D"],
  key: PRNGKeyArray,
  *,
  num_codebooks: int,
  num_codes: int,
  encoder: AdditiveBeam | Icm = AdditiveBeam(),
  iterations: int = 10,
) -> Float[Array, "M K D"]:
  """Codebooks for given vectors: residual k-means, then encoding and least squares by turns.

  Args:
    x: vectors of any float dtype, at least `num_codes` of them.
    key: for the first means.
    num_codebooks: M.
    num_codes: K.
    encoder: how the vectors are encoded.
    iterations: of the two steps.

  Returns:
    float32[M, K, D], the best of all iterations.

  Raises:
    TokzooError: fewer vectors than codes.
  """
  if x.shape[0] < num_codes:
    raise TokzooError(
      f"{x.shape[0]} vectors do not fill codebooks of {num_codes} codes: give more vectors "
      "or choose fewer codes."
    )
  x = x.astype(jnp.float32)
  first = fit_residual(x, key, num_codebooks=num_codebooks, num_codes=num_codes)

  def step(state, _):
    codes, best, least = state
    ids = encoder(x, codes)
    error = jnp.mean(squared_error(x, codes, ids))
    best = jnp.where(error < least, codes, best)
    return (update_codes(x, ids, num_codes), best, jnp.minimum(error, least)), None

  start = (first, first, jnp.asarray(jnp.inf))
  (_, best, _), _ = jax.lax.scan(step, start, length=iterations + 1)
  return best


def squared_norms(
  codes: Float[Array, "M K D"], ids: Int[Array, "P M"]
) -> Float[Array, "P"]:
  """|xhat|^2 of each item, to be stored beside its ids."""
  return jnp.sum(decode(codes, ids) ** 2, axis=-1)


def additive_distances(
  queries: Float[Array, "N D"],
  codes: Float[Array, "M K D"],
  ids: Int[Array, "P M"],
  norms: Float[Array, "P"],
) -> Float[Array, "N P"]:
  """The squared distance of each query to each item, from ids and norms alone."""
  tables = jnp.einsum("nd,mkd->nmk", queries, codes, precision=_EXACT)
  found = jnp.take_along_axis(tables[:, None], ids[None, :, :, None], axis=-1)[..., 0]
  square = jnp.sum(queries * queries, axis=-1)
  return square[:, None] - 2 * jnp.sum(found, axis=-1) + norms[None]


class Additive(nn.Module):
  """Additive quantization over the last axis; the codebooks learn by gradient descent.

  num_codes:      K of each codebook
  dim:            D
  num_codebooks:  M
  encoder:        how a vector is encoded
  codes_init:     of the codes, [M, K, D]; those of `fit_additive` may be given

  Losses, unweighted: `commitment` mean (z - sg q)^2 and `codebook` mean (sg z - q)^2, of the
  sum q, so that all codebooks learn together. The gradient is straight through.
  """

  num_codes: int
  dim: int
  num_codebooks: int
  encoder: AdditiveBeam | Icm = AdditiveBeam()
  codes_init: nn.initializers.Initializer = nn.initializers.normal(1.0)

  @property
  def id_groups(self) -> int:
    """Ids per token."""
    return self.num_codebooks

  @property
  def bits_per_token(self) -> float:
    return self.num_codebooks * math.log2(self.num_codes)

  def setup(self):
    shape = (self.num_codebooks, self.num_codes, self.dim)
    self.codes = self.param("codes", self.codes_init, shape, jnp.float32)

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized:
    """Quantizes latents of any float dtype. Ids: int32[B, L, M]. Stats: `counts`
    int32[M, K]."""
    if z.shape[-1] != self.dim:
      raise ValueError(f"codes of {self.dim} features, latents of {z.shape[-1]}.")
    z = latents(z, mask)
    ids = self.codes_to_ids(z)
    code = decode(self.codes, ids)
    losses = {
      "commitment": masked_mean((z - jax.lax.stop_gradient(code)) ** 2, mask),
      "codebook": masked_mean((jax.lax.stop_gradient(z) - code) ** 2, mask),
    }
    values, ids = hide(straight_through(z, code), ids, mask)
    counts = [count_codes(ids[..., m], self.num_codes) for m in range(ids.shape[-1])]
    return Quantized(
      values, ids, losses_in(train, losses), {"counts": jnp.stack(counts)}
    )

  def codebook(self) -> Float[Array, "M K D"]:
    """The codes."""
    return self.codes

  def ids_to_codes(self, ids: Int[Array, "*N M"]) -> Float[Array, "*N D"]:
    """The sums of the codes of ids in [0, K); an id of -1 adds 0."""
    return decode(self.codes, ids)

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N M"]:
    """Ids whose codes add up to `codes` as nearly as the encoder finds; a sum does not say
    which codes it is made of."""
    flat = jax.lax.stop_gradient(codes.astype(jnp.float32)).reshape(-1, self.dim)
    ids = self.encoder(flat, jax.lax.stop_gradient(self.codes))
    return ids.reshape(*codes.shape[:-1], self.num_codebooks)
