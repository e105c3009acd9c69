"""Which program searches: by the machine that the computation is compiled for."""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from tokzoo.errors import TokzooError, unknown
from tokzoo.kernels.codebook_search import sharded, xla
from tokzoo.kernels.dispatch import Unsupported, is_alone

Implementation = Literal["reference", "xla", "tpu", "gpu"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("reference", "xla", "tpu", "gpu")
"""Each a module, imported when it is used: Pallas is slow to import."""


def search(
  x: Float[Array, "H N D"],
  codebook: Float[Array, "H K D"],
  bias: Float[Array, "H K"],
  top_k: int,
  implementation: Implementation | None = None,
) -> tuple[Int[Array, "H N T"], Float[Array, "H N T"]]:
  """See `reference.search`; under `vmap` the mapped axis joins the heads."""
  if implementation is not None and implementation not in IMPLEMENTATIONS:
    raise unknown("implementation of codebook search", implementation, IMPLEMENTATIONS)
  return _mappable(top_k, implementation)(x, codebook, bias)


def program(implementation: Implementation) -> Callable[..., tuple[Array, Array]]:
  """The search function of an implementation, with the signature of `reference.search`."""
  return importlib.import_module(f"{__package__}.{implementation}").search


@functools.cache
def _mappable(top_k: int, implementation: Implementation | None):
  @custom_vmap
  def run(x, codebook, bias):
    local = _for_machine
    if implementation is not None:
      local = functools.partial(_just, implementation=implementation)
    return sharded.over_mesh(local, x, codebook, bias, top_k)

  @run.def_vmap
  def _(size, is_mapped, x, codebook, bias):
    arrays = [
      array if mapped else jnp.broadcast_to(array, (size, *array.shape))
      for array, mapped in zip((x, codebook, bias), is_mapped, strict=True)
    ]
    found = run(*(array.reshape(-1, *array.shape[2:]) for array in arrays))
    return tuple(part.reshape(size, -1, *part.shape[1:]) for part in found), (
      True,
      True,
    )

  return run


def _just(
  x: Array, codebook: Array, bias: Array, *, top_k: int, implementation: Implementation
) -> tuple[Array, Array]:
  """The program that was asked for by name."""
  try:
    return program(implementation)(x, codebook, bias, top_k=top_k)
  except Unsupported as error:
    raise TokzooError(str(error)) from error


def _for_machine(
  x: Array, codebook: Array, bias: Array, *, top_k: int
) -> tuple[Array, Array]:
  """The program of the platform that this is lowered for."""
  platforms = {jax.default_backend()}
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None and device.platform is not None:
    platforms.add(device.platform)
  on_cpu = functools.partial(xla.search, top_k=top_k)
  # Where nothing else is in sight, the other kernels need not even be traced.
  programs = {}
  if "tpu" in platforms:
    programs["tpu"] = _or_xla("tpu", top_k)
  if platforms & {"gpu", "cuda"}:
    programs["cuda"] = _or_xla("gpu", top_k)
  if not programs:
    return on_cpu(x, codebook, bias)
  return jax.lax.platform_dependent(x, codebook, bias, default=on_cpu, **programs)


def _or_xla(implementation: Implementation, top_k: int) -> Callable[..., Any]:
  """A kernel, or XLA where the kernel is not made for the shape or the chip."""
  by_xla = functools.partial(xla.search_in_large_blocks, top_k=top_k)
  if not is_alone():
    return (
      by_xla  # several devices and no mesh to split over: XLA divides its own program
    )

  def search(x: Array, codebook: Array, bias: Array) -> tuple[Array, Array]:
    try:
      return program(implementation)(x, codebook, bias, top_k=top_k)
    except Unsupported as error:
      _say_once(str(error))
      return by_xla(x, codebook, bias)

  return search


@functools.cache
def _say_once(reason: str) -> None:
  warnings.warn(f"codebook search goes through XLA: {reason}", stacklevel=2)
