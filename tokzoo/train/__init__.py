"""One trainer for everything."""

from tokzoo.train.evaluate import evaluate
from tokzoo.train.loop import Result, train
from tokzoo.train.mesh import make_mesh, shardings
from tokzoo.train.recipe import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.run_dir import load_run
from tokzoo.train.serial import from_json, to_json

__all__ = [
  "Evaluator",
  "MeshShape",
  "Optimizer",
  "Recipe",
  "Result",
  "evaluate",
  "from_json",
  "load_run",
  "make_mesh",
  "shardings",
  "to_json",
  "train",
]
