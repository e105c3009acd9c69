"""Which program packs: by the machine that the computation is compiled for.

  op                 CPU    TPU                            GPU
  pack               xla    tpu: floats, 128 bits or more  xla
  unpack             xla    tpu: to floats, likewise       xla
  packed_matmul      xla    xla                            xla

Where it says xla, the compiler's own fusion reads and writes each array once, which is all
there is to gain. A kernel is one program for one device: where a compiler may share the
work out over several, XLA's form is taken, which it can divide.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.sharding import AxisType

from tokzoo.errors import TokzooError, unknown
from tokzoo.kernels.dispatch import Unsupported

Implementation = Literal["reference", "xla", "tpu", "gpu"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("reference", "xla", "tpu", "gpu")
_KERNELS = {("pack", "tpu"), ("unpack", "tpu")}


def program(
  op: str, implementation: Implementation | None = None
) -> Callable[..., Any]:
  """The function of an op, with the signature that it has in `reference`.

  Raises:
    TokzooError: no such implementation, or none of this op.
  """
  if implementation is not None:
    if implementation not in IMPLEMENTATIONS:
      raise unknown("implementation of bit packing", implementation, IMPLEMENTATIONS)
    if implementation in ("tpu", "gpu") and (op, implementation) not in _KERNELS:
      raise TokzooError(
        f"there is no {implementation} kernel of {op}, XLA does it as well: use 'xla'."
      )
    return _load(op, implementation)
  backend = jax.default_backend()
  if (op, backend) in _KERNELS and _is_alone():
    return functools.partial(_kernel_or_xla, op, backend)
  return _load(op, "xla")


def _kernel_or_xla(op: str, backend: str, *args: Any) -> Any:
  try:
    return _load(op, backend)(*args)
  except Unsupported:  # by the table above
    return _load(op, "xla")(*args)


def _load(op: str, implementation: str) -> Callable[..., Any]:
  # Pallas is slow to import, so only when it is used.
  return getattr(importlib.import_module(f"{__package__}.{implementation}"), op)


def _is_alone() -> bool:
  """Whether this computation is sure to be one device's: nothing is left to divide."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.axis_names:
    return all(kind == AxisType.Manual for kind in mesh.axis_types)
  return jax.device_count() == 1
