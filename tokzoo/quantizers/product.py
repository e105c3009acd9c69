"""Product quantization: the features in chunks, each with a quantizer of its own.

Jegou et al., "Product Quantization for Nearest Neighbor Search" (TPAMI 2011). With G groups of
K codes each there are K^G combinations at the price of K D numbers. Any quantizer can be the
inner one: of VQ it makes PQ (the `heads` of vector_quantize_pytorch), of a residual quantizer
GroupedRVQ, of FSQ and LFQ their `num_codebooks`.

Searching among quantized points needs no decoding: with y^g the chunk of a query,

  |y - q(x)|^2 = sum_g T_g[i_g],  T_g[k] = |y^g - c^g_k|^2

which `distance_tables` and `table_distances` compute.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokzoo.contract import Quantized


class Product(nn.Module):
  """Contiguous chunks of the last axis, quantized side by side.

  quantizer:  of one chunk; any quantizer that says its latents' size as `dim`
  groups:     G, how many chunks
  is_shared:  one quantizer serves all chunks, as if they were further rows of the batch;
              else each has variables of its own, stacked along a first axis

  Ids are int32[B, L, G], or int32[B, L, G Q] where a chunk has Q > 1 ids itself, those of
  the first chunk first. Losses are means over the groups; the statistics of quantizers that
  are not shared are stacked, [G, ...].
  """

  quantizer: Any
  groups: int
  is_shared: bool = False

  @property
  def dim(self) -> int:
    """D, features of latents and codes."""
    return self.groups * self.quantizer.dim

  @property
  def num_codes(self) -> int:
    """Codes of one id."""
    return self.quantizer.num_codes

  @property
  def id_groups(self) -> int:
    """Ids per token."""
    return self.groups * getattr(self.quantizer, "id_groups", 1)

  @property
  def bits_per_token(self) -> float:
    return self.groups * self.quantizer.bits_per_token

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized:
    """Quantizes latents of any float dtype."""
    if z.shape[-1] != self.dim:
      raise ValueError(
        f"{self.groups} groups of {self.quantizer.dim} features, latents of {z.shape[-1]}."
      )
    masks = None if mask is None else jnp.repeat(mask[None], self.groups, axis=0)
    quantized = self._each(
      lambda quantizer, z, mask: quantizer(z, mask, train), self._split(z), masks
    )
    losses, stats = quantized.losses, quantized.stats
    if not self.is_shared:
      losses = jax.tree.map(lambda loss: jnp.mean(loss, axis=0), losses)
    ids = quantized.ids.reshape(*quantized.values.shape[:-1], -1)
    return Quantized(self._join(quantized.values), self._join(ids), losses, stats)

  def ids_to_codes(self, ids: Int[Array, "*N Q"]) -> Float[Array, "*N D"]:
    """The codes of ids in [0, K); -1 gives 0."""
    chunks = self._split(ids)
    chunks = chunks[..., 0] if chunks.shape[-1] == 1 else chunks
    return self._join(self._each(lambda inner, ids: inner.ids_to_codes(ids), chunks))

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N Q"]:
    """The ids of codes."""
    chunks = self._split(codes)
    ids = self._each(lambda inner, codes: inner.codes_to_ids(codes), chunks)
    return self._join(ids.reshape(*chunks.shape[:-1], -1))

  def codebook(self) -> Float[Array, "G K d"]:
    """The codes of each group, where the inner quantizer has a codebook."""
    if self.is_shared:
      return jnp.repeat(self.quantizer.codebook()[None], self.groups, axis=0)
    return self._each(lambda quantizer: quantizer.codebook())

  def _each(self, call: Callable[..., Any], *chunks: Array | None) -> Any:
    """`call(quantizer, *chunk)` for each group; the groups are the first axis."""
    if self.is_shared:
      fold = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), chunks)
      shape = jax.tree.leaves(chunks)[0].shape[:2]
      out = call(self.quantizer, *fold)
      if not isinstance(out, Quantized):
        return out.reshape(*shape, *out.shape[1:])
      values = out.values.reshape(*shape, *out.values.shape[1:])
      return dataclasses.replace(
        out, values=values, ids=out.ids.reshape(*shape, *out.ids.shape[1:])
      )
    return nn.vmap(
      call, variable_axes={True: 0}, split_rngs={True: True}, axis_size=self.groups
    )(self.quantizer, *chunks)

  def _split(self, x: Array) -> Array:
    """[..., G d] -> [G, ..., d]."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], self.groups, -1), -2, 0)

  def _join(self, x: Array) -> Array:
    """[G, ..., d] -> [..., G d]."""
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], -1)


def distance_tables(
  queries: Float[Array, "N D"], codes: Float[Array, "G K d"]
) -> Float[Array, "N G K"]:
  """The squared distance of each chunk of each query to each code of its group.

  Args:
    queries: float32, not quantized; for a rotated codebook, rotated.
    codes: float32, `Product.codebook()`.
  """
  chunks = queries.reshape(queries.shape[0], codes.shape[0], 1, codes.shape[2])
  # One code at a time: [N, G, K, d] would be d times the result.
  return jax.lax.map(
    lambda code: jnp.sum((chunks[:, :, 0] - code[None]) ** 2, axis=-1),
    jnp.moveaxis(codes, 1, 0),
  ).transpose(1, 2, 0)


def table_distances(
  tables: Float[Array, "N G K"], ids: Int[Array, "P G"]
) -> Float[Array, "N P"]:
  """The squared distance of each query to each quantized point, from its ids alone."""
  found = jnp.take_along_axis(tables[:, None], ids[None, :, :, None], axis=-1)
  return jnp.sum(found[..., 0], axis=-1)
