"""`tokzoo plan`: will a recipe fit a machine that is not here, how fast, at what cost?"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from tokzoo.cli.console import emit, facts, note, read_arguments, table
from tokzoo.cli.experiments import find_recipe, load_experiment
from tokzoo.cli.pods import write_table
from tokzoo.errors import TokzooError
from tokzoo.machines import CHIPS, parse
from tokzoo.train import MeshShape, Recipe
from tokzoo.train.mesh import AXES
from tokzoo.train.plan import Assumptions, Plan, plan, search
from tokzoo.train.plan.measuring import Measured, measure
from tokzoo.train.plan.programs import What
from tokzoo.train.plan.roofline import TYPICAL
from tokzoo.train.plan.search import Candidate, pareto

_TOPOLOGY = "v5e:16x16"


@dataclasses.dataclass(frozen=True)
class Planning:
  """Compiles a recipe for a machine that need not be here, and says what it needs.

  The program is the trainer's own step, the compiler the machine's own. Any field of the
  recipe is an option too, as for tokzoo train: --batch-size 512 --model.width 256.
  """

  experiment: tyro.conf.Positional[str] = ""
  """A system (instella-t2i) or a file (experiments/image/instella_t2i.py)."""
  recipe: str = "nano"
  """Name of the recipe; tokzoo list shows them."""
  topology: str = _TOPOLOGY
  """A machine: v5e:16x16, 2xv5p:4x4x8 (two slices), h100:8x4 (GPUs of a node x nodes)."""
  mesh: str = ""
  """Instead of the recipe's: data=32,fsdp=8."""
  set: tuple[str, ...] = ()
  """Fields of the recipe, as key=value: batch_size=512 model.width=256."""
  what: What = "train"
  """The train step, or inference with the model."""
  price_per_chip_hour: float | None = None
  """For the cost of the whole run, in any currency."""
  assumptions: Assumptions = TYPICAL
  """What part of the data sheet's rates a program attains."""
  search: bool = False
  """Try meshes, rematerialisation and micro-batches; the fastest that fits comes first."""
  most: int = 12
  """Candidates of a search."""
  measure: int = 0
  """Then run the program so many times on this machine, which must be the one that is planned,
  and print what was predicted beside what was measured."""
  list_topologies: bool = False
  """The chips and their common topologies."""
  write_table: Path | None = None
  """Plan every published recipe (or those of the system named) and write them into the table
  of this file (tpu/README.md)."""
  only_missing: bool = False
  """Leave rows of the table alone that are there."""
  json: bool = False
  """Print the plan as JSON."""


def run_plan(arguments: Sequence[str]) -> int:
  wants_help = "--help" in arguments or "-h" in arguments
  first = [word for word in arguments if word not in ("--help", "-h")]
  if wants_help and not first:
    read_arguments(Planning, "tokzoo plan", ["--help"])
  what, rest = read_arguments(Planning, "tokzoo plan", first, return_unknown_args=True)
  if what.list_topologies:
    return _list_topologies(what.json)
  if what.write_table is not None:
    return write_table(what.write_table, what.experiment, what.only_missing)
  if not what.experiment:
    raise TokzooError(
      "tokzoo plan needs an experiment: name a system (instella-t2i) or a file, or see "
      "tokzoo plan --help."
    )
  named = find_recipe(load_experiment(what.experiment), what.recipe)
  recipe = read_arguments(
    Recipe,
    f"tokzoo plan {what.experiment} --recipe {what.recipe}",
    ["--help"] if wants_help else [*_options(what.set), *rest],
    description=f"The fields of the recipe {what.recipe}.",
    default=named,
  )
  if what.mesh:
    recipe = dataclasses.replace(recipe, mesh=read_mesh(what.mesh))
  if what.search:
    return _search(recipe, what)
  made = plan(
    recipe,
    what.topology,
    what.what,
    price_per_chip_hour=what.price_per_chip_hour,
    assumed=what.assumptions,
  )
  if not what.measure:
    emit(made, what.json, lambda console: _render(console, made))
    return 0
  found = measure(recipe, what.what, parse(what.topology), made, what.measure)
  told = {"plan": made, "measured": found, "errors": errors(made, found)}

  def render(console: Console) -> None:
    _render(console, made)
    console.print(_compared(made, found))

  emit(told, what.json, render)
  return 0


def read_mesh(text: str) -> MeshShape:
  """The mesh of "data=32,fsdp=8"; an axis that is left out is 1, without data it takes what
  is left.

  Raises:
    TokzooError: no such axis, or no number.
  """
  sizes = {}
  for part in text.split(","):
    found = re.fullmatch(r"(\w+)=(-?\d+)", part.strip())
    if found is None or found[1] not in AXES:
      raise TokzooError(
        f"--mesh {text} is not a mesh: write it as data=32,fsdp=8, with the axes "
        f"{', '.join(AXES)}."
      )
    sizes[found[1]] = int(found[2])
  return MeshShape(**sizes)


def _options(pairs: Sequence[str]) -> list[str]:
  """["batch_size=512"] as the options ["--batch-size", "512"]."""
  words = []
  for pair in pairs:
    key, equals, value = pair.partition("=")
    if not equals or not key:
      raise TokzooError(f"--set {pair} lacks its value: write key=value.")
    words += ["--" + key.replace("_", "-"), value]
  return words


def _list_topologies(as_json: bool) -> int:
  known = {
    name: {
      "memory_gib": chip.hbm_bytes / 2**30,
      "bf16_tflops": chip.flops / 1e12,
      "hbm_gb_s": chip.hbm_rate / 1e9,
      "topologies": [f"{name}:{shape}" for shape in chip.shapes],
    }
    for name, chip in CHIPS.items()
  }

  def render(console: Console) -> None:
    rows = [
      (
        name,
        one["memory_gib"],
        one["bf16_tflops"],
        one["hbm_gb_s"],
        " ".join(one["topologies"]),
      )
      for name, one in known.items()
    ]
    columns = ("chip", "GiB", "bf16 TFLOP/s", "HBM GB/s", "common topologies")
    console.print(table("Machines", columns, rows))
    console.print(
      "TPUs: chips along each axis, any that the compiler takes; several slices as "
      "2xv5e:16x16. GPUs: GPUs of a node x nodes."
    )

  emit(known, as_json, render)
  return 0


def _render(console: Console, made: Plan) -> None:
  title = f"{made.system} {made.recipe}: {made.what} on {made.topology}"
  console.print(facts(title, _told(made)))
  if made.collectives:
    columns = ("collective", "over", "a step", "sent by a chip", "out of its slice")
    console.print(
      table(
        "Collectives",
        columns,
        [
          (
            one["kind"],
            one["over"],
            one["count"],
            _size(one["sent"]),
            _size(one["crossing"]),
          )
          for one in made.collectives
        ],
      )
    )
  if made.roofline is not None:
    parts = ", ".join(
      f"{made.assumptions[name]:.0%} of {name}" for name in made.roofline
    )
    console.print(
      f"The estimate assumes that a program attains {parts} rates of the data sheet, and that "
      "all of it overlaps: the longest binds. --assumptions.compute 0.5 changes it."
    )
  for sentence in made.notes:
    console.print(sentence)
  console.print(made.summary)


def _told(made: Plan) -> dict[str, Any]:
  mesh = " x ".join(f"{axis} {size}" for axis, size in made.mesh.items())
  told: dict[str, Any] = {
    "machine": f"{made.num_chips} chips, {made.num_hosts} hosts; mesh {mesh}",
    "parameters": f"{made.num_params / 1e6:.1f} M",
    "memory of a chip": (
      f"{_size(made.bytes_per_device)} of {_size(made.usable_bytes)}: "
      f"{'fits' if made.fits else 'DOES NOT FIT'}"
    ),
  }
  if made.memory is not None:
    told |= {f"  {name}": _size(size) for name, size in made.memory.items()}
  if made.step_seconds_estimate is None or made.roofline is None:
    return told
  told |= {
    "FLOPs of a step": f"{made.flops_per_step:.3g} ({made.flops_per_example:.3g} an example)",
    "HBM traffic of a chip": _size(made.hbm_bytes_per_step),
    "bounds": ", ".join(
      f"{name} {seconds:.3g} s" for name, seconds in made.roofline.items()
    ),
    "compiler's estimate": (
      "none" if made.compiler_seconds is None else f"{made.compiler_seconds:.3g} s"
    ),
    "step": f"about {made.step_seconds_estimate:.3g} s, bound by {made.bound}",
    "examples": f"{made.examples_per_second:,.0f} a second",
    "utilisation": f"{made.utilisation:.0%} of the peak",
    "every host feeds": f"{_size(made.host_bytes_per_second)}/s",
  }
  if made.days is not None:
    told["whole run"] = f"{made.days:.3g} days, {made.chip_hours:,.1f} chip-hours"
  if made.cost is not None:
    told["cost"] = f"{made.cost:,.0f}"
  return told


def errors(made: Plan, found: Measured) -> dict[str, float | None]:
  """Predicted over measured, less one: above 0 the plan promises too little speed, or takes
  the program for larger than it is."""
  predicted = made.step_seconds_estimate
  return {
    "step_seconds": None if predicted is None else predicted / found.step_seconds - 1,
    "bytes": made.bytes_per_device / (found.peak_bytes or found.program_bytes) - 1,
  }


def _compared(made: Plan, found: Measured) -> Any:
  wrong = errors(made, found)
  step, size = made.step_seconds_estimate, found.peak_bytes or found.program_bytes

  def percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.0%}"

  rows = [
    ("step, s", step, found.step_seconds, percent(wrong["step_seconds"])),
    (
      "memory of a chip",
      _size(made.bytes_per_device),
      _size(size),
      percent(wrong["bytes"]),
    ),
    ("examples a second", made.examples_per_second, found.examples_per_second, ""),
    ("utilisation", made.utilisation, found.utilisation, ""),
  ]
  title = f"{found.device}, jax {found.jax_version}: {found.steps} runs, five times"
  return table(title, ("", "predicted", "measured", "error"), rows)


def _search(recipe: Recipe, what: Planning) -> int:
  def say(done: Candidate) -> None:
    note(f"{_settings(done)}: {done.plan.summary if done.plan else done.reason}")

  found = search(
    recipe,
    what.topology,
    most=what.most,
    price_per_chip_hour=what.price_per_chip_hour,
    assumed=what.assumptions,
    on_plan=say,
  )
  best = pareto(found)
  told = [
    {
      "mesh": dataclasses.asdict(one.recipe.mesh),
      "remat": one.recipe.remat,
      "accumulate": one.recipe.accumulate,
      "pareto": is_best,
      "plan": one.plan,
      "reason": one.reason,
    }
    for one, is_best in zip(found, best, strict=True)
  ]

  def render(console: Console) -> None:
    rows = [
      (
        _settings(one),
        _size(one.plan.bytes_per_device) if one.plan else "",
        "yes" if one.plan and one.plan.fits else "no",
        one.plan.step_seconds_estimate if one.plan else None,
        one.plan.bound if one.plan else one.reason,
        "*" if is_best else "",
      )
      for one, is_best in zip(found, best, strict=True)
    ]
    columns = ("settings", "of a chip", "fits", "step, s", "bound", "Pareto")
    console.print(table(f"{recipe.name} on {what.topology}", columns, rows))

  emit(told, what.json, render)
  return 0


def _settings(one: Candidate) -> str:
  mesh, recipe = one.recipe.mesh, one.recipe
  rows = recipe.batch_size // (mesh.data * mesh.fsdp * recipe.accumulate)
  model = f",model={mesh.model}" if mesh.model > 1 else ""
  return (
    f"data={mesh.data},fsdp={mesh.fsdp}{model} remat {recipe.remat} "
    f"{rows} rows x {recipe.accumulate}"
  )


def _size(number: float | None) -> str:
  """Bytes as people read them."""
  if number is None:
    return ""
  for unit in ("B", "KiB", "MiB", "GiB"):
    if number < 1024:
      return f"{number:.3g} {unit}"
    number /= 1024
  return f"{number:.3g} TiB"
