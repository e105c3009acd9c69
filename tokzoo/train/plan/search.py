"""Search over what a recipe leaves open on a machine: mesh, rematerialisation, batch.

The compiler is asked about each candidate, so a search takes as many compilations. The batch
of the recipe stays what it is: a smaller one per device means more micro-batches
(`accumulate`), which give the same gradients.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from tokzoo.errors import TokzooError
from tokzoo.machines import parse
from tokzoo.train.plan.compiling import compile_all
from tokzoo.train.plan.planning import Plan, conclude
from tokzoo.train.plan.roofline import TYPICAL, Assumptions
from tokzoo.train.recipe import MeshShape, Recipe

_REMAT = ("none", "blocks", "dots")


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One way to run a recipe.

  recipe:  with its mesh, remat and accumulate
  plan:    of it, or None
  reason:  why there is none
  """

  recipe: Recipe
  plan: Plan | None
  reason: str = ""


def candidates(recipe: Recipe, num_chips: int, most: int) -> list[Recipe]:
  """Recipes to try: those of the recipe's own settings first, then the others.

  Meshes split parameters over all chips, a root of them, or none (fsdp), and by the recipe's
  rules over 2 or 4 (model) where it has any. Batches per device are the whole and its halves.

  Args:
    recipe: what is to be run.
    num_chips: of the machine.
    most: how many to return.
  """
  found = [
    dataclasses.replace(recipe, mesh=mesh, remat=remat, accumulate=accumulate)
    for accumulate in _accumulations(recipe, num_chips)
    for mesh in _meshes(recipe, num_chips)
    for remat in (recipe.remat, *(name for name in _REMAT if name != recipe.remat))
    if recipe.batch_size % (mesh.data * mesh.fsdp * accumulate) == 0
  ]
  return found[:most]


def _meshes(recipe: Recipe, num_chips: int) -> Iterator[MeshShape]:
  for model in (1, 2, 4) if recipe.sharding else (1,):
    if num_chips % model:
      continue
    rest = num_chips // model
    sizes = [size for size in range(1, rest + 1) if rest % size == 0]
    middle = min(sizes, key=lambda size: abs(size - rest**0.5))
    for fsdp in dict.fromkeys((rest, middle, 1)):
      yield MeshShape(data=rest // fsdp, fsdp=fsdp, model=model)


def _accumulations(recipe: Recipe, num_chips: int) -> list[int]:
  rows = recipe.batch_size // num_chips
  halves = [count for count in (1, 2, 4, 8) if rows and rows % count == 0]
  return sorted({recipe.accumulate, *halves}, key=lambda n: (n != recipe.accumulate, n))


def search(
  recipe: Recipe,
  topology: str,
  *,
  most: int = 12,
  price_per_chip_hour: float | None = None,
  assumed: Assumptions = TYPICAL,
  on_plan: Callable[[Candidate], None] | None = None,
) -> list[Candidate]:
  """Plans candidates of a recipe.

  Args:
    recipe: what is to be run.
    topology: as for `plan`.
    most: how many candidates to compile.
    price_per_chip_hour: as for `plan`.
    assumed: as for `plan`.
    on_plan: called with each candidate as it is done.

  Returns:
    Those that fit, the fastest first; then those that do not, the smallest first; then those
    without a plan.

  Raises:
    TokzooError: as `plan`; or no way to split the batch over the machine.
  """
  machine = parse(topology)
  recipes = candidates(recipe, machine.num_chips, most)
  if not recipes:
    raise TokzooError(
      f"a batch of {recipe.batch_size} cannot be split over {machine.num_chips} chips: "
      "choose a batch_size that is a multiple of them, or a smaller topology."
    )
  done = []
  compiled = compile_all([(one, "train") for one in recipes], machine)
  for one, facts in zip(recipes, compiled, strict=True):
    if isinstance(facts, TokzooError):
      done.append(Candidate(one, None, str(facts)))
    else:
      made = conclude(one, "train", machine, facts, price_per_chip_hour, assumed)
      done.append(Candidate(one, made))
    if on_plan is not None:
      on_plan(done[-1])
  return sorted(done, key=_rank)


def pareto(ranked: Sequence[Candidate]) -> list[bool]:
  """Of candidates in the order of `search`, whether none is both faster and smaller."""
  smallest, found = float("inf"), []
  for one in ranked:
    is_best = (
      one.plan is not None and one.plan.fits and one.plan.bytes_per_device < smallest
    )
    found.append(is_best)
    if is_best and one.plan is not None:
      smallest = one.plan.bytes_per_device
  return found


def _rank(one: Candidate) -> tuple[int, float, float]:
  if one.plan is None:
    return 2, 0.0, 0.0
  if not one.plan.fits or one.plan.step_seconds_estimate is None:
    return 1, float(one.plan.bytes_per_device), 0.0
  return 0, one.plan.step_seconds_estimate, float(one.plan.bytes_per_device)
