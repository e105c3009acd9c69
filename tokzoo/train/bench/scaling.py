"""What one device of many does: the compiled step's operations and collectives, and theory's.

With B examples in all over n devices, of a model of P bytes of parameters (float32):

  operations   the model's / n; XLA may give a device a little more (what cannot be split)
  data         gradients are summed: an all-reduce of P bytes sends 2 P (n - 1) / n
  fsdp         parameters are gathered for the forward and the backward pass and gradients are
               summed; XLA's CPU compiler sums by all-reduce where a TPU's scatters, so
               between P (n - 1) / n and (2 + 1 + 1) P (n - 1) / n are sent

Counts, not times: simulated devices share the cores.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from tokzoo.errors import TokzooError
from tokzoo.machines import costs
from tokzoo.tokenizers.image.instella_t2i import Config
from tokzoo.train.bench.trainer import MODEL, recipe_of
from tokzoo.train.mesh import make_mesh
from tokzoo.train.recipe import MeshShape, Recipe
from tokzoo.train.state import lay_out
from tokzoo.train.step import make_step


@dataclasses.dataclass(frozen=True)
class Row:
  """The step on some devices.

  axis:               of the mesh that is split: data or fsdp
  flops:              of one device
  flops_theory:       those of one device alone, divided
  sent:               bytes that one device sends in collectives
  sent_theory:        the least and the most that they should be
  collectives:        kind -> count
  state_bytes:        of parameters and optimizer on one device
  """

  devices: int
  axis: str
  flops: float
  flops_theory: float
  sent: float
  sent_theory: tuple[float, float]
  collectives: dict[str, int]
  state_bytes: int


def scaling(
  counts: Sequence[int] = (1, 2, 4, 8),
  axes: Sequence[Literal["data", "fsdp"]] = ("data", "fsdp"),
  batch_size: int = 16,
  model: Config = MODEL,
) -> list[Row]:
  """Compiles the benchmark's step for each number of devices, along each axis.

  Raises:
    TokzooError: this process has fewer devices.
  """
  if max(counts) > jax.device_count():
    raise TokzooError(
      f"{max(counts)} devices were asked for, but jax has {jax.device_count()} here: set "
      f"jax_num_cpu_devices={max(counts)} before it starts."
    )
  rows: list[Row] = []
  for axis in axes:
    for count in counts:
      alone = rows[0].flops if rows else None
      rows.append(_row(axis, count, recipe_of(batch_size, model=model), alone))
  return rows


def _row(axis: str, count: int, recipe: Recipe, flops: float | None) -> Row:
  shape = MeshShape(**{"data": 1, "fsdp": 1, axis: count})
  mesh = make_mesh(shape, jax.devices()[:count])
  size, channels = recipe.data.size, recipe.data.channels
  shape = (recipe.batch_size, size, size, channels)
  image = jax.ShapeDtypeStruct(shape, np.float32)
  layout = lay_out(recipe, {"image": image}, mesh)
  compiled = make_step(recipe, layout).lower(layout.shapes, {"image": image}).compile()
  counted = costs.count(compiled.as_text(), [0] * count)
  kinds: dict[str, int] = {}
  for each in counted.collectives:
    kinds[each.kind] = kinds.get(each.kind, 0) + each.count
  params = sum(leaf.size * 4 for leaf in jax.tree.leaves(layout.shapes.params))
  share = (count - 1) / count
  least, most = (2, 2) if axis == "data" else (1, 4)
  state = jax.tree.leaves(layout.shapes)
  return Row(
    devices=count,
    axis=axis,
    flops=counted.flops,
    flops_theory=(flops or counted.flops) / count,
    sent=sum(each.sent for each in counted.collectives),
    sent_theory=(least * params * share, most * params * share),
    collectives=kinds,
    state_bytes=sum(
      int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
      for leaf in state
    ),
  )
