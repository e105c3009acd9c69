"""Codebooks: the search for the nearest code, and the state that moving averages have."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.kernels.codebook_search import search as search_codebook
from tokzoo.quantizers.gradients import unit

Metric = Literal["euclidean", "cosine", "angular"]
"""What near means.

  euclidean  argmin |z - c|^2
  cosine     argmax z . c, where latents and codes have unit norm
  angular    argmax of the cosine, where latents and codes keep their length
"""


def nearest(
  z: Float[Array, "N D"], codes: Float[Array, "K D"], metric: Metric
) -> Int[Array, "N"]:
  """The id of the nearest code; the lowest of those that tie.

  See `tokzoo.kernels.codebook_search`: exact in float32 on every machine, without a matrix
  of similarities, and each device of a mesh searches its own tokens.

  Args:
    z: latents, of unit norm for the cosine metric.
    codes: the codebook, of unit norm for the cosine metric.
    metric: what near means.

  Returns:
    int32[N], in [0, K); -1 for a latent that holds NaN or Inf.
  """
  if metric == "angular":
    z, codes = unit(z), unit(codes)
  by = "euclidean" if metric == "euclidean" else "dot"
  return search_codebook(z, codes, metric=by)[:, 0]


def similarity(
  z: Float[Array, "N D"], codes: Float[Array, "K D"], metric: Metric
) -> Float[Array, "N K"]:
  """How near each code is, as logits: the cosine, or minus the euclidean distance.

  For estimators and losses that need all of them; the search does not. The squared distance
  is at least 1e-8, as in vector_quantize_pytorch, which keeps the gradient of the root finite.
  """
  if metric == "angular":
    z, codes = unit(z), unit(codes)
  product = jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST)
  if metric != "euclidean":
    return product
  squares = jnp.sum(z * z, axis=-1)[:, None] + jnp.sum(codes * codes, axis=-1)[None, :]
  return -jnp.sqrt(jnp.maximum(squares - 2 * product, 1e-8))


@struct.dataclass
class Averages:
  """A codebook and the statistics it is made of.

  codes:   float32[K, D], what the search sees
  counts:  float32[K], moving average of the tokens that a code gets in a step
  sums:    float32[K, D], moving average of the sum of those tokens
  """

  codes: Float[Array, "K D"]
  counts: Float[Array, "K"]
  sums: Float[Array, "K D"]


@struct.dataclass
class Drawn:
  """Tokens in a random order.

  rows:  float32[R, D]
  num:   int32, how many of the first rows are tokens that count
  """

  rows: Float[Array, "R D"]
  num: Int[Array, ""]


def draw(
  z: Float[Array, "N D"],
  most: int,
  key: PRNGKeyArray,
  is_kept: Bool[Array, "N"],
) -> Drawn:
  """Draws up to `most` tokens without replacement, the same on any mesh.

  Args:
    z: tokens.
    most: how many at most; there are never more than tokens that count.
    key: of the draw.
    is_kept: bool[N], the tokens that count.
  """
  lot = jnp.where(is_kept, jax.random.uniform(key, is_kept.shape), -1.0)
  _, order = jax.lax.top_k(lot, min(most, z.shape[0]))
  num = jnp.minimum(order.size, jnp.sum(is_kept, dtype=jnp.int32))
  return Drawn(z[order], num)
