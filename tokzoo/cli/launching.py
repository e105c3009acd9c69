"""`tokzoo launch`: the same training command, on a machine that a scheduler gives."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from tokzoo.cli.console import emit, note, read_arguments
from tokzoo.cli.experiments import find_recipe, load_experiment
from tokzoo.cli.training import refuse_misspelt
from tokzoo.errors import TokzooError
from tokzoo.launch import (
  Job,
  Local,
  QueuedResource,
  Scheduler,
  SkyPilot,
  Slurm,
  Xpk,
  submit,
)
from tokzoo.machines import Topology, is_installed, parse
from tokzoo.train import Recipe
from tokzoo.train.mesh import mesh_sizes
from tokzoo.train.plan import plan


@dataclasses.dataclass(frozen=True)
class Launch:
  """Trains a recipe on another machine, or on several processes of this one.

  Renders the job's files and the command that submits them, and runs it; --dry-run only
  prints them. A recipe that does not fit the machine is refused, as `tokzoo plan` says.
  Any field of the recipe is an option too, as for tokzoo train: --steps 100 --mesh.fsdp 8.
  """

  experiment: tyro.conf.Positional[str]
  """A system (instella-t2i) or a file (experiments/image/instella_t2i.py)."""
  on: Literal["slurm", "skypilot", "xpk", "queued-resource", "local"] = "local"
  """What runs it."""
  recipe: str = "nano"
  """Name of the recipe; tokzoo list shows them."""
  topology: str = "cpu:2"
  """A machine: v5e:16x16, 2xv5p:4x4x8 (two slices), h100:8x4 (GPUs of a node x nodes)."""
  processes: int | None = None
  """How many share the devices of cpu:N; elsewhere each host runs one."""
  out: str | None = None
  """Run directory, on storage that all hosts share; runs/SYSTEM-RECIPE by default."""
  name: str | None = None
  """Of the job; SYSTEM-RECIPE by default."""
  folder: Path | None = None
  """Where the job's files go; launch/NAME by default."""
  setup: str | None = None
  """Shell command that every host runs first. By default machines that are rented install
  the working directory, and those of Slurm and local are taken as they are."""
  restarts: int = 3
  """How often the run is started again after a process was lost."""
  dry_run: bool = False
  """Print files and commands, and do nothing."""
  force: bool = False
  """Do not ask whether the recipe fits."""
  json: bool = False
  """With --dry-run: print them as JSON."""
  slurm: Slurm = dataclasses.field(default_factory=Slurm)
  skypilot: SkyPilot = dataclasses.field(default_factory=SkyPilot)
  xpk: Xpk = dataclasses.field(default_factory=Xpk)
  queued_resource: QueuedResource = dataclasses.field(default_factory=QueuedResource)
  local: Local = dataclasses.field(default_factory=Local)


def run_launch(arguments: Sequence[str]) -> int:
  wants_help = "--help" in arguments or "-h" in arguments
  first = [word for word in arguments if word not in ("--help", "-h")]
  if wants_help and not first:
    read_arguments(Launch, "tokzoo launch", ["--help"])
  what, rest = read_arguments(Launch, "tokzoo launch", first, return_unknown_args=True)
  named = find_recipe(load_experiment(what.experiment), what.recipe)
  refuse_misspelt(rest, Launch)
  recipe = read_arguments(
    Recipe,
    f"tokzoo launch {what.experiment} --recipe {what.recipe}",
    ["--help"] if wants_help else rest,
    description=f"The fields of the recipe {what.recipe}.",
    default=named,
  )
  topology = parse(what.topology)
  mesh_sizes(recipe.mesh, topology.num_chips)
  job = make_job(what, recipe, rest, topology)
  scheduler: Scheduler = getattr(what, what.on.replace("-", "_"))
  rendered = scheduler.render(job)
  # What runs here says at once whether it fits.
  if not what.force and what.on != "local":
    _require_fit(recipe, what.topology)
  if what.dry_run:
    told = {
      "files": {str(path): text for path, text in rendered.files.items()},
      "commands": rendered.commands,
    }
    emit(told, what.json, lambda _: print(rendered.show()))
    return 0
  if isinstance(scheduler, Local):
    return scheduler.run(job)
  return submit(rendered)


def make_job(
  what: Launch, recipe: Recipe, overrides: Sequence[str], topology: Topology
) -> Job:
  """The job of a recipe on a machine.

  Args:
    what: the options.
    recipe: with its overrides.
    overrides: the same as they were typed.
    topology: the machine.

  Raises:
    TokzooError: a name or a number of processes that cannot be.
  """
  name = what.name or re.sub(r"[^a-z0-9]+", "-", f"{recipe.system}-{recipe.name}")[:40]
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
    raise TokzooError(
      f"--name {name!r} is no name of a job: use at most 40 lower-case letters, digits and "
      "hyphens, with a letter first."
    )
  hosts = topology.num_hosts
  processes = hosts if what.processes is None else what.processes
  if topology.chip.platform != "cpu" and processes != hosts:
    raise TokzooError(
      f"--processes {processes} on {topology}: each of its {hosts} hosts runs one process; "
      "leave the option out."
    )
  if processes < 1 or topology.num_chips % processes:
    raise TokzooError(
      f"--processes {processes} cannot share {topology.num_chips} devices evenly: choose a "
      "divisor."
    )
  rented = what.on not in ("slurm", "local")
  extra = "tpu" if topology.chip.platform == "tpu" else "cuda12"
  setup = f"pip install --quiet -e '.[{extra}]'" if rented else ""
  folder = what.folder or Path("launch") / name
  out = what.out or f"runs/{recipe.system}-{recipe.name}"
  words = ("tokzoo", "train", what.experiment, "--recipe", what.recipe, "--out", out)
  return Job(
    name=name,
    words=(*words, *overrides),
    topology=topology,
    processes=processes,
    folder=folder,
    setup=setup if what.setup is None else what.setup,
    restarts=what.restarts,
  )


def _require_fit(recipe: Recipe, topology: str) -> None:
  """Raises `TokzooError` where the compiler of a machine says that a recipe does not fit,
  or where it is not installed."""
  if not is_installed(topology):
    raise TokzooError(
      f"whether {recipe.name} fits {topology} is seen by compiling it, and the compiler is "
      'not installed: run  pip install "tokzoo[plan]", or pass --force.'
    )
  note(f"compiling {recipe.name} for {topology}, to see whether it fits ...")
  found = plan(recipe, topology)
  if not found.fits:
    raise TokzooError(f"{found.summary.rstrip('.')}; --force launches it all the same.")
  note(found.summary)
