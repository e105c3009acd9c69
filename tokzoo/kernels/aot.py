"""Compiles a function for a machine that is not here.

The compilers come as wheels and need no device: libtpu has the TPU's, the CUDA plugin of jax
the GPU's. `pip install "tokzoo[aot]"` brings both, best into an environment of its own: a
process that finds the CUDA plugin but no driver says so at length.

  report = compile_for(jnp.dot, (a, b), "v6e")   # a and b: arrays or ShapeDtypeStructs
  report.temp_bytes
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jaxtyping import PyTree

from tokzoo.errors import TokzooError, missing_extra, unknown

# What XLA asks of a GPU that it cannot see (xla's GpuTargetConfigProto): an H100 SXM.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84978434048
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of accelerator.

  platform:  of jax, "tpu" or "cuda"
  package:   what must be importable to compile for it
  smallest:  its smallest topology
  """

  platform: str
  package: str
  smallest: str


CHIPS = {
  "v4": Chip("tpu", "libtpu", "2x2x1"),
  "v5e": Chip("tpu", "libtpu", "2x2"),
  "v5p": Chip("tpu", "libtpu", "2x2x1"),
  "v6e": Chip("tpu", "libtpu", "2x2"),
  "h100": Chip("cuda", "jax_plugins.xla_cuda12", "1x1x1"),
}


@dataclasses.dataclass(frozen=True)
class Report:
  """What a compiler says of a program, per device.

  target:           as it was asked for
  argument_bytes:   of the inputs
  output_bytes:     of the outputs
  temp_bytes:       of everything in between, in the device's main memory
  flops:            floating-point operations; None where the compiler does not count them.
                    Inside a kernel they are not counted
  bytes_accessed:   of main memory; None likewise
  seconds:          that compiling took
  """

  target: str
  argument_bytes: int
  output_bytes: int
  temp_bytes: int
  flops: float | None
  bytes_accessed: float | None
  seconds: float


def compile_for(fn: Callable[..., Any], args: Sequence[PyTree], target: str) -> Report:
  """Compiles `fn(*args)` for one device of a machine that need not be here.

  Args:
    fn: a function that can be jitted, or one that is jitted already.
    args: arrays or `jax.ShapeDtypeStruct`s.
    target: see `devices`.

  Raises:
    TokzooError: see `devices`.
    Exception: whatever the compiler has against the program.
  """
  start = time.perf_counter()
  place = jax.sharding.SingleDeviceSharding(devices(target)[0])
  there = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tuple(args)
  )
  with warnings.catch_warnings():
    # A cache on disk keeps such programs, but nobody can load them without the machine.
    warnings.filterwarnings("ignore", "Error .* persistent compilation cache")
    compiled = jax.jit(fn).lower(*there).compile()
  memory = compiled.memory_analysis()
  assert memory is not None
  cost = compiled.cost_analysis() or {}
  return Report(
    target=target,
    argument_bytes=memory.argument_size_in_bytes,
    output_bytes=memory.output_size_in_bytes,
    temp_bytes=memory.temp_size_in_bytes,
    flops=_counted(cost, "flops"),
    bytes_accessed=_counted(cost, "bytes accessed"),
    seconds=time.perf_counter() - start,
  )


def _counted(cost: Mapping[str, float], name: str) -> float | None:
  """A cost that the compiler gave; it writes -1 where it has none."""
  value = cost.get(name, -1.0)
  return None if value < 0 else value


@functools.cache
def devices(target: str) -> Sequence[Any]:
  """The `jax.Device`s of a machine, to compile on (nothing runs on them).

  Args:
    target: a chip of `CHIPS`, or a chip and a topology: "v6e", "v5e:16x16", "h100:1x1x8".

  Raises:
    TokzooError: no such chip or topology, or its compiler is not installed.
  """
  name, _, topology = target.partition(":")
  if name not in CHIPS:
    raise unknown("chip", name, CHIPS)
  chip = CHIPS[name]
  if not is_installed(target):
    raise missing_extra(chip.package, "aot", f"compiling for {target}")
  topology = topology or chip.smallest
  try:
    with _quiet():
      if chip.platform == "tpu":
        # There is no metadata server to ask, and several processes may compile.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        found = topologies.get_topology_desc(f"{name}:{topology}", "tpu")
      else:
        found = topologies.get_topology_desc(
          name, chip.platform, target_config=_H100, topology=topology
        )
  except (RuntimeError, ValueError) as error:
    raise TokzooError(
      f"no topology {topology!r} of {name}: one is written {chip.smallest!r}, and the "
      f"compiler says {str(error).splitlines()[0]!r}."
    ) from error
  return found.devices


def is_installed(target: str) -> bool:
  """Whether the compiler for a target of `devices` is here."""
  package = CHIPS[target.partition(":")[0]].package
  try:
    return importlib.util.find_spec(package) is not None
  except ModuleNotFoundError:
    return False


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
