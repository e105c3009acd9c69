"""A run directory: what lies in it, when it may be continued, and how it is read.

recipe.json   the resolved recipe
log.jsonl     one line per log point and evaluation
checkpoints/  see checkpoint.py; each holds the recipe too
pictures/     image summaries
"""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import PyTree

from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.train import hosts
from tokzoo.train.checkpoint import Checkpoints
from tokzoo.train.recipe import Recipe
from tokzoo.train.serial import changes, readable, to_json

_OURS = (
  "recipe.json",
  "log.jsonl",
  "checkpoints",
  "damaged",
  "pictures",
  "tensorboard",
)


def open_run(out: str | Path, recipe: Recipe, restart: bool = False) -> list[str]:
  """Makes a run directory, or checks that the one that is there may be continued.

  Args:
    out: the run directory.
    recipe: what is to be trained in it.
    restart: remove what an earlier run left there, and nothing else.

  Returns:
    What differs from the recipe that the run was started with, one sentence each.

  Raises:
    TokzooError: the directory holds the run of another system, recipe or model, or cannot
      be written.
  """
  out = Path(out)
  kept = out / "recipe.json"
  now = to_json(recipe)
  notes = []
  if kept.is_file() and not restart:
    before = _read_recipe(kept)
    for part, theirs, ours in _identity(before, now):
      if theirs != ours:
        raise TokzooError(
          f"{out} holds a run whose {part} is {_short(theirs)}, not {_short(ours)}: choose "
          "another --out, or pass --restart to begin anew."
        )
    notes = [
      f"{name} changes from {_short(old)} to {_short(new)}"
      for name, (old, new) in changes(before, now).items()
    ]
  hosts.wait_for_all("run directory checked")
  if hosts.is_first():
    if restart and kept.is_file():
      _remove(out)
    write_atomic(kept, readable(now))
  hosts.wait_for_all("run directory open")
  return notes


def load_run(
  path: str | Path, use_ema: bool = True
) -> tuple[dict[str, Any], dict[str, PyTree], int]:
  """Reads the weights of a run, on one device and without the trainer.

  Args:
    path: a run directory.
    use_ema: the averaged weights where the run keeps them, else those of the last step.

  Returns:
    The recipe as JSON (`tokzoo.train.from_json` makes a `Recipe` of it), Linen variables
    {"params": ..., "codebook": ...}, and the step they are of.

  Raises:
    TokzooError: no run there, or no checkpoint of it is whole.
  """
  folder = Path(path) / "checkpoints"
  if not folder.is_dir():
    raise TokzooError(
      f"{path} is no run directory (it has no folder checkpoints): name the --out of a run."
    )
  checkpoints = Checkpoints(folder, read_only=True)
  try:
    arrays, about = checkpoints.load(functools.partial(_weights, use_ema))
  finally:
    checkpoints.close()
  variables: dict[str, PyTree] = {}
  for name, array in arrays.items():
    kind, _, rest = name.partition("/")
    key = rest if kind == "collections" else f"params/{rest}"
    variables[key] = jnp.asarray(array)
  return (
    about["recipe"],
    traverse_util.unflatten_dict(variables, sep="/"),
    about["step"],
  )


def _weights(use_ema: bool, names: list[str]) -> list[str]:
  """Names of the variables among those of the state's arrays."""
  averaged = use_ema and any(name.startswith("ema/") for name in names)
  wanted = ("ema/" if averaged else "params/", "collections/")
  return [name for name in names if name.startswith(wanted)]


def _read_recipe(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise TokzooError(
      f"{path} is not JSON ({error}): it was changed; choose another --out, or pass "
      "--restart to begin anew."
    ) from error


def _identity(
  before: dict[str, Any], now: dict[str, Any]
) -> list[tuple[str, Any, Any]]:
  """What must agree for a run to be continued: (part, before, now)."""
  parts = [(part, before.get(part), now[part]) for part in ("system", "name")]
  theirs, ours = before.get("task"), now["task"]
  if isinstance(theirs, dict) and "model" in theirs and "model" in ours:
    theirs, ours = theirs["model"], ours["model"]
  differing = changes(theirs, ours, "model").items()
  return parts + [(name, old, new) for name, (old, new) in differing]


def _remove(out: Path) -> None:
  """Removes what a run writes; other files in the folder stay."""
  for name in _OURS:
    place = out / name
    if place.is_dir():
      shutil.rmtree(place)
    else:
      place.unlink(missing_ok=True)


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else text[:57] + "..."
