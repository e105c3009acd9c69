"""The mesh, and where every array lies on it.

One mesh with the axes ("data", "fsdp", "model") serves one device as well as a pod. The
batch is split over data and fsdp; parameters follow path rules, and where no rule speaks,
they are split over fsdp along their largest divisible axis. Model code never sees any of
this: jit inserts the collectives, and kernels, which jit cannot split, find the mesh around
them (`ambient`).
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from tokzoo.contract import Batch, Variables
from tokzoo.errors import TokzooError
from tokzoo.train.recipe import MeshShape, Spec

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")

_SMALL = 1024
"""Arrays of fewer elements are copied: gathering them costs more than it saves."""


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh over `devices`.

  Several TPU slices are joined by the data center network, which only the axis `data`
  crosses: its collectives are the fewest.

  Args:
    shape: devices along each axis; one of them may be -1 and takes what is left.
    devices: those to use; None: all devices of all processes.

  Raises:
    TokzooError: the devices cannot be laid out so.
  """
  placed = jax.devices() if devices is None else devices
  sizes = mesh_sizes(shape, len(placed))
  types = (AxisType.Auto,) * len(AXES)
  slices = num_slices(placed)
  if slices == 1:
    return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
  data, *others = sizes
  if data % slices:
    raise TokzooError(
      f"the axis data of {data} cannot be spread over {slices} TPU slices, and only it may "
      f"cross them: make it a multiple of {slices}."
    )
  inside, across = (data // slices, *others), (slices, *(1 for _ in others))
  grid = mesh_utils.create_hybrid_device_mesh(
    inside, across, placed, allow_split_physical_axes=True
  )
  return Mesh(grid, AXES, axis_types=types)


def mesh_sizes(shape: MeshShape, count: int) -> tuple[int, int, int]:
  """Devices along each axis of a mesh over `count` of them.

  Raises:
    TokzooError: they cannot be laid out so.
  """
  sizes = [shape.data, shape.fsdp, shape.model]
  asked = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes))
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise TokzooError(
      f"a mesh of {asked} cannot be made: sizes are positive, and one of them may be -1 "
      "to take what is left."
    )
  known = int(np.prod([size for size in sizes if size != -1]))
  if count % known or (-1 not in sizes and known != count):
    raise TokzooError(
      f"a mesh of {asked} needs {'a multiple of ' if -1 in sizes else ''}{known} devices, "
      f"but there are {count}: change the recipe's mesh."
    )
  data, fsdp, model = (count // known if size == -1 else size for size in sizes)
  return data, fsdp, model


def num_slices(devices: Sequence[Any]) -> int:
  """How many TPU slices the devices are of; 1 for anything else."""
  if devices[0].platform != "tpu":
    return 1
  return len({getattr(device, "slice_index", None) or 0 for device in devices})


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis split over data and fsdp."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def ambient(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
  """`function` for `jax.jit`, traced with the mesh around it: kernels split themselves over
  the one they find (`jax.sharding.get_abstract_mesh`)."""

  @functools.wraps(function)
  def on_mesh(*args: Any, **kwargs: Any) -> Any:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args, **kwargs)

  return on_mesh


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
  """Checks that every device gets whole rows of every micro-batch.

  Raises:
    TokzooError: it does not, with the numbers.
  """
  devices = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
  parts = devices * accumulate
  if batch_size < 1 or batch_size % parts:
    sizes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in BATCH_AXES)
    micro = f" in {accumulate} micro-batches" if accumulate > 1 else ""
    raise TokzooError(
      f"a batch of {batch_size} cannot be split over {devices} devices ({sizes}){micro}: "
      f"choose a batch_size that is a multiple of {parts}, or another mesh."
    )


def host_arrays(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The numeric entries of a batch: names and keys of records stay on the host."""
  arrays = {name: np.asarray(value) for name, value in batch.items()}
  return {name: array for name, array in arrays.items() if array.dtype.kind in "biuf"}


def put_batch(batch: Mapping[str, Any], mesh: Mesh, batch_size: int) -> Batch:
  """This process's rows as global arrays of `batch_size` rows. Does not wait for the copy."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(
      sharding, array, (batch_size, *array.shape[1:])
    )
    for name, array in host_arrays(batch).items()
  }


def named_leaves(tree: PyTree) -> dict[str, Any]:
  """Leaves by path, "encoder/blocks_0/attn/kernel", in the tree's order."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def shardings(
  variables: Variables, mesh: Mesh, rules: Sequence[tuple[str, Spec]] = ()
) -> dict[str, PyTree]:
  """Where each variable lies.

  Args:
    variables: collections of arrays, or of shapes as `jax.eval_shape` gives them.
    mesh: of `make_mesh`.
    rules: (regular expression, spec) pairs; the first whose expression matches the path
      inside the collection, from its start, places the array. A spec names the mesh axis
      of each array axis; missing ones at its end are None.

  Returns:
    The same tree with a `NamedSharding` at each leaf.

  Raises:
    TokzooError: a rule that matches nothing, or whose spec does not fit an array it matches.
  """
  unused = {pattern for pattern, _ in rules}

  def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for pattern, spec in rules:
      if re.match(pattern, name):
        unused.discard(pattern)
        _check_spec(pattern, spec, name, leaf.shape, mesh)
        return NamedSharding(mesh, PartitionSpec(*spec))
    return NamedSharding(mesh, _fsdp_spec(leaf.shape, mesh.shape["fsdp"]))

  placed = {
    collection: jax.tree_util.tree_map_with_path(place, tree)
    for collection, tree in variables.items()
  }
  if unused:
    raise TokzooError(
      f"the sharding rule {min(unused)!r} matches no variable: mend its expression, or "
      "remove it."
    )
  return placed


def programs_in_flight(devices: Iterable[Any]) -> int:
  """How many programs may be sent ahead of the one that is waited for.

  Two keep an accelerator busy: one to compute and one to come. Simulated devices share one
  pool of threads, and a collective of a later program that waits in it for its partners can
  keep those out for ever, so there each is waited for at once.
  """
  devices = list(devices)
  simulated = devices[0].platform == "cpu" and len(devices) > 1
  return 0 if simulated else 2


def _fsdp_spec(shape: tuple[int, ...], parts: int) -> PartitionSpec:
  """Splits the largest axis that `parts` divides; the last one of several equals."""
  divisible = [axis for axis, size in enumerate(shape) if size and size % parts == 0]
  if parts == 1 or not divisible or np.prod(shape) < _SMALL:
    return PartitionSpec()
  largest = max(divisible, key=lambda axis: (shape[axis], axis))
  return PartitionSpec(
    *["fsdp" if axis == largest else None for axis in range(largest + 1)]
  )


def _check_spec(
  pattern: str, spec: Spec, name: str, shape: tuple[int, ...], mesh: Mesh
) -> None:
  """Raises `TokzooError` where a rule's spec does not fit the array `name`."""
  rule = f"the sharding rule {pattern!r} -> {spec}"
  used = [axis for axis in spec if axis is not None]
  for axis in used:
    if axis not in mesh.axis_names:
      raise TokzooError(
        f"{rule} names the mesh axis {axis!r}: there are {', '.join(AXES)}."
      )
  if len(set(used)) < len(used):
    raise TokzooError(f"{rule} uses a mesh axis twice: each splits one array axis.")
  if len(spec) > len(shape):
    raise TokzooError(
      f"{rule} has {len(spec)} axes, but {name} has the shape {list(shape)}: shorten it."
    )
  for size, axis in zip(shape, spec):
    if axis is not None and size % mesh.shape[axis]:
      raise TokzooError(
        f"{rule} splits an axis of {size} of {name} {list(shape)} over {mesh.shape[axis]} "
        f"devices ({axis}): it must divide; change the rule or the mesh."
      )
