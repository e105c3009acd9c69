"""k-means: Lloyd's iterations, and a codebook that starts from the first training batch.

Initial means are random tokens of the batch; a cluster that is empty keeps its mean; for the
cosine metric means have unit norm. The sums are exact (`codebook.count_and_sum`), so that the
means are the same on any number of devices.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.kernels.codebook_search import count_and_sum
from tokzoo.quantizers.codebook import Averages, Metric, draw, nearest
from tokzoo.quantizers.gradients import unit


def kmeans(
  z: Float[Array, "N D"],
  means: Float[Array, "K D"],
  iterations: int | Int[Array, ""],
  metric: Metric = "euclidean",
  is_kept: Bool[Array, "N"] | None = None,
) -> tuple[Float[Array, "K D"], Float[Array, "K"]]:
  """Lloyd's algorithm.

  Args:
    z: tokens, of unit norm for the cosine metric.
    means: to start from, of unit norm for the cosine metric.
    iterations: how many; may be traced.
    metric: of the search.
    is_kept: bool[N], the tokens that count; None: all.

  Returns:
    The means, and how many tokens each had in the last assignment (before the last move);
    with no iteration at all, `means` and zeros.
  """

  def move(_, state):
    means, _ = state
    ids = nearest(z, means, metric)
    ids = ids if is_kept is None else jnp.where(is_kept, ids, -1)
    counts, sums = count_and_sum(z, ids, means.shape[0])
    new = sums / jnp.maximum(counts, 1)[:, None]
    new = unit(new) if metric == "cosine" else new
    return jnp.where(counts[:, None] == 0, means, new), counts

  return jax.lax.fori_loop(0, iterations, move, (means, jnp.zeros(means.shape[0])))


def first_means(
  z: Float[Array, "N D"],
  num: int,
  key: PRNGKeyArray,
  is_kept: Bool[Array, "N"] | None = None,
) -> Float[Array, "num D"]:
  """Random tokens, none of them twice unless there are fewer than `num`."""
  draw_key, again_key = jax.random.split(key)
  kept = jnp.ones(z.shape[0], bool) if is_kept is None else is_kept
  drawn = draw(z, num, draw_key, kept)
  again = jax.random.randint(again_key, (num,), 0, jnp.maximum(drawn.num, 1))
  place = jnp.where(drawn.num < num, again, jnp.arange(num, dtype=jnp.int32))
  return drawn.rows[place]


@dataclasses.dataclass(frozen=True)
class KMeans:
  """A codebook that starts as the k-means of the first training batch.

  Needs the rng stream `codebook`. What vector_quantize_pytorch does besides: it divides the
  sums by smoothed counts before the first search, which moves the codes by a part in a
  million and those of empty clusters to zero.
  """

  iterations: int = 10
  """50 in EnCodec and Mimi."""
  sums: Literal["sums", "means"] = "sums"
  """What the moving averages start from beside the counts: the sums of the clusters, or, as
  released with EnCodec, their means, with which the first step shrinks the codebook to
  about mean / count."""

  def start(
    self,
    old: Averages,
    is_started: Bool[Array, ""],
    z: Float[Array, "N D"],
    is_kept: Bool[Array, "N"],
    metric: Metric,
    key: PRNGKeyArray,
  ) -> Averages:
    """The codebook of the clusters of `z`, or `old` if `is_started`."""
    # No iteration rather than a branch: over parallel codebooks a branch becomes a choice
    # between two results, and every later step would cluster again for nothing.
    iterations = jnp.where(is_started, 0, self.iterations)
    first = first_means(z, old.counts.shape[0], key, is_kept)
    means, counts = kmeans(z, first, iterations, metric, is_kept)
    sums = means * counts[:, None] if self.sums == "sums" else means
    new = Averages(means, counts, sums)
    return jax.tree.map(lambda a, b: jnp.where(is_started, a, b), old, new)
