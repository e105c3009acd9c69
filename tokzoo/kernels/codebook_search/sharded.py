"""Codebook search on a mesh: every device searches its own rows in its own codes.

Rows lie along the mesh axes `data` and `fsdp`, as batches do, and codes are shared out along
`model`, whether the codebook is kept split or as copies: a codebook of 2^18 x 256 need never
lie on one device, and the devices of the model axis each do their part of the work. Then the
best of each part are gathered, [parts, N, top_k] numbers, and the best of all is taken in
the order of the parts, so that the lowest id still wins a tie: the answer is that of one
device.

The mesh is the ambient one (`jax.set_mesh`; the trainer sets it). Without one, or inside a
`shard_map` of somebody else's, the search is local.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

ROW_AXES, CODE_AXIS = ("data", "fsdp"), "model"

Search = Callable[..., tuple[Array, Array]]


def over_mesh(
  local: Search,
  x: Float[Array, "H N D"],
  codebook: Float[Array, "H K D"],
  bias: Float[Array, "H K"],
  top_k: int,
) -> tuple[Int[Array, "H N T"], Float[Array, "H N T"]]:
  """`local(x, codebook, bias, top_k=)`, split over the ambient mesh; see `reference.search`."""
  mesh = jax.sharding.get_abstract_mesh()
  sizes = {
    axis: mesh.shape[axis]
    for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind != AxisType.Manual
  }
  row_axes = tuple(axis for axis in ROW_AXES if sizes.get(axis, 1) > 1)
  if x.shape[1] % int(np.prod([sizes[axis] for axis in row_axes])):
    row_axes = ()  # rows that cannot be dealt out evenly are searched by every device
  parts = sizes.get(CODE_AXIS, 1)
  if parts == 1 and not row_axes:
    return local(x, codebook, bias, top_k=top_k)

  # Codes that fill up the last part are never chosen.
  padding = -codebook.shape[1] % parts
  codebook = jnp.pad(codebook, ((0, 0), (0, padding), (0, 0)))
  bias = jnp.pad(bias, ((0, 0), (0, padding)), constant_values=jnp.inf)
  codes = CODE_AXIS if parts > 1 else None

  def on_device(x, codebook, bias):
    ids, scores = local(x, codebook, bias, top_k=min(top_k, codebook.shape[1]))
    if parts == 1:
      return ids, scores
    ids = ids + jax.lax.axis_index(CODE_AXIS).astype(jnp.int32) * codebook.shape[1]
    ids, scores = (
      jax.lax.all_gather(a, CODE_AXIS, axis=2, tiled=True) for a in (ids, scores)
    )
    scores, places = jax.lax.top_k(scores, top_k)
    return jnp.take_along_axis(ids, places, axis=2), scores

  rows = PartitionSpec(None, row_axes or None)
  return jax.shard_map(
    on_device,
    in_specs=(rows, PartitionSpec(None, codes), PartitionSpec(None, codes)),
    out_specs=(rows, rows),
    # That the gathered answer is the same on the whole model axis is not seen by the checker.
    check_vma=False,
  )(x, codebook, bias)
