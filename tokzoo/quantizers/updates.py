"""Update rules: how a codebook moves after a step, and what happens to its dead codes.

`Ema` makes each code the moving average of its tokens (van den Oord et al., arXiv 1711.00937,
appendix A.1). With n_k the number of tokens of code k in the step and s_k their sum:

  N_k <- g N_k + (1 - g) n_k         S_k <- g S_k + (1 - g) s_k
  c_k = S_k / ((N_k + eps) / (sum N + K eps) sum N)        (cosine: then to unit norm)

`Learnt` leaves the codes to gradient descent and only counts, so that dead ones can be reset.
A reset policy is one of

  ResetBelow      after the averages, N_k < threshold (vector_quantize_pytorch)
  PeriodicReset   before the averages, every fifth step, N_k < 0.1 mean N (Mimi)
  EncodecReset    as released with EnCodec: it has no effect, see there

Nothing here depends on how the tokens are split over devices, to the last bit: sums are
exact, and random draws come from the key alone.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.kernels.codebook_search import count_and_sum
from tokzoo.quantizers.affine import Moments
from tokzoo.quantizers.codebook import Averages, Drawn, Metric, draw
from tokzoo.quantizers.gradients import unit


@dataclasses.dataclass(frozen=True)
class ResetBelow:
  """A code whose count falls below `threshold` becomes a token of the batch."""

  threshold: float
  """In tokens a step."""
  count: float | None = None
  """What a code starts anew with; None: the threshold."""

  is_before: ClassVar[bool] = False

  def __call__(
    self,
    averages: Averages,
    fresh: Drawn,
    step: Int[Array, ""] | None = None,
  ) -> Averages:
    """The averages with dead codes replaced."""
    count = self.threshold if self.count is None else self.count
    is_dead = averages.counts < self.threshold
    return replace(averages, is_dead, fresh, jnp.float32(count))


@dataclasses.dataclass(frozen=True)
class PeriodicReset:
  """Every few steps, a code far less used than the mean becomes a token of the batch.

  Relative to the mean, so that it does not depend on the batch size. The step's own average
  follows the reset, as in the released code of Mimi. Needs the state `steps`.
  """

  every: int = 5
  """Steps between two looks at the counts; the first comes at this step."""
  threshold: float = 0.1
  """As a fraction of the mean count."""
  count: float = 1.0
  """What a code starts anew with, as a fraction of the mean count."""

  is_before: ClassVar[bool] = True

  def __call__(
    self,
    averages: Averages,
    fresh: Drawn,
    step: Int[Array, ""] | None = None,
  ) -> Averages:
    """The averages with dead codes replaced, if it is time. `step` counts from 0."""
    if step is None:
      raise ValueError("a periodic reset needs the number of updates before this one.")
    mean = jnp.mean(averages.counts)
    is_dead = (averages.counts < self.threshold * mean) & ((step + 1) % self.every == 0)
    return replace(averages, is_dead, fresh, self.count * mean)


@dataclasses.dataclass(frozen=True)
class EncodecReset:
  """The reset that EnCodec was published with, which has no effect on the codebook.

  It overwrites the dead codes, but neither their counts nor their sums, and does so before
  the averages, from which the same step then makes all codes anew. For runs that are to
  behave like the published one; `ResetBelow` is what was meant.
  """

  threshold: float = 2.0
  """In tokens a step."""

  is_before: ClassVar[bool] = True

  def __call__(
    self,
    averages: Averages,
    fresh: Drawn,
    step: Int[Array, ""] | None = None,
  ) -> Averages:
    """The averages with the codes, and only these, replaced."""
    is_dead = averages.counts < self.threshold
    replaced = replace(averages, is_dead, fresh, jnp.float32(0))
    return dataclasses.replace(averages, codes=replaced.codes)


Reset = ResetBelow | PeriodicReset | EncodecReset


@dataclasses.dataclass(frozen=True)
class Ema:
  """Codes are moving averages of their tokens."""

  decay: float = 0.99
  """g, of counts and sums, per step."""
  eps: float = 1e-5
  """Laplace smoothing of the counts."""
  reset: Reset | None = None
  """Of dead codes; needs the rng stream `codebook`."""
  first_count: float = 1.0
  """N_k before the first step, where S_k = c_k: 1 in vector_quantize_pytorch; 0 in EnCodec,
  which is meant to start from k-means: a code without tokens would else divide by eps."""

  def update(
    self,
    old: Averages,
    z: Float[Array, "N D"],
    ids: Int[Array, "N"],
    metric: Metric,
    key: PRNGKeyArray | None = None,
    step: Int[Array, ""] | None = None,
    moments: Moments | None = None,
  ) -> Averages:
    """The codebook after a step.

    Args:
      old: the codebook that the step searched.
      z: the step's tokens, of unit norm for the cosine metric.
      ids: int32[N], the code of each; -1 where a token is masked out.
      metric: for "cosine" the new codes have unit norm.
      key: for the choice of tokens that replace dead codes; needed by a reset.
      step: int32, how many updates there were before; needed by a periodic reset.
      moments: of an affine codebook, to where its tokens are brought back.
    """
    num_codes = old.counts.shape[0]
    fresh = _fresh(self.reset, z, ids, num_codes, key, moments)
    old = _reset(self.reset, True, old, fresh, step)
    count = count_and_sum if moments is None else moments.count_and_sum
    counts, sums = count(z, ids, num_codes)
    counts = self.decay * old.counts + (1 - self.decay) * counts
    sums = self.decay * old.sums + (1 - self.decay) * sums
    total = jnp.sum(counts)
    smooth = (counts + self.eps) / (total + num_codes * self.eps) * total
    # No token ever and no count to begin with: there is nothing to average.
    codes = jnp.where(
      total > 0, sums / jnp.where(total > 0, smooth, 1.0)[:, None], old.codes
    )
    new = Averages(unit(codes) if metric == "cosine" else codes, counts, sums)
    return _reset(self.reset, False, new, fresh, step)


@dataclasses.dataclass(frozen=True)
class Learnt:
  """Codes learn by gradient descent; the averages only tell which of them are dead."""

  decay: float = 0.8
  """Of the counts, per step."""
  reset: Reset | None = ResetBelow(2.0)
  """Of dead codes; needs the rng stream `codebook`."""
  first_count: ClassVar[float] = 1.0

  def update(
    self,
    old: Averages,
    z: Float[Array, "N D"],
    ids: Int[Array, "N"],
    metric: Metric,
    key: PRNGKeyArray | None = None,
    step: Int[Array, ""] | None = None,
    moments: Moments | None = None,
  ) -> Averages:
    """As `Ema.update`; only codes that are reset change."""
    num_codes = old.counts.shape[0]
    fresh = _fresh(self.reset, z, ids, num_codes, key, moments)
    old = _reset(self.reset, True, old, fresh, step)
    counts, _ = count_and_sum(z, ids, num_codes)
    counts = self.decay * old.counts + (1 - self.decay) * counts
    new = dataclasses.replace(old, counts=counts)
    return _reset(self.reset, False, new, fresh, step)


def _fresh(
  reset: Reset | None,
  z: Float[Array, "N D"],
  ids: Int[Array, "N"],
  num_codes: int,
  key: PRNGKeyArray | None,
  moments: Moments | None,
) -> Drawn | None:
  """The tokens that dead codes may become; None where nothing is reset."""
  if reset is None:
    return None
  if key is None:
    raise ValueError("the reset of dead codes draws tokens and needs a key.")
  drawn = draw(z, num_codes, key, ids >= 0)
  if moments is None:
    return drawn
  return dataclasses.replace(drawn, rows=moments.to_codes(drawn.rows))


def _reset(
  reset: Reset | None,
  is_before: bool,
  averages: Averages,
  fresh: Drawn | None,
  step: Int[Array, ""] | None,
) -> Averages:
  """Applies the policy at its place, before or after the averages."""
  if reset is None or fresh is None or reset.is_before != is_before:
    return averages
  return reset(averages, fresh, step)


def replace(
  averages: Averages,
  is_dead: Bool[Array, "K"],
  fresh: Drawn,
  count: Float[Array, ""],
) -> Averages:
  """Gives dead codes new life as tokens of the batch; never more of them than tokens.

  Args:
    averages: of the codebook.
    is_dead: bool[K].
    fresh: tokens of the batch, which the dead codes get in turn.
    count: float32, what the codes start anew with.
  """
  rank = jnp.cumsum(is_dead) - 1
  is_reset = is_dead & (rank < fresh.num)
  codes = fresh.rows[jnp.minimum(rank, fresh.rows.shape[0] - 1)]
  # All three together: the next step would else rebuild the dead code from its old sum.
  return Averages(
    jnp.where(is_reset[:, None], codes, averages.codes),
    jnp.where(is_reset, count, averages.counts),
    jnp.where(is_reset[:, None], codes * count, averages.sums),
  )
