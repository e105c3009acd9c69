"""The table of published recipes on pods, generated into tpu/README.md.

Every published recipe of every experiment is compiled for a GPU cluster and a TPU slice, which
takes minutes each; the table grows row by row, so that what is done is not lost.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokzoo.cli.console import note
from tokzoo.cli.experiments import load_experiment
from tokzoo.errors import TokzooError, missing_extra
from tokzoo.files import write_atomic
from tokzoo.machines import is_installed, parse
from tokzoo.systems import SYSTEMS
from tokzoo.train import Recipe
from tokzoo.train.plan import Plan, plan

BEGIN = "<!-- plans: begin; written by tokzoo plan --write-table tpu/README.md -->"
END = "<!-- plans: end -->"
PODS = (
  ("h100:8x4", "h100:8x2", "h100:8x1", "h100:4x1"),
  ("v5e:16x16", "v5e:8x8", "v5e:4x4", "v5e:2x2"),
)
"""Of each kind the first one whose chips share a recipe's batch evenly."""
HEAD = (
  "| recipe | machine | mesh | memory of a chip, GiB | step, s | bound | days | chip-hours |",
  "|---|---|---|---|---|---|---|---|",
)


def published(system: str = "") -> Iterator[Recipe]:
  """Every published recipe, or those of one system."""
  for slug in [system] if system else SYSTEMS:
    for make in load_experiment(slug).RECIPES.values():
      if _is_published(make()):
        yield make()


def _is_published(recipe: Recipe) -> bool:
  """Recipes of small checkpoints run on packaged data; published ones bring theirs."""
  source = recipe.data.source
  return source.startswith(
    ("arrayrecord:", "tokens:", "tfds:", "webdataset:", "audio:")
  )


def write_table(path: Path, system: str = "", only_missing: bool = False) -> int:
  """Plans the published recipes and writes the table between the two marks of a file.

  Rows of a recipe and machine that are planned anew are replaced, all others are kept. A
  recipe that a compiler refuses has a row that says so.

  Args:
    path: of the file.
    system: only the recipes of this one.
    only_missing: leave rows alone that are there, to go on with a table.

  Raises:
    TokzooError: the file lacks the marks, or a compiler is not installed.
  """
  text = path.read_text() if path.is_file() else ""
  if BEGIN not in text or END not in text:
    raise TokzooError(
      f"{path} has no place for the table: it needs the lines {BEGIN} and {END}."
    )
  before, rest = text.split(BEGIN)
  old, after = rest.split(END)
  lines = {_key(line): line for line in old.strip().splitlines()[2:]}
  for pods in PODS:
    if not is_installed(pods[0]):
      raise missing_extra(parse(pods[0]).chip.packages[0], "plan", "the table of plans")
    for recipe in published(system):
      topology = pod_of(recipe, pods)
      if (
        only_missing
        and _key(f"| {_name(recipe.system, recipe.name)} | `{topology}` |") in lines
      ):
        continue
      try:
        made = plan(recipe, topology)
        line = row(made)
        note(made.summary)
      except TokzooError as error:
        note(f"{recipe.name} on {topology}: {error}")
        line = (
          f"| {_name(recipe.system, recipe.name)} | `{topology}` | | refused: "
          f"{str(error).replace('|', '/')} | | | | |"
        )
      lines[_key(line)] = line
      table = "\n".join((*HEAD, *sorted(lines.values(), key=_key)))
      write_atomic(path, f"{before}{BEGIN}\n{table}\n{END}{after}".encode())
  return 0


def pod_of(recipe: Recipe, pods: Sequence[str]) -> str:
  """The first pod whose chips share the recipe's batch evenly; else the first, which refuses."""
  rows = recipe.batch_size // recipe.accumulate
  for topology in pods:
    if rows % parse(topology).num_chips == 0:
      return topology
  return pods[0]


def row(made: Plan) -> str:
  """A line of the table, in Markdown."""
  mesh = ", ".join(f"{axis} {size}" for axis, size in made.mesh.items() if size > 1)
  memory = f"{made.bytes_per_device / 2**30:.1f} of {made.usable_bytes / 2**30:.1f}"
  pace = "does not fit | | |"
  if made.fits and made.step_seconds_estimate is not None:
    pace = (
      f"{made.step_seconds_estimate:.3g} | {made.bound} | {made.days:.3g} | "
      f"{made.chip_hours:,.0f}"
    )
  return f"| {_name(made.system, made.recipe)} | `{made.topology}` | {mesh} | {memory} | {pace} |"


def _name(system: str, recipe: str) -> str:
  return f"{system} `{recipe}`"


def _key(line: str) -> tuple[str, str]:
  """Machine and recipe of a line."""
  _, recipe, topology, *_ = (cell.strip() for cell in line.split("|"))
  return topology, recipe
