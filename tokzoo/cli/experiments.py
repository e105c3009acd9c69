"""Finding experiment files: by slug or by path, wherever tokzoo is installed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from tokzoo.errors import TokzooError, unknown
from tokzoo.places import bundled
from tokzoo.systems import SYSTEMS, find_system
from tokzoo.train import Recipe


def load_experiment(name: str) -> ModuleType:
  """The experiment module of a slug or a path.

  Raises:
    TokzooError: no such system or file, or a file that is not an experiment.
  """
  path = Path(name)
  if name in SYSTEMS or not (path.suffix == ".py" or "/" in name):
    path = bundled("experiments") / find_system(name).experiment
  elif not path.is_file() and path.parts[:1] == ("experiments",):
    # A path as in the README, from anywhere.
    path = bundled("experiments") / Path(*path.parts[1:])
  if not path.is_file():
    raise TokzooError(
      f"there is no experiment at {name}: name a file with RECIPES, or one of "
      f"{', '.join(sorted(SYSTEMS))}."
    )
  module_name = f"tokzoo_experiments.{path.stem}"
  spec = importlib.util.spec_from_file_location(module_name, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[module_name] = module
  spec.loader.exec_module(module)
  if not isinstance(getattr(module, "RECIPES", None), dict):
    raise TokzooError(
      f"{path} has no RECIPES: an experiment file has a dictionary RECIPES of functions that "
      "return a Recipe (see CONTRIBUTING.md)."
    )
  return module


def find_recipe(experiment: ModuleType, name: str) -> Recipe:
  """The recipe of that name.

  Raises:
    TokzooError: no such recipe; the nearest is suggested.
  """
  if name not in experiment.RECIPES:
    raise unknown("recipe", name, experiment.RECIPES)
  return experiment.RECIPES[name]()
