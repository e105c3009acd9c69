"""The state of a run: one pytree that a checkpoint holds whole.

Parameters are assigned to players by regular expressions over their paths. Each player's
optimizer sees a flat dict {path: parameter} of its own, so frozen parameters carry no
optimizer state and no gradient.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree, UInt32

from tokzoo.contract import Batch, Task, Variables
from tokzoo.errors import TokzooError, unknown
from tokzoo.train.mesh import named_leaves, replicated, shardings
from tokzoo.train.optim import make_optimizer
from tokzoo.train.recipe import Recipe

Assignment = dict[str, tuple[str, ...]]
"""Player -> paths of its parameters."""


@struct.dataclass
class TrainState:
  """What changes while training.

  step:         optimizer steps done
  seed:         of every random draw: keys are folded from seed and step
  params:       float32 masters
  collections:  the other Linen collections: codebook, ...
  opt_states:   optax state of each player
  ema:          averaged params, or None
  """

  step: Int[Array, ""]
  seed: UInt32[Array, ""]
  params: PyTree
  collections: dict[str, PyTree]
  opt_states: dict[str, PyTree]
  ema: PyTree | None

  def variables(self, use_ema: bool = True) -> dict[str, PyTree]:
    """Linen variables, with the averaged weights where they are kept and wanted."""
    params = self.ema if use_ema and self.ema is not None else self.params
    return {"params": params, **self.collections}


def flatten(params: PyTree) -> dict[str, Array]:
  """{"encoder/blocks_0/kernel": array}, of nested dicts."""
  return named_leaves(params)


def unflatten(params: Mapping[str, Array]) -> PyTree:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(params), sep="/")


def assign(params: PyTree, task: Task, recipe: Recipe) -> Assignment:
  """Which parameters each player trains.

  Raises:
    TokzooError: the recipe's optimizers are not those of the task's players, a player is
      left with nothing, or a freezing expression matches nothing.
  """
  for name in recipe.optimizers.keys() - task.players.keys():
    raise unknown("player", name, task.players)
  for name in task.players.keys() - recipe.optimizers.keys():
    raise TokzooError(
      f"the recipe has no optimizer for the task's player {name!r}: add optimizers[{name!r}]."
    )
  paths = tuple(flatten(params))
  frozen = set()
  for pattern in recipe.freeze:
    matched = {path for path in paths if re.match(pattern, path)}
    if not matched:
      raise TokzooError(
        f"freeze {pattern!r} matches no parameter: the paths are {_some(paths)}."
      )
    frozen |= matched
  owner: dict[str, str] = {}
  for path in paths:
    for player, pattern in task.players.items():
      if path not in frozen and re.match(pattern, path):
        owner[path] = player
        break
  assignment = {
    player: tuple(path for path in paths if owner.get(path) == player)
    for player in task.players
  }
  for player, own in assignment.items():
    if not own:
      raise TokzooError(
        f"nothing is left for the player {player!r} to train: its expression is "
        f"{task.players[player]!r}, frozen are {recipe.freeze}, the paths are {_some(paths)}."
      )
  return assignment


def state_shardings(state: TrainState, mesh: Mesh, recipe: Recipe) -> TrainState:
  """Where each array of the state lies: moments and averages lie with their parameters.

  Args:
    state: shapes, as `jax.eval_shape` gives them.
    mesh: of `make_mesh`.
    recipe: for its sharding rules.

  Raises:
    TokzooError: as `shardings`.
  """
  placed = shardings(state.variables(use_ema=False), mesh, recipe.sharding)
  of_param = named_leaves(placed["params"])
  shape_of = {path: leaf.shape for path, leaf in named_leaves(state.params).items()}

  def with_its_parameter(path: tuple[Any, ...], leaf: Any) -> jax.sharding.Sharding:
    # The path ends in the parameter's: "0/mu/encoder/kernel".
    parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    for start in range(len(parts)):
      name = "/".join(parts[start:])
      if shape_of.get(name) == leaf.shape:
        return of_param[name]
    return replicated(mesh)

  everywhere: Any = replicated(mesh)
  return TrainState(
    step=everywhere,
    seed=everywhere,
    params=placed["params"],
    collections={name: tree for name, tree in placed.items() if name != "params"},
    opt_states=jax.tree_util.tree_map_with_path(with_its_parameter, state.opt_states),
    ema=None if state.ema is None else placed["params"],
  )


def step_key(state: TrainState) -> Array:
  """The key of this step: the same for any mesh and any number of hosts."""
  return jax.random.fold_in(jax.random.key(state.seed), state.step)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Everything about a run's state that is known before a number is computed.

  mesh:        of `make_mesh`
  shapes:      the state's shapes and dtypes, with their shardings
  placed:      the state's shardings alone
  assignment:  paths of each player's parameters
  optimizers:  update rule of each player
  """

  mesh: Mesh
  shapes: TrainState
  placed: TrainState
  assignment: Assignment
  optimizers: dict[str, optax.GradientTransformation]


def lay_out(recipe: Recipe, batch: Mapping[str, Any], mesh: Mesh) -> Layout:
  """Lays a run out on a mesh without computing anything.

  Args:
    recipe: what to train.
    batch: arrays of the global batch, or their shapes.
    mesh: of `make_mesh`; its devices need not be there.

  Raises:
    TokzooError: as `assign`, `make_optimizer` and `shardings`.
  """
  variables = jax.eval_shape(functools.partial(_init, recipe), dict(batch))
  assignment = assign(variables["params"], recipe.task, recipe)
  optimizers = {
    player: make_optimizer(config, recipe.steps)
    for player, config in recipe.optimizers.items()
  }
  begin = functools.partial(_begin, recipe, assignment, optimizers)
  shapes = jax.eval_shape(begin, variables)
  placed = state_shardings(shapes, mesh, recipe)
  shapes = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    placed,
  )
  return Layout(mesh, shapes, placed, assignment, optimizers)


def make_state(
  recipe: Recipe, layout: Layout, batch: Batch, initial: Variables | None = None
) -> TrainState:
  """The state before the first step, made where it will lie.

  Args:
    recipe: what to train.
    layout: of `lay_out`.
    batch: a global batch.
    initial: weights to start from, where paths agree.

  Raises:
    TokzooError: `initial` does not fit.
  """
  init = jax.jit(
    functools.partial(_init, recipe),
    out_shardings=layout.placed.variables(use_ema=False),
  )
  variables = jax.block_until_ready(init(dict(batch)))
  given = given_by(recipe.task)
  if given:
    variables = merge_initial(variables, given)
  if initial is not None:
    # A task may keep weights elsewhere than the model they come from: a teacher's.
    adopt = getattr(recipe.task, "adopt", None)
    variables = merge_initial(variables, initial if adopt is None else adopt(initial))
  begin = functools.partial(_begin, recipe, layout.assignment, layout.optimizers)
  return jax.block_until_ready(jax.jit(begin, out_shardings=layout.placed)(variables))


def variables_of_model(variables: Variables) -> dict[str, Any]:
  """What of a task's variables is the model's: no discriminator, given network or teacher,
  nor what the task itself remembers."""
  extras = ("discriminator", "projector")
  params = {k: v for k, v in variables["params"].items() if k not in extras}
  rest = ("params", "discriminator", "perceptual", "teacher", "task")
  return {"params": params} | {k: v for k, v in variables.items() if k not in rest}


def given_by(task: Task) -> Variables:
  """Variables that a task reads from files instead of initialising them (`given`), such as
  a frozen network's; most tasks have none."""
  return getattr(task, "given", dict)()


def merge_initial(variables: Variables, initial: Variables) -> dict[str, PyTree]:
  """Replaces variables by those of `initial` where paths agree.

  Raises:
    TokzooError: a shape differs, or no path agrees.
  """
  given = named_leaves(dict(initial))
  names = named_leaves(dict(variables))
  if not given.keys() & names.keys():
    raise TokzooError(
      f"no path of the initial weights agrees with the model's: they hold {_some(given)}, "
      f"the model {_some(names)}."
    )

  def choose(path: tuple[Any, ...], leaf: Array) -> Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name not in given:
      return leaf
    value = np.asarray(given[name])
    if value.shape != leaf.shape:
      raise TokzooError(
        f"the initial weights hold {name} {list(value.shape)}, but the model has "
        f"{list(leaf.shape)}: start from weights of the same model."
      )
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda index: value[index].astype(leaf.dtype)
    )

  return jax.tree_util.tree_map_with_path(choose, dict(variables))


def _init(recipe: Recipe, batch: Batch) -> dict[str, PyTree]:
  """The task's variables. No step folds this number into the seed."""
  key = jax.random.fold_in(jax.random.key(recipe.seed), jnp.uint32(0xFFFFFFFF))
  variables = dict(recipe.task.init(key, batch))
  # As the step rebuilds them: plain dicts without empty branches.
  return {**variables, "params": unflatten(flatten(variables["params"]))}


def _begin(
  recipe: Recipe,
  assignment: Assignment,
  optimizers: Mapping[str, optax.GradientTransformation],
  variables: Variables,
) -> TrainState:
  """The state at step 0."""
  params = variables["params"]
  flat = flatten(params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    seed=jnp.asarray(recipe.seed, jnp.uint32),
    params=params,
    collections={name: tree for name, tree in variables.items() if name != "params"},
    opt_states={
      player: optimizers[player].init({path: flat[path] for path in own})
      for player, own in assignment.items()
    },
    # A copy: a donated buffer must not appear twice in the state.
    ema=None if recipe.ema is None else jax.tree.map(jnp.copy, params),
  )


def _some(names: Iterable[str]) -> str:
  """The first few paths, for a message."""
  paths = list(names)
  return ", ".join(paths[:4]) + (
    f" and {len(paths) - 4} more" if len(paths) > 4 else ""
  )
