"""Which program searches: by the machine that the computation is compiled for."""

import functools
import importlib
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from tokzoo.errors import unknown
from tokzoo.kernels.codebook_search import sharded

Implementation = Literal["reference", "xla", "tpu", "gpu"]
IMPLEMENTATIONS: dict[Implementation, str] = {
  "reference": "reference",
  "xla": "cpu",
  "tpu": "tpu",
  "gpu": "gpu",
}
"""Name -> module, imported when it is used: Pallas is slow to import."""


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
  name = f"{__package__}.{IMPLEMENTATIONS[implementation]}"
  return importlib.import_module(name).search


@functools.cache
def _mappable(top_k: int, implementation: Implementation | None):
  @custom_vmap
  def run(x, codebook, bias):
    local = program(implementation) if implementation else _for_machine
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


def _for_machine(
  x: Array, codebook: Array, bias: Array, *, top_k: int
) -> tuple[Array, Array]:
  """The program of the platform that this is lowered for."""
  search_on_cpu = functools.partial(program("xla"), top_k=top_k)
  platforms = {jax.default_backend()}
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None and device.platform is not None:
    platforms.add(device.platform)
  # Where nothing else is in sight, the other kernels need not even be traced.
  programs = {}
  if "tpu" in platforms:
    programs["tpu"] = functools.partial(program("tpu"), top_k=top_k)
  if platforms & {"gpu", "cuda"}:
    programs["cuda"] = functools.partial(program("gpu"), top_k=top_k)
  if not programs:
    return search_on_cpu(x, codebook, bias)
  return jax.lax.platform_dependent(
    x, codebook, bias, default=search_on_cpu, **programs
  )
