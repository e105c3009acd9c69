"""The table of published recipes on pods, generated into tpu/README.md.

Every published recipe of every experiment is compiled for a GPU cluster and a TPU slice, which
takes minutes each; the table grows row by row, so that what is done is not lost.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokzoo.cli.console import note
from tokzoo.cli.experiments import load_experiment
from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.systems import SYSTEMS
from tokzoo.train import Recipe
from tokzoo.train.plan import Plan, plan

BEGIN = "<!-- plans: begin; written by tokzoo plan --write-table tpu/README.md -->"
END = "<!-- plans: end -->"
PODS = ("h100:8x4", "v5e:16x16")


def published() -> Iterator[Recipe]:
  """Every published recipe."""
  for slug in SYSTEMS:
    for make in load_experiment(slug).RECIPES.values():
      if _is_published(make()):
        yield make()


def _is_published(recipe: Recipe) -> bool:
  """Recipes of small checkpoints run on packaged data; published ones bring theirs."""
  return recipe.data.source.startswith(("arrayrecord:", "tokens:", "tfds:"))


def write_table(path: Path) -> int:
  """Plans all of them and writes the table between the two marks of a file.

  Raises:
    TokzooError: the file lacks the marks, or a compiler is not installed.
  """
  text = path.read_text() if path.is_file() else ""
  if BEGIN not in text or END not in text:
    raise TokzooError(
      f"{path} has no place for the table: it needs the lines {BEGIN} and {END}."
    )
  before, rest = text.split(BEGIN)
  after = rest.split(END)[1]
  plans: list[Plan] = []
  for topology in PODS:
    for recipe in published():
      plans.append(plan(recipe, topology))
      note(plans[-1].summary)
      write_atomic(path, f"{before}{BEGIN}\n{rows(plans)}{END}{after}".encode())
  return 0


def rows(plans: Sequence[Plan]) -> str:
  """The table, in Markdown."""
  lines = [
    "| recipe | machine | mesh | memory of a chip, GiB | step, s | bound | days | chip-hours |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for one in plans:
    mesh = ", ".join(f"{axis} {size}" for axis, size in one.mesh.items() if size > 1)
    memory = f"{one.bytes_per_device / 2**30:.1f} of {one.usable_bytes / 2**30:.1f}"
    pace = "does not fit | | |"
    if one.fits and one.step_seconds_estimate is not None:
      pace = (
        f"{one.step_seconds_estimate:.3g} | {one.bound} | {one.days:.3g} | "
        f"{one.chip_hours:,.0f}"
      )
    lines.append(
      f"| {one.system} `{one.recipe}` | `{one.topology}` | {mesh} | {memory} | {pace} |"
    )
  return "\n".join(lines) + "\n"
