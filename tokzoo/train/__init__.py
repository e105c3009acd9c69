"""One trainer for everything."""

from tokzoo.train.recipe import Evaluator, MeshShape, Optimizer, Recipe

__all__ = ["Evaluator", "MeshShape", "Optimizer", "Recipe"]
