"""From an `Optimizer` of the recipe to optax: schedule, clipping, update rule."""

import contextlib
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from tokzoo.errors import TokzooError
from tokzoo.train.recipe import Optimizer


def schedule(config: Optimizer, steps: int) -> optax.Schedule:
  """The learning rate by the player's own update count.

  Args:
    config: the player's optimizer.
    steps: optimizer steps of the whole run. A player that starts at `start_step` warms up
      from there, and still ends at the run's last step.

  Returns:
    A function from count int32[] to learning rate float32[].

  Raises:
    TokzooError: the player starts, or still warms up, after the last step; or a drop comes
      before its warm-up is over.
  """
  first = config.start_step + config.warmup_steps
  decay_steps = steps - first
  if decay_steps < 0 or config.start_step >= steps:
    raise TokzooError(
      f"an optimizer that starts at step {config.start_step} and warms up for "
      f"{config.warmup_steps} steps does not fit a run of {steps} steps: shorten them."
    )
  peak, end = config.peak_lr, config.end_lr
  held = round(config.hold * decay_steps)
  match config.schedule:
    case "constant":
      after = optax.constant_schedule(peak)
    case "cosine":
      alpha = end / peak if peak else 0.0
      after = optax.cosine_decay_schedule(peak, max(decay_steps - held, 1), alpha)
      after = _after(held, peak, after)
    case "linear":
      after = optax.linear_schedule(peak, end, max(decay_steps - held, 1))
      after = _after(held, peak, after)
    case "rsqrt":
      after = functools.partial(_rsqrt, peak, float(max(config.warmup_steps, 1)))
    case "drops":
      if min(config.drops, default=first + 1) <= first:
        raise TokzooError(
          f"the learning rate drops at step {min(config.drops)}, before it has warmed up at "
          f"step {first}: drop it later."
        )
      tenths = {step - first: 0.1 for step in config.drops}
      after = optax.piecewise_constant_schedule(peak, tenths)
    case "exponential":
      if not 0 < config.decay <= 1:
        raise TokzooError(
          f"the learning rate is multiplied by {config.decay} at every step: choose a decay "
          "above 0, and 1 at most."
        )
      after = functools.partial(_exponential, peak, config.decay)
  if config.warmup_steps:
    warmup = optax.linear_schedule(config.start_lr, peak, config.warmup_steps)
    after = optax.join_schedules([warmup, after], [config.warmup_steps])

  def rate(count: jax.typing.ArrayLike) -> Array:
    with _optax_promotion():
      return jnp.asarray(after(count), jnp.float32)

  return rate


def make_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
  """The update rule of one player, to run on its parameters only.

  Raises:
    TokzooError: settings that do not go together.
  """
  rate = schedule(config, steps)
  decays = functools.partial(_decays, config.decay_axes, config.no_decay)
  moments: dict[str, Any] = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
  match config.name:
    case "adamw":
      rule = optax.adamw(rate, **moments, weight_decay=config.weight_decay, mask=decays)
    case "adam":
      if config.weight_decay:
        raise TokzooError(
          f"adam has no weight decay, but weight_decay is {config.weight_decay}: use adamw."
        )
      rule = optax.adam(rate, **moments)
    case "sgd":
      rule = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        optax.sgd(rate, momentum=config.b1 or None),
      )
    case "muon":
      rule = optax.contrib.muon(
        rate,
        beta=config.b1,
        weight_decay=config.weight_decay,
        weight_decay_mask=decays,
        adam_b1=config.b1,
        adam_b2=config.b2,
        eps=config.eps,
        adam_weight_decay=config.weight_decay,
      )
  if config.clip_norm is None:
    return rule
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def update(
  optimizer: optax.GradientTransformation,
  gradient: PyTree,
  state: PyTree,
  params: PyTree,
) -> tuple[PyTree, PyTree]:
  """One update: the new parameters and the new optimizer state."""
  with _optax_promotion():
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def _optax_promotion() -> contextlib.AbstractContextManager[None]:
  """Optax multiplies integer counts by floats, which a session may forbid elsewhere."""
  return jax.numpy_dtype_promotion("standard")


def _after(held: int, peak: float, schedule: optax.Schedule) -> optax.Schedule:
  """The schedule, begun after so many steps at the peak."""
  if not held:
    return schedule
  return optax.join_schedules([optax.constant_schedule(peak), schedule], [held])


def _rsqrt(peak: float, scale: float, count: jax.typing.ArrayLike) -> Array:
  """Falls as 1 / sqrt(count), from the peak at count 0: no jump where the warm-up ends."""
  return peak * jax.lax.rsqrt(1.0 + jnp.asarray(count, jnp.float32) / scale)


def _exponential(peak: float, decay: float, count: jax.typing.ArrayLike) -> Array:
  """peak * decay ** count. The power of a float32 near 1 would be wrong in the third digit."""
  return peak * jnp.exp(math.log(decay) * jnp.asarray(count, jnp.float32))


def _decays(axes: int, spared: tuple[str, ...], params: PyTree) -> PyTree:
  """True where weight decay applies: gains and biases have one axis, `spared` are named."""

  def decays(path: tuple[Any, ...], leaf: Array) -> bool:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    is_spared = any(re.search(pattern, name) for pattern in spared)
    return leaf.ndim >= axes and not is_spared

  return jax.tree_util.tree_map_with_path(decays, params)
