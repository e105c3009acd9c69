"""Compiles a function for one device of a machine that is not here.

report = compile_for(jnp.dot, (a, b), "v6e")   # a and b: arrays or ShapeDtypeStructs
report.temp_bytes
"""

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from tokzoo.machines.topologies import devices


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
    target: a topology of `tokzoo.machines`.

  Raises:
    TokzooError: see `tokzoo.machines.topologies.devices`.
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
