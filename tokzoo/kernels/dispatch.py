"""Whether a kernel may run here, and what it says of a machine it is not made for."""

from typing import Any

import jax
from jax.sharding import AxisType

_HOPPER = ("H100", "H200", "H800", "H20", "GH200")


class Unsupported(NotImplementedError):
  """This kernel cannot do it, another implementation can. One sentence with the reason."""


def is_alone() -> bool:
  """Whether this computation is sure to be one device's: nothing is left to divide.

  A kernel is one program for one device, which no compiler divides; jax refuses one that
  would have to be.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.axis_names:
    return all(
      kind == AxisType.Manual or mesh.shape[axis] == 1
      for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    )
  return jax.device_count() == 1


def require_hopper(what: str) -> None:
  """Refuses the GPU that is here, or the one of the mesh that is compiled for.

  Raises:
    Unsupported: its compute capability is not 9.0, so it has no `wgmma`.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None and device.platform in ("gpu", "cuda"):
    # Of a GPU that is not here only the name is known.
    if not any(name in device.device_kind for name in _HOPPER):
      raise Unsupported(
        f"the {what} kernel needs a Hopper GPU, not {device.device_kind}: use another "
        "implementation."
      )
    return
  if jax.default_backend() != "gpu":
    return
  capability = str(jax.local_devices()[0].compute_capability)
  if capability != "9.0":
    raise Unsupported(
      f"the {what} kernel needs a Hopper GPU (compute capability 9.0), this one has "
      f"{capability}: use another implementation."
    )


def interpreter() -> Any:
  """What to pass as `interpret` to run a Mosaic GPU kernel's program on the CPU."""
  # jax has no public name for it yet.
  from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

  return InterpretGPUParams()
