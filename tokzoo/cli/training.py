"""`tokzoo train`."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from tokzoo.cli.console import emit, facts, read_arguments
from tokzoo.cli.experiments import find_recipe, load_experiment
from tokzoo.cli.tokenizing import remember_origin, with_tokens
from tokzoo.errors import TokzooError, unknown
from tokzoo.hub import load
from tokzoo.train import Recipe, Result, train
from tokzoo.train.hosts import Hosts, joined


@dataclasses.dataclass(frozen=True)
class Train:
  """Trains a recipe, or continues its run.

  Any field of the recipe is an option too: --steps 100 --model.width 256
  --optimizers.model.peak-lr 1e-4 --data.source folder:pictures. `--help` after --recipe
  lists them all.
  """

  experiment: tyro.conf.Positional[str]
  """A system (instella-t2i) or a file (experiments/image/instella_t2i.py)."""
  recipe: str = "nano"
  """Name of the recipe; tokzoo list shows them."""
  out: Path | None = None
  """Run directory; runs/SYSTEM-RECIPE by default. A run that is there is continued."""
  restart: bool = False
  """Begin anew where the directory already holds a run."""
  writers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
  """Further places for numbers and pictures."""
  distributed: bool = False
  """This process is one of several; jax finds the others (see tpu/README.md)."""
  hosts: Hosts = dataclasses.field(default_factory=Hosts)
  """Where --distributed finds them, on machines that do not say so themselves."""
  json: bool = False
  """Print the result as JSON."""


def run_train(arguments: Sequence[str]) -> int:
  wants_help = "--help" in arguments or "-h" in arguments
  # Two readings of one line: what to train, then the fields of that very recipe.
  first = [word for word in arguments if word not in ("--help", "-h")]
  if wants_help and not first:
    read_arguments(Train, "tokzoo train", ["--help"])
  what, rest = read_arguments(Train, "tokzoo train", first, return_unknown_args=True)
  if what.distributed and not wants_help:
    with joined(what.hosts):
      return _train(what, rest, wants_help)
  return _train(what, rest, wants_help)


def _train(what: Train, rest: Sequence[str], wants_help: bool) -> int:
  if what.out is not None and what.out.parts[:1] and what.out.parts[0].endswith(":"):
    raise TokzooError(
      f"--out {what.out} is remote, but a run is kept in a folder: name one on storage that all "
      "hosts mount, and export the run to where you like."
    )
  named = find_recipe(load_experiment(what.experiment), what.recipe)
  refuse_misspelt(rest, Train)
  recipe = read_arguments(
    Recipe,
    f"tokzoo train {what.experiment} --recipe {what.recipe}",
    ["--help"] if wants_help else rest,
    description=f"The fields of the recipe {what.recipe}.",
    default=named,
  )
  out = what.out or Path("runs") / f"{recipe.system}-{recipe.name}"
  result = run_recipe(recipe, out, restart=what.restart, writers=what.writers)
  told = {
    "out": str(result.out),
    "step": result.step,
    "stopped_by": result.stopped_by,
    "metrics": result.metrics,
    "evaluations": result.evaluations,
  }

  def render(console: Console) -> None:
    numbers = {
      f"{name} {metric}": value
      for name, metrics in result.evaluations.items()
      for metric, value in metrics.items()
    }
    console.print(facts(f"{recipe.system} {recipe.name}, step {result.step}", numbers))
    console.print(f"The run is in {result.out}; the same command continues it.")

  emit(told, what.json, render)
  return 0


def refuse_misspelt(words: Sequence[str], options: type) -> None:
  """A misspelt option of a command would be looked for among the recipe's fields.

  Args:
    words: what is left of the command line.
    options: the command's dataclass.

  Raises:
    TokzooError: one of the words is like an option of the command.
  """
  fields = {field.name for field in dataclasses.fields(Recipe)}
  ours = [
    "--" + field.name.replace("_", "-")
    for field in dataclasses.fields(options)
    if field.name != "experiment"
  ]
  for word in words:
    name = word.removeprefix("--").split("=")[0].replace("-", "_")
    if not word.startswith("--") or name.split(".")[0] in fields:
      continue
    if difflib.get_close_matches(word, ours, n=1, cutoff=0.8):
      raise unknown("option", word, ours)


def run_recipe(recipe: Recipe, out: Path, **settings: Any) -> Result:
  """Trains a recipe; one that names a tokenizer has its data encoded first."""
  if recipe.tokenizer is not None:
    tokenizer = load(recipe.tokenizer)
    recipe = with_tokens(recipe, tokenizer, out)
  if recipe.data.source.startswith("tokens:"):
    remember_origin(recipe.data, out, settings.get("restart", False))
  initial = None
  if recipe.init_from is not None and not Path(recipe.init_from).is_dir():
    initial = load(recipe.init_from).variables
  return train(recipe, out, initial=initial, **settings)
