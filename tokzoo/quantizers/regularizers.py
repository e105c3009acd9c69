"""Losses that keep a codebook in use: orthogonality, diversity, entropies.

`VectorQuantizer` takes any of them as a tuple. Each returns named, unweighted losses:

  Orthogonal  orthogonal       sum_jk cos(c_j, c_k)^2 / K^2 - 1 / K
              (Shin et al., arXiv 2112.00384, equation 2)
  Diversity   diversity        - mean over positions of H(mean over the batch of p)
  Entropy     sample_entropy   mean over tokens of H(p), which is to fall
              batch_entropy    H(mean over tokens of p), which is to rise

with p the softmax over codes of the similarities (minus the distances, or their squares) times
an inverse temperature; entropies are in nats. Diversity and Entropy hold all N x K similarities
in memory.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokzoo.errors import TokzooError
from tokzoo.quantizers.codebook import Metric, similarity
from tokzoo.quantizers.gradients import unit
from tokzoo.quantizers.masks import count_codes, masked_mean


@dataclasses.dataclass(frozen=True)
class Orthogonal:
  """Pushes the directions of the codes apart. The codes must learn by gradient descent."""

  active_only: bool = False
  """Only the codes that a token of the batch chose."""

  needs_learnt_codes: ClassVar[bool] = True

  def __call__(
    self,
    z: Float[Array, "B L D"],
    codes: Float[Array, "K D"],
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"] | None,
    metric: Metric,
  ) -> dict[str, Float[Array, ""]]:
    """The loss `orthogonal`. Ids are -1 where masked."""
    is_in = jnp.ones(codes.shape[0], bool)
    if self.active_only:
      is_in = count_codes(ids, codes.shape[0]) > 0
    return {"orthogonal": orthogonality(codes, is_in)}


def orthogonality(
  codes: Float[Array, "K D"], is_in: Bool[Array, "K"]
) -> Float[Array, ""]:
  """The mean squared cosine of all pairs of the codes that count, less that of the pairs of
  a code with itself; 0 if none counts."""
  directions = jnp.where(is_in[:, None], unit(codes), 0)
  # sum_jk (a_j . a_k)^2 = |A^T A|^2: D x D numbers instead of K x K.
  gram = jnp.matmul(directions.T, directions, precision=jax.lax.Precision.HIGHEST)
  count = jnp.maximum(jnp.sum(is_in), 1).astype(jnp.float32)
  return jnp.where(jnp.any(is_in), jnp.sum(gram**2) / count**2 - 1 / count, 0.0)


@dataclasses.dataclass(frozen=True)
class Diversity:
  """Spreads the codes that one position takes over the batch.

  As in vector_quantize_pytorch: a distribution for each position, the mean over the batch
  alone, its logarithm from 1e-5 upwards. Positions without a kept token do not count.
  """

  inverse_temperature: float = 100.0

  needs_learnt_codes: ClassVar[bool] = False

  def __call__(
    self,
    z: Float[Array, "B L D"],
    codes: Float[Array, "K D"],
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"] | None,
    metric: Metric,
  ) -> dict[str, Float[Array, ""]]:
    """The loss `diversity`."""
    logits = similarity(z.reshape(-1, z.shape[-1]), codes, metric)
    p = jax.nn.softmax(self.inverse_temperature * logits, axis=-1)
    p = p.reshape(*z.shape[:2], -1)
    kept = jnp.ones(z.shape[:2], bool) if mask is None else mask
    count = jnp.sum(kept, axis=0).astype(jnp.float32)
    mean = jnp.sum(jnp.where(kept[..., None], p, 0), axis=0)
    mean = mean / jnp.maximum(count, 1)[:, None]
    entropy = -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-5)), axis=-1)
    used = jnp.maximum(jnp.sum(count > 0), 1).astype(jnp.float32)
    return {"diversity": -jnp.sum(jnp.where(count > 0, entropy, 0)) / used}


@dataclasses.dataclass(frozen=True)
class Entropy:
  """Makes each token sure of its code, and all tokens together use all codes."""

  inverse_temperature: float = 100.0
  is_squared: bool = False
  """By the squares of the distances, as MaskGIT's tokenizer is trained; for the euclidean
  metric alone."""

  needs_learnt_codes: ClassVar[bool] = False

  def __call__(
    self,
    z: Float[Array, "B L D"],
    codes: Float[Array, "K D"],
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"] | None,
    metric: Metric,
  ) -> dict[str, Float[Array, ""]]:
    """The losses `sample_entropy` and `batch_entropy`.

    Raises:
      TokzooError: squares of another metric.
    """
    logits = similarity(z.reshape(-1, z.shape[-1]), codes, metric)
    if self.is_squared:
      if metric != "euclidean":
        raise TokzooError(
          f"entropies by squared distances are for the euclidean metric, not {metric!r}: leave "
          "is_squared out."
        )
      logits = -jnp.square(logits)
    logits = (self.inverse_temperature * logits).reshape(*z.shape[:2], -1)
    sample, batch = softmax_entropies(logits, mask)
    return {"sample_entropy": sample, "batch_entropy": batch}


Regularizer = Orthogonal | Diversity | Entropy


def softmax_entropies(
  logits: Float[Array, "B L K"],
  mask: Bool[Array, "B L"] | None = None,
  eps: float = 1e-5,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Entropies in nats of p = softmax(logits).

  Args:
    logits: float32.
    mask: the tokens that count.
    eps: added to the mean distribution inside the logarithm, as in the code of IBQ.

  Returns:
    The mean over tokens of H(p), and H of the mean over tokens of p.
  """
  log_p = jax.nn.log_softmax(logits, axis=-1)
  p = jnp.exp(log_p)
  sample = masked_mean(-jnp.sum(p * log_p, axis=-1), mask)
  kept = jnp.ones(p.shape[:2], bool) if mask is None else mask
  total = jnp.sum(jnp.where(kept[..., None], p, 0), axis=(0, 1))
  mean = total / jnp.maximum(jnp.sum(kept), 1).astype(jnp.float32)
  return sample, -jnp.sum(mean * jnp.log(mean + eps))
