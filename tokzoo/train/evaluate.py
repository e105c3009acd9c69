"""Evaluations and pictures: a task's own functions, jitted over the mesh.

Metric states are merged over batches, so a mean is exact on a ragged last batch too: rows
with `valid` False do not count. Everything here is float32, whatever the training computes
in: it is what a loaded checkpoint gives.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from einops import rearrange
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from tokzoo.contract import Batch, Task, Variables
from tokzoo.errors import TokzooError
from tokzoo.train.mesh import ambient, batch_sharding, make_mesh, put_batch, replicated
from tokzoo.train.recipe import MeshShape

Batches = Iterable[Mapping[str, Any]]
"""Batches of this process's rows, as `tokzoo.data.evaluation_batches` gives them."""

States = dict[str, Any]
"""Mergeable metric states by name."""

_SEED = 7
"""Of every evaluation's draws: two evaluations of the same weights agree."""


def make_evaluate(
  task: Task, mesh: Mesh, placed: Mapping[str, PyTree], batch_size: int
) -> Callable[[Variables, Batches], dict[str, float]]:
  """The function (variables, batches) -> {metric: value}, compiled once.

  Args:
    task: whose `evaluate` is called.
    mesh: of `make_mesh`.
    placed: shardings of the variables.
    batch_size: B, over all hosts.
  """
  one_batch = _over(mesh, placed, task.evaluate)

  def run(variables: Variables, batches: Batches) -> dict[str, float]:
    total: States | None = None
    flying: States | None = None
    for index, batch in enumerate(batches):
      rows = put_batch(batch, mesh, batch_size)  # while the batch before is computed
      total = _merge(total, flying)
      flying = one_batch(dict(variables), rows, np.uint32(index))
    total = _merge(total, flying)
    if total is None:
      raise TokzooError(
        "an evaluation got no batch: its split is empty, or batches is 0."
      )
    return _flat(
      {name: state.compute() for name, state in jax.device_get(total).items()}
    )

  return run


def evaluate(
  task: Task, variables: Variables, batches: Batches, batch_size: int
) -> dict[str, float]:
  """Evaluates once, with a copy of the variables on every device that divides the batch.

  Args:
    task: whose `evaluate` is called.
    variables: of `load_run` or `Task.init`.
    batches: as `tokzoo.data.evaluation_batches` gives them.
    batch_size: B.

  Returns:
    {metric: value}; a metric of several values becomes `metric/value`.

  Raises:
    TokzooError: there is no batch.
  """
  devices = jax.local_devices()
  while batch_size % len(devices):
    devices = devices[:-1]
  mesh = make_mesh(MeshShape(), devices)
  everywhere = replicated(mesh)
  placed = jax.tree.map(lambda _: everywhere, dict(variables))
  run = make_evaluate(task, mesh, placed, batch_size)
  return run(jax.device_put(dict(variables), everywhere), batches)


def make_pictures(
  task: Task, mesh: Mesh, placed: Mapping[str, PyTree], batch_size: int
) -> Callable[[Variables, Mapping[str, Any]], dict[str, np.ndarray]]:
  """The function (variables, batch) -> {name: uint8[H, W, C] sheet of images}."""
  draw = _over(mesh, placed, task.pictures)

  def run(variables: Variables, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    images = draw(dict(variables), put_batch(batch, mesh, batch_size), np.uint32(0))
    return {name: sheet(np.asarray(image)) for name, image in images.items()}

  return run


def sheet(images: np.ndarray, columns: int = 8, rows: int = 4) -> np.ndarray:
  """The first images side by side.

  Args:
    images: float32[B, H, W, C] in [-1, 1]; values outside are clipped, NaN becomes grey.
    columns: images in a row.
    rows: at most so many rows.

  Returns:
    uint8[rows H, columns W, C].
  """
  images = np.nan_to_num(np.asarray(images, np.float32)[: columns * rows])
  columns = min(columns, len(images))
  missing = -len(images) % columns
  blank = np.ones((missing, *images.shape[1:]), np.float32)
  tiles = rearrange(
    np.concatenate([images, blank]), "(r k) h w c -> (r h) (k w) c", k=columns
  )
  return np.round((np.clip(tiles, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def _merge(total: States | None, states: States | None) -> States | None:
  """Waits for the states of a batch and adds them to the total."""
  jax.block_until_ready(states)
  if total is None or states is None:
    return states
  return {name: total[name].merge(state) for name, state in states.items()}


def _over(
  mesh: Mesh, placed: Mapping[str, PyTree], function: Callable[..., Any]
) -> Callable[..., Any]:
  """(variables, batch, index) -> what a task's `function` gives, jitted, replicated."""

  def draw(variables: Variables, batch: Batch, index: Array) -> Any:
    return function(variables, batch, jax.random.fold_in(jax.random.key(_SEED), index))

  return jax.jit(
    ambient(mesh, draw),
    in_shardings=(dict(placed), batch_sharding(mesh), replicated(mesh)),
    out_shardings=replicated(mesh),
  )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
  """{"usage": {"codes": 3.0}} as {"usage/codes": 3.0}."""
  flat: dict[str, float] = {}
  for name, value in values.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{name}/")
    else:
      flat[prefix + name] = float(value)
  return flat
