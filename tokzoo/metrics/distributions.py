"""Distances between two sets of pictures, on the features of a network.

A number of this kind means nothing without the network: names and protocols come from
`tokzoo.metrics.features`. "FID" is the Fréchet distance of Inception features only.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from tokzoo.errors import TokzooError
from tokzoo.metrics.state import require_rows


@struct.dataclass
class Moments:
  """Count, mean and scatter of features, from which mean and covariance follow.

  Features given as NumPy arrays are summed up in float64, as published FID code does. jax
  arrays (inside jit) are summed up in float32 within the batch and in float64 between
  batches; the distance then moves by about 1e-6 of the covariance's trace. Merging takes
  place on the host.

  count:    []
  mean:     [D]
  scatter:  [D, D], sum of (x - mean)(x - mean)^T
  """

  count: Any
  mean: Any
  scatter: Any

  @classmethod
  def from_batch(
    cls,
    features: Float[Array, "B D"] | np.ndarray,
    valid: Bool[Array, "B"] | np.ndarray | None = None,
  ) -> "Moments":
    """From one row of features per picture."""
    if isinstance(features, np.ndarray):
      kept = features if valid is None else features[np.asarray(valid)]
      kept = kept.astype(np.float64)
      mean = kept.mean(0) if len(kept) else np.zeros(features.shape[1])
      return cls(np.float64(len(kept)), mean, (kept - mean).T @ (kept - mean))
    features = features.astype(jnp.float32)
    rows = jnp.ones(features.shape[0], bool) if valid is None else valid
    count = jnp.sum(rows, dtype=jnp.float32)
    kept = jnp.where(rows[:, None], features, 0)
    mean = jnp.sum(kept, axis=0) / jnp.maximum(count, 1)
    offsets = jnp.where(rows[:, None], features - mean[None, :], 0)
    scatter = jnp.matmul(offsets.T, offsets, precision=jax.lax.Precision.HIGHEST)
    return cls(count, mean, scatter)

  def merge(self, other: "Moments") -> "Moments":
    """Both sets together (Chan et al. 1979), in float64 on the host."""
    a, b = (jax.tree.map(_float64, moments) for moments in (self, other))
    count = a.count + b.count
    if count == 0:
      return a
    shift = b.mean - a.mean
    return Moments(
      count,
      a.mean + shift * (b.count / count),
      a.scatter + b.scatter + np.outer(shift, shift) * (a.count * b.count / count),
    )

  def covariance(self) -> np.ndarray:
    """The unbiased covariance, float64[D, D].

    Raises:
      TokzooError: fewer than two rows.
    """
    count = float(self.count)
    if count < 2:
      raise TokzooError(
        f"a covariance needs at least 2 pictures, {count:.0f} came: measure more."
      )
    return _float64(self.scatter) / (count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
  """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), in float64.

  The trace of (A B)^(1/2) is taken from the eigenvalues of A^(1/2) B A^(1/2), which are
  those of A B but come from a symmetric matrix: it exists and is real also where there are
  fewer pictures than features. Published code takes a general matrix root of A B.
  """
  cov_a, cov_b = a.covariance(), b.covariance()
  values, vectors = np.linalg.eigh(cov_a)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  product = np.linalg.eigvalsh(root @ cov_b @ root)
  trace_of_root = np.sqrt(np.maximum(product, 0)).sum()
  shift = _float64(a.mean) - _float64(b.mean)
  return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_of_root)


@struct.dataclass
class FrechetDistance:
  """The Fréchet distance of the features of real and generated pictures."""

  real: Moments
  generated: Moments

  @classmethod
  def from_batch(
    cls,
    real: Float[Array, "B D"] | np.ndarray,
    generated: Float[Array, "B D"] | np.ndarray,
    valid: Bool[Array, "B"] | np.ndarray | None = None,
  ) -> "FrechetDistance":
    """From the features of as many real as generated pictures; see `Moments`."""
    return cls(Moments.from_batch(real, valid), Moments.from_batch(generated, valid))

  def merge(self, other: "FrechetDistance") -> "FrechetDistance":
    return FrechetDistance(
      self.real.merge(other.real), self.generated.merge(other.generated)
    )

  def compute(self) -> float:
    return frechet_distance(self.real, self.generated)


@struct.dataclass
class InceptionScore:
  """exp of the mean KL divergence of p(class | picture) from p(class), over splits.

  Salimans et al. 2016 (arXiv 1606.03498). The i-th picture belongs to split i mod S, which
  for shuffled pictures is as good as the published runs of consecutive ones, and lets
  states of any sizes merge.

  counts:     float32[S], pictures
  negative_entropies:  float32[S], sum over pictures of sum_c p log p
  classes:    float32[S, C], sum over pictures of p
  """

  counts: Float[Array, "S"]
  negative_entropies: Float[Array, "S"]
  classes: Float[Array, "S C"]

  @classmethod
  def from_batch(
    cls,
    logits: Float[Array, "B C"],
    valid: Bool[Array, "B"] | None = None,
    splits: int = 10,
  ) -> "InceptionScore":
    """From class logits; the published protocol has 10 splits of 5,000 pictures."""
    rows = jnp.ones(logits.shape[0], bool) if valid is None else valid
    split = jnp.where(rows, (jnp.cumsum(rows) - 1) % splits, splits)
    log_p = jax.nn.log_softmax(jnp.where(rows[:, None], logits.astype(jnp.float32), 0))
    p = jnp.exp(log_p)

    def per_split(x: Array) -> Array:
      return jax.ops.segment_sum(x, split, splits + 1)[:splits]

    return cls(
      per_split(jnp.ones(rows.shape)), per_split(jnp.sum(p * log_p, -1)), per_split(p)
    )

  def merge(self, other: "InceptionScore") -> "InceptionScore":
    """These pictures, then those of `other`."""
    taken = jnp.sum(jnp.asarray(self.counts)).astype(jnp.int32)
    return jax.tree.map(lambda x, y: x + jnp.roll(y, taken, axis=0), self, other)

  def compute(self) -> dict[str, float]:
    """`mean` and `std` (of the population, as published) over the splits.

    Raises:
      TokzooError: a split is empty.
    """
    counts = _float64(self.counts)
    if not counts.all():
      raise TokzooError(
        f"an Inception Score over {len(counts)} splits needs as many pictures, "
        f"{counts.sum():.0f} came: measure more or ask for fewer splits."
      )
    mean = _float64(self.classes) / counts[:, None]
    entropy_of_mean = -(mean * np.log(np.where(mean > 0, mean, 1))).sum(-1)
    scores = np.exp(_float64(self.negative_entropies) / counts + entropy_of_mean)
    return {"mean": float(scores.mean()), "std": float(scores.std())}


@struct.dataclass
class PrecisionRecall:
  """Precision and recall of generated pictures: do they lie among the real, and do they
  cover them?

  Kynkäänniemi et al. 2019 (arXiv 1904.06991): a point lies in the manifold of a set if it
  is no farther from some point of the set than that point's `k`-th neighbour there. The
  state keeps all features; merging takes place on the host.

  real, generated:  [N, D]
  valid:            bool[N], of both
  """

  real: Any
  generated: Any
  valid: Any
  k: int = struct.field(pytree_node=False, default=3)

  @classmethod
  def from_batch(
    cls,
    real: Float[Array, "B D"],
    generated: Float[Array, "B D"],
    valid: Bool[Array, "B"] | None = None,
    k: int = 3,
  ) -> "PrecisionRecall":
    """From the features of as many real as generated pictures."""
    rows = jnp.ones(real.shape[0], bool) if valid is None else valid
    return cls(real, generated, rows, k)

  def merge(self, other: "PrecisionRecall") -> "PrecisionRecall":
    return jax.tree.map(
      lambda x, y: np.concatenate([np.asarray(x), np.asarray(y)]), self, other
    )

  def compute(self) -> dict[str, float]:
    """`precision` and `recall`, 0 to 1.

    Raises:
      TokzooError: no more pictures than neighbours.
    """
    valid = np.asarray(self.valid)
    require_rows(valid.sum())
    if valid.sum() <= self.k:
      raise TokzooError(
        f"precision and recall with {self.k} neighbours need more pictures than that, "
        f"{valid.sum()} came: measure more."
      )
    real, generated = _float64(self.real)[valid], _float64(self.generated)[valid]
    return {
      "precision": _share_within(generated, real, self.k),
      "recall": _share_within(real, generated, self.k),
    }


def _share_within(points: np.ndarray, manifold: np.ndarray, k: int) -> float:
  """The share of `points` that lie in the manifold of a set."""
  # The nearest of the k + 1 neighbours of a point of the set is the point itself.
  neighbours = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(manifold)
  radii = neighbours.kneighbors(manifold)[0][:, k]
  chunks = pairwise_distances_chunked(
    points, manifold, reduce_func=lambda d, _: (d <= radii).any(axis=1)
  )
  return float(np.concatenate(list(chunks)).mean())


def _float64(x: Any) -> np.ndarray:
  return np.asarray(x, np.float64)
