"""Codebook search: for each row the nearest codes, exact, without the [N, K] matrix.

  euclidean  argmin |x - c|^2 = argmax x . c - |c|^2 / 2; distance |x - c|^2
  cosine     argmax x . c of x / |x| and c / |c|;         distance 1 - x . c
  dot        argmax x . c;                                distance -x . c

The lowest id wins a tie. Products are float32 on every backend, whatever its default is.
Ids have no gradient; the gradient estimators of `tokzoo.quantizers` use the ids.

What is not finite is told apart: a code that holds NaN or Inf is never chosen, and a row
that does (or that is masked out, or has no code left) has id -1 and distance NaN. A number
so large that its square leaves float32 counts as Inf.

Where the computation runs decides which program it is: Mosaic on TPU, Mosaic GPU on Hopper,
blocks that fit the cache on CPU. Under a mesh (`sharded.on_mesh`) each device searches its
own rows, and, where the codebook is split, its own codes.
"""

from typing import Literal, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokzoo.errors import TokzooError
from tokzoo.kernels.codebook_search import dispatch
from tokzoo.kernels.codebook_search.statistics import count_and_sum

Metric = Literal["euclidean", "cosine", "dot"]
METRICS: tuple[Metric, ...] = ("euclidean", "cosine", "dot")
# Below this a vector has no direction.
_TINY_NORM = 1e-6


@overload
def search(
  x: Float[Array, "*H N D"],
  codebook: Float[Array, "*H K D"],
  *,
  metric: Metric = ...,
  mask: Bool[Array, "*H N"] | None = ...,
  top_k: int = ...,
  with_distances: Literal[False] = ...,
  implementation: dispatch.Implementation | None = ...,
) -> Int[Array, "*H N T"]: ...


@overload
def search(
  x: Float[Array, "*H N D"],
  codebook: Float[Array, "*H K D"],
  *,
  metric: Metric = ...,
  mask: Bool[Array, "*H N"] | None = ...,
  top_k: int = ...,
  with_distances: Literal[True],
  implementation: dispatch.Implementation | None = ...,
) -> tuple[Int[Array, "*H N T"], Float[Array, "*H N T"]]: ...


def search(
  x: Float[Array, "*H N D"],
  codebook: Float[Array, "*H K D"],
  *,
  metric: Metric = "euclidean",
  mask: Bool[Array, "*H N"] | None = None,
  top_k: int = 1,
  with_distances: bool = False,
  implementation: dispatch.Implementation | None = None,
) -> Int[Array, "*H N T"] | tuple[Int[Array, "*H N T"], Float[Array, "*H N T"]]:
  """The `top_k` nearest codes of each row, the nearest first.

  Args:
    x: rows, any float dtype; compared in float32. Leading axes H (heads, products) each
      search a codebook of their own, without a Python loop.
    codebook: any float dtype, the same leading axes.
    metric: what near means.
    mask: which rows to search for; the others have id -1. None: all.
    top_k: how many codes, at most K.
    with_distances: also return float32 distances, rising along the last axis.
    implementation: of `dispatch.IMPLEMENTATIONS`; None: the one for the machine that the
      computation is compiled for.

  Returns:
    int32[*H, N, top_k] in [0, K), or -1; with distances a pair.

  Raises:
    TokzooError: the shapes, dtypes or names do not fit, N or K is 0, K is beyond int32.
  """
  x, codebook, mask = _checked(x, codebook, metric, mask, top_k)
  lead = x.shape[:-2]
  x = jax.lax.stop_gradient(x).reshape(-1, *x.shape[-2:]).astype(jnp.float32)
  codes = jax.lax.stop_gradient(codebook).reshape(-1, *codebook.shape[-2:])
  codes = codes.astype(jnp.float32)
  row_norm, code_norm = jnp.sum(x * x, axis=-1), jnp.sum(codes * codes, axis=-1)
  is_row, is_code = jnp.isfinite(row_norm), jnp.isfinite(code_norm)
  if mask is not None:
    is_row = is_row & mask.reshape(is_row.shape)
  if metric == "cosine":
    x, codes = _unit(x, row_norm), _unit(codes, code_norm)
  bias = code_norm / 2 if metric == "euclidean" else jnp.zeros_like(code_norm)
  ids, scores = dispatch.search(
    jnp.where(is_row[..., None], x, 0.0),
    jnp.where(is_code[..., None], codes, 0.0),
    jnp.where(is_code, bias, jnp.inf),
    top_k,
    implementation,
  )
  # As many as there are codes to choose from. (The scores would say it too, but where
  # nobody asks for distances they need not be kept.)
  is_found = jnp.arange(top_k)[None] < jnp.sum(is_code, axis=-1, keepdims=True)
  is_found = is_row[..., None] & is_found[:, None, :]
  ids = jnp.where(is_found, ids, -1).reshape(*lead, -1, top_k)
  if not with_distances:
    return ids
  if metric == "euclidean":
    distances = jnp.maximum(row_norm[..., None] - 2 * scores, 0)
  else:
    distances = (1.0 if metric == "cosine" else 0.0) - scores
  return ids, jnp.where(is_found, distances, jnp.nan).reshape(ids.shape)


def assign(
  x: Float[Array, "N D"],
  codebook: Float[Array, "K D"],
  *,
  metric: Metric = "euclidean",
  mask: Bool[Array, "N"] | None = None,
  implementation: dispatch.Implementation | None = None,
) -> tuple[Int[Array, "N"], Float[Array, "K"], Float[Array, "K D"]]:
  """The nearest code of each row, and the statistics of an EMA update.

  The statistics are exact sums, the same on any number of devices, and need no one-hot
  matrix: see `count_and_sum`.

  Args:
    x: rows, any float dtype.
    codebook: any float dtype.
    metric: what near means.
    mask: which rows count. None: all.
    implementation: see `search`.

  Returns:
    ids int32[N], counts float32[K] and sums float32[K, D] of the rows as they came (not of
    unit norm). Rows of id -1 count nowhere.

  Raises:
    TokzooError: see `search`.
  """
  ids = search(x, codebook, metric=metric, mask=mask, implementation=implementation)
  rows = jax.lax.stop_gradient(x).astype(jnp.float32)
  return ids[:, 0], *count_and_sum(rows, ids[:, 0], codebook.shape[0])


def _checked(
  x: Array, codebook: Array, metric: str, mask: Array | None, top_k: int
) -> tuple[Array, Array, Array | None]:
  if metric not in METRICS:
    raise TokzooError(
      f"codebook search by {metric!r}: the metrics are {', '.join(METRICS)}."
    )
  x, codebook = jnp.asarray(x), jnp.asarray(codebook)
  for name, array in (("rows", x), ("codebook", codebook)):
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise TokzooError(
        f"codebook search takes floating-point {name}, not {array.dtype}: convert them."
      )
    if array.ndim < 2 or 0 in array.shape:
      raise TokzooError(
        f"codebook search takes {name} of shape [..., number, features] with nothing "
        f"empty, not {list(array.shape)}."
      )
  if x.shape[:-2] != codebook.shape[:-2] or x.shape[-1] != codebook.shape[-1]:
    raise TokzooError(
      f"rows of shape {list(x.shape)} cannot be searched in a codebook of shape "
      f"{list(codebook.shape)}: leading axes and features must be the same."
    )
  if codebook.shape[-2] >= 2**31:
    raise TokzooError(
      f"a codebook of {codebook.shape[-2]} codes is beyond int32 ids: split it."
    )
  if not 1 <= top_k <= codebook.shape[-2]:
    raise TokzooError(
      f"top_k = {top_k} of {codebook.shape[-2]} codes: choose from 1 to that many."
    )
  if mask is not None:
    mask = jnp.asarray(mask)
    if mask.shape != x.shape[:-1] or mask.dtype != jnp.bool_:
      raise TokzooError(
        f"the mask of rows {list(x.shape)} is bool{list(x.shape[:-1])}, not "
        f"{mask.dtype}{list(mask.shape)}."
      )
  return x, codebook, mask


def _unit(
  x: Float[Array, "*N D"], square_norm: Float[Array, "*N"]
) -> Float[Array, "*N D"]:
  return x / jnp.maximum(jnp.sqrt(square_norm), _TINY_NORM)[..., None]
