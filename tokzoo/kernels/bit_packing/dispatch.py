"""Which program packs: by the machine that the computation is compiled for.

  op             CPU  TPU                            GPU
  pack           xla  tpu: floats, 128 bits or more  xla
  unpack         xla  tpu: to floats, likewise       xla
  packed_matmul  xla  xla                            gpu: on Hopper

Where it says xla, and for what a kernel is not made, the compiler's own fusion reads and
writes each array once, which is all there is to gain; on a GPU before Hopper the product goes
through XLA too. A kernel is one program for one device: where a compiler may share the work
out over several, XLA's form is taken, which it can divide.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal

import jax
from jaxtyping import Array

from tokzoo.errors import TokzooError, unknown
from tokzoo.kernels.dispatch import Unsupported, is_alone

Implementation = Literal["reference", "xla", "tpu", "gpu"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("reference", "xla", "tpu", "gpu")
_KERNELS = {("pack", "tpu"), ("unpack", "tpu"), ("packed_matmul", "gpu")}
_PLATFORMS = {"gpu": "cuda", "tpu": "tpu"}


def run(
  op: str, *arrays: Array, implementation: Implementation | None = None, **static: Any
) -> Array:
  """An op on arrays, with the arguments that it has in `reference`.

  Raises:
    TokzooError: no such implementation, none of this op, or it is not made for the input.
  """
  if implementation is not None:
    return _just(op, implementation)(*arrays, **static)
  by_xla = functools.partial(_load(op, "xla"), **static)
  backend = jax.default_backend()
  if (op, backend) not in _KERNELS or not is_alone():
    return by_xla(*arrays)
  by_kernel = functools.partial(_load(op, backend), **static)
  programs = {_PLATFORMS[backend]: by_kernel}
  try:
    return jax.lax.platform_dependent(*arrays, default=by_xla, **programs)
  except Unsupported:  # by the table above
    return by_xla(*arrays)


def _just(op: str, implementation: Implementation) -> Callable[..., Array]:
  """The program that was asked for by name."""
  if implementation not in IMPLEMENTATIONS:
    raise unknown("implementation of bit packing", implementation, IMPLEMENTATIONS)
  if implementation in _PLATFORMS and (op, implementation) not in _KERNELS:
    raise TokzooError(
      f"there is no {implementation} kernel of {op}, XLA does it as well: use 'xla'."
    )

  def program(*arrays: Array, **static: Any) -> Array:
    try:
      return _load(op, implementation)(*arrays, **static)
    except Unsupported as error:
      raise TokzooError(str(error)) from error

  return program


def _load(op: str, implementation: str) -> Callable[..., Array]:
  # Pallas is slow to import, so only when it is used.
  return getattr(importlib.import_module(f"{__package__}.{implementation}"), op)
