"""Topologies: machines by name, and devices of machines that are not here.

  v5e:16x16      a TPU slice, its chips along each axis of the torus
  v5p:4x4x8      likewise in three axes
  2xv5e:16x16    two such slices, joined by the data center network
  h100:8x4       GPUs of a node x nodes
  cpu:8          devices of this machine's processor
  v6e            the smallest topology of a chip

The compilers come as wheels and need no device: libtpu has the TPU's, the CUDA plugin of jax
the GPU's; `pip install "tokzoo[plan]"` brings both. A process that compiles pins its backend
to the CPU (`pinned`), since a CUDA plugin that finds no driver says so at length.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tokzoo.errors import TokzooError, missing_extra, unknown
from tokzoo.machines.chips import CHIPS, Chip
from tokzoo.places import bundled

_NAME = re.compile(r"(?:(\d+)x)?([a-z][a-z0-9-]*)(?::(\d+(?:x\d+)*))?")


@dataclasses.dataclass(frozen=True)
class Topology:
  """A machine.

  chip_name:  in `CHIPS`
  shape:      chips along each axis of a slice; (GPUs of a node, nodes); (devices,)
  slices:     TPU slices
  """

  chip_name: str
  shape: tuple[int, ...]
  slices: int = 1

  def __str__(self) -> str:
    several = f"{self.slices}x" if self.slices > 1 else ""
    return f"{several}{self.chip_name}:{'x'.join(map(str, self.shape))}"

  @property
  def chip(self) -> Chip:
    """What the data sheet says."""
    return CHIPS[self.chip_name]

  @property
  def num_chips(self) -> int:
    """Of all slices and nodes; each is one jax device."""
    return self.slices * int(np.prod(self.shape))

  @property
  def num_hosts(self) -> int:
    """Machines that each run one process and feed their own chips."""
    if self.chip.platform == "cuda":
      return self.shape[1]
    if self.chip.platform == "cpu":
      return 1
    chips = self.num_chips // self.slices
    return self.slices * max(1, chips // self.chip.chips_per_host)

  def islands(self, devices: Sequence[Any]) -> list[int]:
    """Of each device, the slice or node inside which ICI or NVLink connects the chips."""
    if self.chip.platform == "tpu":
      return [getattr(device, "slice_index", None) or 0 for device in devices]
    return [device.process_index for device in devices]


def parse(name: str) -> Topology:
  """The topology of a name, as in the table above.

  Raises:
    TokzooError: no such chip or topology; the nearest known ones are named.
  """
  found = _NAME.fullmatch(name)
  chip_name = found[2] if found else name.partition(":")[0]
  if chip_name not in CHIPS:
    raise unknown("chip", chip_name, CHIPS)
  chip = CHIPS[chip_name]
  if found is None:
    raise _refused(name, chip_name, "a topology is numbers joined by x")
  slices = int(found[1] or 1)
  shape = tuple(map(int, (found[3] or chip.shapes[0]).split("x")))
  axes = chip.shapes[0].count("x") + 1
  if len(shape) != axes or 0 in shape or not slices:
    raise _refused(name, chip_name, f"its topologies have {axes} axes of at least 1")
  if chip.platform == "cuda" and shape[0] > chip.chips_per_host:
    raise _refused(name, chip_name, f"a node has {chip.chips_per_host} GPUs")
  if slices > 1 and chip.platform != "tpu":
    raise _refused(name, chip_name, "only TPUs come in slices")
  return Topology(chip_name, shape, slices)


def is_installed(name: str) -> bool:
  """Whether the compiler for a topology, or a chip, is here."""
  packages = parse(name).chip.packages
  return any(importlib.util.find_spec(package) is not None for package in packages)


@functools.cache
def devices(name: str) -> Sequence[Any]:
  """The `jax.Device`s of a machine, to compile on; nothing runs on them.

  Args:
    name: of a topology. Those of "cpu:8" are this process's.

  Raises:
    TokzooError: no such topology, one that the compiler refuses, or no compiler.
  """
  import jax
  from jax.experimental import topologies

  topology = parse(name)
  chip = topology.chip
  if not is_installed(name):
    raise missing_extra(chip.packages[0], "plan", f"compiling for {name}")
  if chip.platform == "cpu":
    return jax.devices("cpu")[: topology.num_chips]
  shape = "x".join(map(str, topology.shape))
  try:
    with _quiet():
      if chip.platform == "tpu":
        os.environ.update(_TPU_ENVIRONMENT)
        options: dict[str, Any] = {}
        if topology.slices > 1:
          options["num_slices"] = topology.slices
        if topology.chip_name == "v4":
          # Both cores of a chip as one device, as jax shows them on a real one.
          options["chip_config_name"] = "megacore_dense"
        if set(topology.shape) == {1}:
          # libtpu before 0.0.43 takes every host for a whole one.
          options["chips_per_host_bounds"] = [1, 1, 1]
        found = topologies.get_topology_desc(
          f"{topology.chip_name}:{shape}", "tpu", **options
        )
      else:
        per_node, nodes = topology.shape
        found = topologies.get_topology_desc(
          topology.chip_name,
          chip.platform,
          target_config=target_config(topology.chip_name),
          topology=f"1x{nodes}x{per_node}",
        )
  except (RuntimeError, ValueError) as error:
    raise _refused(
      name, topology.chip_name, f"the compiler says {str(error).splitlines()[0]!r}"
    ) from error
  return found.devices


def target_config(chip_name: str) -> str:
  """What XLA asks of a GPU that it cannot see (its GpuTargetConfigProto, as text)."""
  return (bundled("tpu") / "targets" / f"{chip_name}.txt").read_text()


_TPU_ENVIRONMENT = {
  # There is no metadata server to ask, and several processes may compile.
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def pinned(topology: Topology, environment: Mapping[str, str]) -> dict[str, str]:
  """The environment of a process that compiles for a machine: its own backend is the CPU."""
  flags = environment.get("XLA_FLAGS", "")
  if topology.chip.platform == "cpu":
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
    flags += f" --xla_force_host_platform_device_count={topology.num_chips}"
  return {
    **environment,
    **_TPU_ENVIRONMENT,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": flags.strip(),
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "ABSL_MIN_LOG_LEVEL": "3",
  }


def _refused(name: str, chip_name: str, why: str) -> TokzooError:
  """The error for a topology that there is not, with the nearest ones of its chip."""
  sizes = [int(number) for number in re.findall(r"\d+", name.partition(":")[2])]
  wanted = np.prod(sizes or [1])

  def distance(shape: str) -> float:
    size = np.prod([int(number) for number in shape.split("x")])
    return abs(np.log(size / max(wanted, 1)))

  near = sorted(CHIPS[chip_name].shapes, key=distance)[:3]
  return TokzooError(
    f"no topology {name!r}: {why}; near are "
    f"{', '.join(f'{chip_name}:{shape}' for shape in near)}."
  )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Drops what libraries write past Python about the devices that they do not find."""
  sys.stderr.flush()
  kept = os.dup(2)
  with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 2)
    try:
      yield
    finally:
      os.dup2(kept, 2)
      os.close(kept)
