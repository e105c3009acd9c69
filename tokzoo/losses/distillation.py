"""Semantic distillation of a codec's first codebook from a teacher's features.

SpeechTokenizer (arXiv 2308.16692) and DM-Codec (arXiv 2410.15017). Features are float32[B, L, D];
of two lengths the shorter counts, since teachers differ from codecs by a frame.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tokzoo.errors import TokzooError


def d_axis(
  feature: Float[Array, "B L D"], teacher: Float[Array, "B M D"]
) -> Float[Array, ""]:
  """-mean over rows and dimensions of log sigmoid(cosine along time)."""
  feature, teacher = _cut(feature, teacher)
  return -jax.nn.log_sigmoid(_cosine(feature, teacher, 1)).mean()


def t_axis(
  feature: Float[Array, "B L D"],
  teacher: Float[Array, "B M D"],
  similarity: float = 1.0,
) -> Float[Array, ""]:
  """L1 - similarity * mean over rows and frames of log sigmoid(cosine along dimensions)."""
  feature, teacher = _cut(feature, teacher)
  near = -jax.nn.log_sigmoid(_cosine(feature, teacher, 2)).mean()
  return jnp.abs(feature - teacher).mean() + similarity * near


def combined(
  feature: Float[Array, "B L D"],
  teachers: Sequence[Float[Array, "B M D"]],
  weights: Sequence[float] | None = None,
) -> Float[Array, ""]:
  """`d_axis` to several teachers (speech model, language model): their mean, or weighed.

  Raises:
    TokzooError: as many weights as teachers are wanted.
  """
  if weights is None:
    weights = [1.0 / len(teachers)] * len(teachers)
  if len(weights) != len(teachers):
    raise TokzooError(
      f"{len(weights)} weights came for {len(teachers)} teachers: give one for each."
    )
  losses = [w * d_axis(feature, t) for w, t in zip(weights, teachers, strict=True)]
  return sum(losses[1:], losses[0])


def _cut(feature: Array, teacher: Array) -> tuple[Array, Array]:
  if feature.shape[0] != teacher.shape[0] or feature.shape[2] != teacher.shape[2]:
    raise TokzooError(
      f"features {list(feature.shape)} are to follow a teacher {list(teacher.shape)}: rows and "
      "dimensions must agree; check the config's semantic dimension."
    )
  length = min(feature.shape[1], teacher.shape[1])
  return tuple(x[:, :length].astype(jnp.float32) for x in (feature, teacher))  # pyright: ignore


def _cosine(x: Array, y: Array, axis: int) -> Array:
  """As torch.cosine_similarity: each norm at least 1e-8, without a gradient where it is 0."""
  norms = []
  for z in (x, y):
    square = jnp.square(z).sum(axis)
    norms.append(jnp.sqrt(jnp.maximum(square, 1e-16)))
  return (x * y).sum(axis) / (norms[0] * norms[1])
