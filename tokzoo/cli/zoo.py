"""`tokzoo list` and `tokzoo show`: what there is."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from tokzoo.cli.console import emit, facts, parse, shown
from tokzoo.cli.experiments import find_recipe, load_experiment
from tokzoo.errors import unknown
from tokzoo.hub import catalog, find_entry, load
from tokzoo.systems import SYSTEMS, find_preset, resolve
from tokzoo.train import to_json

_COUNTS = ("recipes", "weights")


def run_list(arguments: Sequence[str]) -> None:
  parse(list_systems, "list", arguments)


def run_show(arguments: Sequence[str]) -> None:
  parse(show, "show", arguments)


def list_systems(json: bool = False) -> None:
  """The systems of the zoo, their recipes and checkpoints.

  Args:
    json: print JSON instead of a table.
  """
  systems = [describe(slug) for slug in SYSTEMS]

  def render(console: Console) -> None:
    # One line a system, whatever the width: the names are in `tokzoo show`.
    grid = Table(title="The zoo", title_justify="left", box=box.SIMPLE, pad_edge=False)
    for name in ("system", "of", "recipes", "weights", "what"):
      grid.add_column(
        name, justify="right" if name in _COUNTS else "left", no_wrap=True
      )
    room = max(console.width - max(map(len, SYSTEMS)) - 32, 20)
    for s in systems:
      counts = (str(len(s["recipes"])), str(len(s["checkpoints"])))
      name, _, what = s["title"].partition(": ")  # the name stands in front already
      what = what or name
      what = what if len(what) <= room else f"{what[: room - 1].rstrip()}…"
      grid.add_row(s["slug"], s["modality"], *counts, what)
    console.print(grid)
    console.print(
      "tokzoo show SYSTEM lists its recipes and checkpoints; tokzoo show NAME says more of a "
      "checkpoint, or of a recipe as SYSTEM/RECIPE."
    )

  emit(systems, json, render)


def describe(slug: str) -> dict[str, Any]:
  """One system as `tokzoo list --json` prints it."""
  system = SYSTEMS[slug]
  return {
    "slug": slug,
    "title": system.title,
    "kind": system.kind,
    "modality": system.modality,
    "paper": f"arXiv {system.paper}",
    "recipes": list(load_experiment(slug).RECIPES),
    "checkpoints": [e.name for e in catalog().values() if e.system == slug],
  }


def show(name: Annotated[str, tyro.conf.Positional], /, json: bool = False) -> None:
  """A system, a checkpoint, a published config, or a recipe as SYSTEM/RECIPE.

  Args:
    name: instella-t2i, instella-photos-nano, instella-bae-1024, instella-t2i/nano, ...
    json: print JSON instead of tables.
  """
  slug, _, recipe = name.partition("/")
  if recipe:
    told = to_json(find_recipe(load_experiment(slug), recipe))
    emit(told, json, lambda console: console.print_json(data=told))
  elif name in SYSTEMS:
    told = describe(name) | {
      "parts": {
        part: {"kind": p.kind, "presets": list(resolve(p.presets))}
        for part, p in SYSTEMS[name].parts.items()
      }
    }
    emit(told, json, lambda console: console.print(facts(name, told)))
  elif name in catalog():
    _show_checkpoint(name, json)
  elif name in _presets():
    slug, part, config = find_preset(name)
    told = {"system": slug, "part": part, **dataclasses.asdict(config)}
    emit(told, json, lambda console: console.print(facts(name, told)))
  else:
    raise unknown("name", name, [*SYSTEMS, *catalog(), *_presets()])


def _show_checkpoint(name: str, json: bool) -> None:
  entry = find_entry(name)
  told = {k: v for k, v in dataclasses.asdict(entry).items() if v not in (None, {})}
  if entry.packaged:
    model = load(name)
    told["parameters"] = model.num_parameters
    told["config"] = dataclasses.asdict(model.config)
  emit(
    told,
    json,
    lambda console: console.print(facts(name, {k: shown(v) for k, v in told.items()})),
  )


def _presets() -> list[str]:
  parts = [part for system in SYSTEMS.values() for part in system.parts.values()]
  return [name for part in parts for name in resolve(part.presets)]
