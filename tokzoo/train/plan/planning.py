"""`plan`: will this recipe fit that machine, how long will it take, what will it cost?"""

import dataclasses
from typing import Any

from tokzoo.errors import TokzooError
from tokzoo.machines import Topology, parse
from tokzoo.train.plan.compiling import Facts, compile_all
from tokzoo.train.plan.programs import What
from tokzoo.train.plan.roofline import TYPICAL, Assumptions, roofline
from tokzoo.train.recipe import Recipe

_DAY = 86_400.0
_HOUR = 3_600.0


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a program of a recipe needs of a machine; None where the program was not compiled,
  because it does not fit.

  system, recipe, what, topology, mesh, batch_size:  what was planned
  num_chips, num_hosts:       of the machine
  fits:                       `bytes_per_device` are no more than `usable_bytes`
  bytes_per_device:           memory of a chip: arguments, outputs that do not take their
                              place, temporaries and code
  memory:                     the same by its parts
  usable_bytes:               what a program can have of a chip's memory
  num_params:                 of the model
  flops_per_device:           of one step (or one call), recomputed ones too
  flops_per_step:             of all chips
  flops_per_example:          of all chips
  hbm_bytes_per_step:         that a chip reads and writes
  collectives:                by kind and wire: count, bytes sent, bytes that cross slices or
                              nodes, of a chip in a step
  collective_bytes_per_step:  that a chip sends
  compiler_seconds:           of a step, where the compiler has an estimate that counts loops
  roofline:                   seconds by each bound
  bound:                      the longest of them
  step_seconds_estimate:      which is the estimate
  examples_per_second:        of the machine
  utilisation:                FLOPs over what the chips could do in that time, recomputed ones
                              too: without rematerialisation it is the MFU
  host_bytes_per_second:      that every host has to feed
  days, chip_hours, cost:     to the recipe's last step; of training only
  compile_seconds:            that compiling took here
  assumptions:                of the roofline
  notes:                      what is to be known beside the numbers
  """

  system: str
  recipe: str
  what: str
  topology: str
  mesh: dict[str, int]
  batch_size: int
  num_chips: int
  num_hosts: int
  fits: bool
  bytes_per_device: int
  memory: dict[str, int] | None
  usable_bytes: int
  num_params: int
  flops_per_device: float | None
  flops_per_step: float | None
  flops_per_example: float | None
  hbm_bytes_per_step: float | None
  collectives: tuple[dict[str, Any], ...] | None
  collective_bytes_per_step: float | None
  compiler_seconds: float | None
  roofline: dict[str, float] | None
  bound: str | None
  step_seconds_estimate: float | None
  examples_per_second: float | None
  utilisation: float | None
  host_bytes_per_second: float | None
  days: float | None
  chip_hours: float | None
  cost: float | None
  compile_seconds: float
  assumptions: dict[str, float]
  notes: tuple[str, ...]

  @property
  def summary(self) -> str:
    """One sentence."""
    has = f"{self.usable_bytes / 2**30:.3g} GiB"
    takes = f"{self.bytes_per_device / 2**30:.3g} GiB of the {has} of a chip"
    if not self.fits or self.step_seconds_estimate is None:
      return (
        f"{self.recipe} does not fit {self.topology}: it takes {takes}; use more chips, "
        "fsdp, a smaller batch, accumulate, or remat."
      )
    return (
      f"{self.recipe} fits {self.topology}: it takes {takes}, and about "
      f"{self.step_seconds_estimate:.3g} s a step (bound by {self.bound})."
    )


def plan(
  recipe: Recipe,
  topology: str,
  what: What = "train",
  *,
  price_per_chip_hour: float | None = None,
  assumed: Assumptions = TYPICAL,
) -> Plan:
  """Compiles a program of a recipe for a machine that need not be here.

  Args:
    recipe: with the mesh that is planned.
    topology: see `tokzoo.machines.topologies`.
    what: the train step, or the model's encode, decode or sample on a batch.
    price_per_chip_hour: in any currency.
    assumed: of the time estimate.

  Raises:
    TokzooError: no such topology, no compiler for it, or a recipe that cannot be laid out.
  """
  machine = parse(topology)
  (found,) = compile_all([(recipe, what)], machine)
  if isinstance(found, TokzooError):
    raise found
  return conclude(recipe, what, machine, found, price_per_chip_hour, assumed)


def conclude(
  recipe: Recipe,
  what: What,
  machine: Topology,
  facts: Facts,
  price_per_chip_hour: float | None,
  assumed: Assumptions,
) -> Plan:
  """The plan that follows from what the compiler says."""
  chip = machine.chip
  parts = facts.get("memory")
  memory = None if parts is None else memory_parts(parts)
  needed = int(facts["too_large"] if memory is None else sum(memory.values()))
  planned: dict[str, Any] = dict.fromkeys(
    field.name for field in dataclasses.fields(Plan)
  )
  planned |= {
    "system": recipe.system,
    "recipe": recipe.name,
    "what": what,
    "topology": str(machine),
    "mesh": facts["mesh"],
    "batch_size": recipe.batch_size,
    "num_chips": machine.num_chips,
    "num_hosts": machine.num_hosts,
    "fits": memory is not None and needed <= chip.usable_bytes,
    "bytes_per_device": needed,
    "memory": memory,
    "usable_bytes": chip.usable_bytes,
    "num_params": facts["num_params"],
    "compile_seconds": facts["compile_seconds"],
    "assumptions": dataclasses.asdict(assumed),
    "notes": _notes(machine, facts),
  }
  if memory is not None:
    planned |= _pace(recipe, machine, facts, assumed)
    if what == "train":
      planned |= _whole_run(
        recipe, machine, planned["step_seconds_estimate"], price_per_chip_hour
      )
  return Plan(**planned)


def memory_parts(told: dict[str, int]) -> dict[str, int]:
  """Memory of a chip by what lies in it; donated arguments become outputs in place."""
  return {
    "arguments": told["arguments"],
    "outputs": told["outputs"] - told["aliased"],
    "temporaries": told["temporaries"],
    "code": told["code"],
  }


def _pace(
  recipe: Recipe, machine: Topology, facts: Facts, assumed: Assumptions
) -> dict[str, Any]:
  """FLOPs, bytes and time of one step."""
  bounds = roofline(facts, machine.chip, assumed)
  flops, seconds = facts["flops"] * machine.num_chips, bounds.seconds
  return {
    "flops_per_device": facts["flops"],
    "flops_per_step": flops,
    "flops_per_example": flops / recipe.batch_size,
    "hbm_bytes_per_step": facts["hbm_bytes"],
    "collectives": tuple(facts["collectives"]),
    "collective_bytes_per_step": sum(one["sent"] for one in facts["collectives"]),
    "compiler_seconds": facts["compiler_seconds"],
    "roofline": dataclasses.asdict(bounds),
    "bound": bounds.bound,
    "step_seconds_estimate": seconds,
    "examples_per_second": recipe.batch_size / seconds,
    "utilisation": facts["flops"] / (seconds * machine.chip.flops),
    "host_bytes_per_second": facts["batch_bytes"] / machine.num_hosts / seconds,
  }


def _whole_run(
  recipe: Recipe, machine: Topology, seconds: float, price: float | None
) -> dict[str, float | None]:
  total = seconds * recipe.steps
  chip_hours = total * machine.num_chips / _HOUR
  return {
    "days": total / _DAY,
    "chip_hours": chip_hours,
    "cost": None if price is None else chip_hours * price,
  }


def _notes(machine: Topology, facts: Facts) -> tuple[str, ...]:
  notes = []
  if "too_large" in facts:
    notes.append("The compiler gave up: the program does not fit the chip's memory.")
  if facts.get("unknown_loops"):
    notes.append(
      f"{facts['unknown_loops']} loops run until something happens: their bodies are "
      "counted once."
    )
  if facts.get("unknown_kernels"):
    notes.append(
      f"The kernels {', '.join(facts['unknown_kernels'])} do not say what they cost: they "
      "are counted as free."
    )
  if machine.chip.platform == "cuda":
    notes.append(
      "jax takes three quarters of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION "
      "says otherwise."
    )
  if machine.chip.platform == "cpu":
    notes.append("The rates of a CPU are nominal: its times stand for nothing.")
  return tuple(notes)
