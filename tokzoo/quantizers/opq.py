"""Optimised product quantization: a learnt rotation before the chunks are cut.

Ge et al., "Optimized Product Quantization" (TPAMI 2014), the non-parametric solution: for rows
x, codes of x R, and values q R^T, with the orthogonal R that makes the error least. Two steps
alternate, and neither makes the error larger:

  codes  one round of k-means in each chunk of X R
  R      U V^T, where U S V^T = X^T Q (the orthogonal Procrustes problem)
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from tokzoo.contract import Quantized
from tokzoo.errors import TokzooError
from tokzoo.quantizers.codebook import nearest
from tokzoo.quantizers.kmeans import first_means, kmeans
from tokzoo.quantizers.masks import latents

_EXACT = jax.lax.Precision.HIGHEST


class Rotated(nn.Module):
  """A quantizer of z R whose values are turned back by R^T.

  quantizer:  any quantizer that says its latents' size as `dim`; `Product` for OPQ

  R is the entry `rotation` of the collection `codebook`, at first the identity. No gradient
  moves it: it comes from `fit_opq`.
  """

  quantizer: Any

  @property
  def dim(self) -> int:
    """D, features of latents and codes."""
    return self.quantizer.dim

  @property
  def num_codes(self) -> int:
    """Codes of one id."""
    return self.quantizer.num_codes

  @property
  def id_groups(self) -> int:
    """Ids per token."""
    return getattr(self.quantizer, "id_groups", 1)

  @property
  def bits_per_token(self) -> float:
    return self.quantizer.bits_per_token

  def setup(self):
    self.rotation = self.variable("codebook", "rotation", jnp.eye, self.dim)

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized:
    """Quantizes latents of any float dtype."""
    if z.shape[-1] != self.dim:
      raise ValueError(f"a rotation of {self.dim} features, latents of {z.shape[-1]}.")
    quantized = self.quantizer(self.rotate(latents(z, mask)), mask, train)
    return quantized.replace(values=self._back(quantized.values))

  def ids_to_codes(self, ids: Int[Array, "*N Q"]) -> Float[Array, "*N D"]:
    """The codes of ids in [0, K); -1 gives 0."""
    return self._back(self.quantizer.ids_to_codes(ids))

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N Q"]:
    """The ids of codes."""
    return self.quantizer.codes_to_ids(self.rotate(codes.astype(jnp.float32)))

  def rotate(self, z: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    """z R: what the inner quantizer, and `distance_tables`, are to see."""
    return jnp.matmul(z, self.rotation.value, precision=_EXACT)

  def _back(self, codes: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    return jnp.matmul(codes, self.rotation.value.T, precision=_EXACT)


@struct.dataclass
class OpqFit:
  """What `fit_opq` finds.

  rotation:  float32[D, D], orthogonal
  codes:     float32[G, K, d]
  counts:    float32[G, K], tokens of each code
  errors:    float32[iterations], mean over tokens of |x - q R^T|^2 before each rotation
  """

  rotation: Float[Array, "D D"]
  codes: Float[Array, "G K d"]
  counts: Float[Array, "G K"]
  errors: Float[Array, "iterations"]

  def variables(self) -> PyTree:
    """Of `Rotated(Product(VectorQuantizer(K, d), G))`."""
    sums = self.codes * self.counts[..., None]
    inner = {"codes": self.codes, "counts": self.counts, "sums": sums}
    own = {"rotation": self.rotation, "quantizer": {"quantizer": inner}}
    return {"codebook": own}


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _fit(x, key, groups, num_codes, iterations):
  def split(y):
    return jnp.moveaxis(y.reshape(y.shape[0], groups, -1), 1, 0)

  def rotate(y, rotation):
    return jnp.matmul(y, rotation, precision=_EXACT)

  def step(state, _):
    rotation, codes, _ = state
    chunks = split(rotate(x, rotation))
    codes, counts = jax.vmap(lambda y, means: kmeans(y, means, 1))(chunks, codes)
    ids = jax.vmap(lambda y, means: nearest(y, means, "euclidean"))(chunks, codes)
    found = jnp.take_along_axis(codes, ids[..., None], axis=1)
    error = jnp.mean(jnp.sum((chunks - found) ** 2, axis=(0, 2)))
    quantized = jnp.moveaxis(found, 0, 1).reshape(x.shape)
    left, _, right = jnp.linalg.svd(jnp.matmul(x.T, quantized, precision=_EXACT))
    return (rotate(left, right), codes, counts), error

  keys = jax.random.split(key, groups)
  codes = jax.vmap(lambda y, key: first_means(y, num_codes, key))(split(x), keys)
  start = (jnp.eye(x.shape[1]), codes, jnp.zeros(codes.shape[:2]))
  (rotation, codes, counts), errors = jax.lax.scan(step, start, length=iterations)
  return OpqFit(rotation, codes, counts, errors)


def fit_opq(
  x: Float[Array, "N D"],
  key: PRNGKeyArray,
  *,
  groups: int,
  num_codes: int,
  iterations: int = 30,
) -> OpqFit:
  """Fits rotation and codebooks of an optimised product quantizer.

  Args:
    x: vectors of any float dtype.
    key: for the initial codes, which are random vectors.
    groups: G, which divides D.
    num_codes: K.
    iterations: rounds of both steps, from the identity.

  Raises:
    TokzooError: the groups do not divide the features, or there is nothing to fit.
  """
  if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] % groups:
    raise TokzooError(
      f"optimised product quantization of {groups} groups needs vectors [N, D] with N at "
      f"least 1 and D a multiple of {groups}; these are {list(x.shape)}."
    )
  return _fit(x.astype(jnp.float32), key, groups, num_codes, iterations)
