"""One training step: every player's gradient, then every player's update.

All players differentiate the same losses at the same parameters, each only with respect to
its own. The forward pass is written once per player, and XLA merges the copies.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray, PyTree

from tokzoo.contract import Batch, Losses, Task, Variables
from tokzoo.train.mesh import (
  BATCH_AXES,
  ambient,
  batch_sharding,
  named_leaves,
  replicated,
)
from tokzoo.train.optim import schedule, update
from tokzoo.train.recipe import Recipe
from tokzoo.train.state import (
  Assignment,
  Layout,
  TrainState,
  flatten,
  step_key,
  unflatten,
)

Metrics = dict[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Gather = Callable[[dict[str, Array]], dict[str, Array]]


def compute_cast(tree: PyTree, dtype: jax.typing.DTypeLike) -> PyTree:
  """float32 leaves in `dtype`; all others as they are."""
  return jax.tree.map(
    lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf, tree
  )


def gathered(layout: Layout) -> Gather:
  """Makes parameters whole along fsdp where they are used, in the dtype they are used in.

  Left to choose, XLA rather splits a product by its weight's axis, and then gathers the
  activations of the whole batch: of a large batch a hundred times as much. Gradients are
  summed back into the parameters' own places.
  """
  mesh = layout.mesh
  if mesh.shape["fsdp"] == 1:
    return lambda params: params

  def make_whole(place: NamedSharding) -> Callable[[Array], Array]:
    spec = (None if axis == "fsdp" else axis for axis in place.spec)
    whole = NamedSharding(mesh, PartitionSpec(*spec))

    @jax.custom_vjp
    def gather(x: Array) -> Array:
      # First where it lies: else the float32 master is gathered, and cast afterwards.
      return jax.lax.with_sharding_constraint(
        jax.lax.with_sharding_constraint(x, place), whole
      )

    def scatter(_: None, gradient: Array) -> tuple[Array]:
      # Likewise, or products for the gradient are split by the weight's axis.
      summed = jax.lax.with_sharding_constraint(gradient, whole)
      return (jax.lax.with_sharding_constraint(summed, place),)

    gather.defvjp(lambda x: (gather(x), None), scatter)
    return gather

  gathers = {
    path: make_whole(place)
    for path, place in named_leaves(layout.placed.params).items()
  }
  return lambda params: {path: gathers[path](leaf) for path, leaf in params.items()}


def _losses(task: Task, recipe: Recipe, gather: Gather) -> Callable[..., Losses]:
  """`task.losses` in the compute dtype, with the recipe's rematerialisation."""
  dtype = jnp.dtype(recipe.compute_dtype)
  exact = getattr(task, "exact", ())

  def losses(
    params: Mapping[str, Array],
    collections: Variables,
    batch: Batch,
    key: PRNGKeyArray,
    step: Array,
  ) -> Losses:
    # Collections stay float32: running statistics would drown in bfloat16's rounding.
    whole = gather(compute_cast(dict(params), dtype))
    variables = {"params": unflatten(whole), **collections}
    kept = {name: batch[name] for name in exact}
    return task.losses(variables, {**compute_cast(batch, dtype), **kept}, key, step)

  # Compilers recompute a block where it is needed. They cannot with nothing kept at all:
  # that one piece takes as much memory as none, so there is no such setting.
  policies = jax.checkpoint_policies
  match recipe.remat:
    case "none":
      return losses
    case "dots":
      policy = policies.dots_with_no_batch_dims_saveable
    case "blocks":
      policy = policies.save_only_these_names("block")
  return jax.checkpoint(losses, policy=policy)


def gradients(
  task: Task, recipe: Recipe, assignment: Assignment, gather: Gather = dict
) -> Callable[..., tuple[dict[str, PyTree], Losses]]:
  """The function (state, batch, key) -> (gradients by player, losses) of one micro-batch.

  Gradients are flat dicts {path: float32 array} of the player's own parameters. `gather` is
  that of `gathered`; without, parameters are used as they lie.
  """
  losses = _losses(task, recipe, gather)

  def one_player(player: str, state: TrainState, batch: Batch, key: PRNGKeyArray):
    flat = flatten(state.params)

    def objective(own: Mapping[str, Array]) -> tuple[Array, Losses]:
      found = losses({**flat, **own}, state.collections, batch, key, state.step)
      return found.players[player].astype(jnp.float32), found

    own = {path: flat[path] for path in assignment[player]}
    (_, found), gradient = jax.value_and_grad(objective, has_aux=True)(own)
    return gradient, found

  def all_players(state: TrainState, batch: Batch, key: PRNGKeyArray):
    results = {player: one_player(player, state, batch, key) for player in assignment}
    found = next(iter(results.values()))[1]
    return {player: gradient for player, (gradient, _) in results.items()}, found

  return all_players


def accumulated(
  each: Callable[..., tuple[dict[str, PyTree], Losses]], count: int, mesh: Mesh
) -> Callable[..., tuple[dict[str, PyTree], Losses]]:
  """Means over `count` micro-batches, one after the other in a scan.

  Collections are updated by each micro-batch in turn.
  """
  if count == 1:
    return each
  rows = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

  def split(leaf: Array) -> Array:
    # Micro-batch i takes rows i, i + count, ...: each device's rows stay where they are.
    micro = leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(micro, rows)

  def all_micro(state: TrainState, batch: Batch, key: PRNGKeyArray):
    micro = jax.tree.map(split, batch)
    first = jax.tree.map(lambda leaf: leaf[0], micro)
    shapes, _ = jax.eval_shape(each, state, first, key)

    def body(carry, inputs):
      total, collections = carry
      index, part = inputs
      here = dataclasses.replace(state, collections=collections)
      gradient, found = each(here, part, jax.random.fold_in(key, index))
      total = jax.tree.map(jnp.add, total, gradient)
      seen = found.players, found.metrics, found.turns
      return (total, {**collections, **found.updates}), seen

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (total, collections), seen = jax.lax.scan(
      body, (zeros, state.collections), (jnp.arange(count), micro)
    )
    players, metrics = jax.tree.map(lambda leaf: leaf.mean(axis=0), seen[:2])
    turns = jax.tree.map(lambda leaf: leaf[0], seen[2])  # of the step: all alike
    gradient = jax.tree.map(lambda leaf: leaf / count, total)
    return gradient, Losses(players, metrics, collections, turns)

  return all_micro


def make_step(recipe: Recipe, layout: Layout) -> Step:
  """The jitted step. Its first argument is donated.

  Returns:
    (state, batch) -> (state, metrics). Metrics are replicated float32[] scalars: `loss`,
    `grad_norm` and `lr` of each player (`loss/NAME` where there are several), and what the
    task logs.
  """
  mesh, assignment, optimizers = layout.mesh, layout.assignment, layout.optimizers
  each = gradients(recipe.task, recipe, assignment, gathered(layout))
  compute = accumulated(each, recipe.accumulate, mesh)
  rates = {
    player: schedule(config, recipe.steps)
    for player, config in recipe.optimizers.items()
  }

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    gradient, found = compute(state, batch, step_key(state))
    metrics = {name: jnp.float32(value) for name, value in found.metrics.items()}
    flat = flatten(state.params)
    opt_states = {}
    for player, own in assignment.items():
      params = {path: flat[path] for path in own}
      start = recipe.optimizers[player].start_step
      old = (params, state.opt_states[player])
      new = update(optimizers[player], gradient[player], old[1], params)
      if start:
        new = _where(state.step >= start, new, old)
      if player in found.turns:
        new = _moved(found.turns[player], new, old)
      flat |= new[0]
      opt_states[player] = new[1]
      told = {
        "loss": found.players[player],
        "grad_norm": optax.global_norm(gradient[player]),
        "lr": rates[player](jnp.maximum(state.step - start, 0)),
      }
      for kind, value in told.items():
        metrics[metric_name(kind, player, assignment)] = jnp.asarray(value, jnp.float32)
    params = unflatten(flat)
    new_state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=params,
      collections={**state.collections, **found.updates},
      opt_states=opt_states,
      ema=_average(state.ema, params, recipe.ema),
    )
    return new_state, metrics

  return jax.jit(
    ambient(mesh, step),
    in_shardings=(layout.placed, batch_sharding(mesh)),
    out_shardings=(layout.placed, replicated(mesh)),
    donate_argnums=0,
  )


def metric_name(kind: str, player: str, assignment: Assignment) -> str:
  """ "loss", or "loss/NAME" where there are several players."""
  return f"{kind}/{player}" if len(assignment) > 1 else kind


def _where(condition: Array, new: PyTree, old: PyTree) -> PyTree:
  return jax.tree.map(functools.partial(jnp.where, condition), new, old)


def _moved(is_turn: Array, new: PyTree, old: PyTree) -> PyTree:
  """`new` where it is the player's turn, else `old`; the learning rate goes by the run's steps
  and falls meanwhile."""

  def is_rate(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)

  def chosen(new: Any, old: Any) -> Any:
    return new if is_rate(new) else jnp.where(is_turn, new, old)

  return jax.tree.map(chosen, new, old, is_leaf=is_rate)


def _average(ema: PyTree | None, params: PyTree, decay: float | None) -> PyTree | None:
  """The moving average, written so that weights that do not move are kept bit for bit."""
  if ema is None or decay is None:
    return None
  return jax.tree.map(
    lambda mean, new: mean + (1.0 - decay) * (new - mean), ema, params
  )
