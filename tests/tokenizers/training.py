"""The first steps of a recipe on one device: what the tests of tokenizers look at."""

import dataclasses
from typing import Any

import jax
import numpy as np

from tokzoo.data import loader
from tokzoo.nn.discriminator import PatchGAN
from tokzoo.train import MeshShape, Recipe, make_mesh
from tokzoo.train.plan.programs import batch_shapes
from tokzoo.train.state import lay_out, make_state
from tokzoo.train.step import make_step


def shapes(recipe: Recipe) -> Any:
  """Shapes of all variables of a recipe's task."""
  return jax.eval_shape(recipe.task.init, jax.random.key(0), batch_shapes(recipe))


def first_steps(
  recipe: Recipe, model: Any, steps: int = 12, adversary_from: int = 4
) -> dict[str, list[float]]:
  """Every number of the first steps on one batch: data, objective and optimizers of the
  recipe, a smaller model, and no perceptual network, which takes minutes to compile."""
  adversary = dataclasses.replace(
    recipe.task.adversary,
    start_step=adversary_from,
    network=PatchGAN(width=8, layers=1),
  )
  task = dataclasses.replace(
    recipe.task, model=model, perceptual=(), adversary=adversary
  )
  optimizers = {
    name: dataclasses.replace(
      optimizer,
      warmup_steps=0,
      schedule="constant",
      start_step=adversary_from if name == "discriminator" else 0,
    )
    for name, optimizer in recipe.optimizers.items()
  }
  changes = {"task": task, "optimizers": optimizers, "batch_size": 4}
  recipe = dataclasses.replace(recipe, **changes, mesh=MeshShape(data=1))
  batch = next(loader(recipe.data, recipe.batch_size, 0))
  mesh = make_mesh(recipe.mesh, jax.devices()[:1])
  layout = lay_out(recipe, batch, mesh)
  state = make_state(recipe, layout, batch)
  options = {"xla_backend_optimization_level": 0}
  step = make_step(recipe, layout).lower(state, batch).compile(options)
  seen: dict[str, list[float]] = {}
  for _ in range(steps):
    state, metrics = step(state, batch)
    for name, value in metrics.items():
      seen.setdefault(name, []).append(float(np.asarray(value)))
  return seen
