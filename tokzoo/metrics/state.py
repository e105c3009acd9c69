"""What a metric is: a state of one batch that merges with those of other batches.

  state = PSNR.from_batch(images, reconstructions, valid)   # pure: inside jit
  total = total.merge(state)                                # any order, any grouping
  total.compute()                                           # a float, or floats by name

States are pytrees. `valid` bool[B] is False for rows that only fill the last batch; they
count nowhere, whatever they hold.
"""

import operator
from typing import Any, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from tokzoo.errors import TokzooError


@runtime_checkable
class Metric(Protocol):
  """A mergeable state."""

  def merge(self, other: Any) -> Any: ...

  def compute(self) -> float | dict[str, float]: ...


class Additive:
  """A state whose arrays are sums, so that merging is adding."""

  def merge(self, other: Self) -> Self:
    """The state of both batches together."""
    return jax.tree.map(operator.add, self, other)


def sum_rows(
  values: Float[Array, "B"], valid: Bool[Array, "B"] | None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """The sum of the valid rows and their number, float32."""
  values = values.astype(jnp.float32)
  if valid is None:
    return jnp.sum(values), jnp.float32(values.size)
  # Selected, not multiplied: a row that only fills the batch may be NaN.
  return jnp.sum(jnp.where(valid, values, 0)), jnp.sum(valid, dtype=jnp.float32)


def require_rows(count: Any) -> None:
  """Raises TokzooError if nothing was counted: a metric of nothing has no value."""
  if float(count) == 0:
    raise TokzooError(
      "a metric was asked for without a single valid row: give it at least one."
    )


def ratio(total: Any, count: Any) -> float:
  """total / count as a Python float; TokzooError if nothing was counted."""
  require_rows(count)
  return float(total) / float(count)


@struct.dataclass
class Mean(Additive):
  """The mean of one number per row.

  total, count:  float32[]
  """

  total: Float[Array, ""]
  count: Float[Array, ""]

  @classmethod
  def from_batch(
    cls, values: Float[Array, "B *rest"], valid: Bool[Array, "B"] | None = None
  ) -> "Mean":
    """`values` of any number dtype; further axes are averaged within the row."""
    per_row = jnp.mean(values.astype(jnp.float32).reshape(values.shape[0], -1), axis=1)
    return cls(*sum_rows(per_row, valid))

  def compute(self) -> float:
    return ratio(self.total, self.count)
