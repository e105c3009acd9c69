"""How clouds call the machines that `tokzoo.machines` knows."""

import math

from tokzoo.launch.job import Job

RUNTIMES = {
  "v4": "tpu-ubuntu2204-base",
  "v5e": "v2-alpha-tpuv5-lite",
  "v5p": "v2-alpha-tpuv5",
  "v6e": "v2-alpha-tpuv6e",
}
"""TPU -> software of its virtual machines (cloud.google.com/tpu/docs/runtimes)."""

# v4 and v5p are counted by cores, of which a chip has two.
_TYPES = {
  "v4": ("v4", 2),
  "v5e": ("v5litepod", 1),
  "v5p": ("v5p", 2),
  "v6e": ("v6e", 1),
}

GPUS = {"a100-80": "A100-80GB", "h100": "H100", "h200": "H200", "b200": "B200"}
"""GPU -> its name in SkyPilot."""


def accelerator_type(job: Job, scheduler: str) -> str:
  """A slice as Google Cloud calls it: v5litepod-256.

  Raises:
    TokzooError: not a TPU, or a shape that is not the usual one of its number of chips.
  """
  topology = job.topology
  if topology.chip.platform != "tpu":
    raise job.refuse(scheduler, "it runs TPUs; use slurm or skypilot for GPUs")
  chips = math.prod(topology.shape)
  usual = {
    math.prod(map(int, shape.split("x"))): shape for shape in topology.chip.shapes
  }
  if usual.get(chips) != "x".join(map(str, topology.shape)):
    near = min(usual, key=lambda size: abs(math.log(size / chips)))
    raise job.refuse(
      scheduler,
      "a slice is rented by its number of chips, in the usual shape; near is "
      f"{topology.chip_name}:{usual[near]}",
    )
  family, cores = _TYPES[topology.chip_name]
  return f"{family}-{chips * cores}"
