"""The one training loop.

What happens at each step, and why the device never waits for the host:

  batch t+1 is read and put while the device computes step t, since a step returns at once
  metrics of step t are fetched when step t+2 has been sent: they are there already
  a save takes the state, and is written, read back and pruned behind it

A run is a function of its recipe: killed anywhere and started again, it continues from its
newest whole checkpoint and ends in the same bits.
"""

import contextlib
import functools
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

import tokzoo.data
from tokzoo.contract import Variables
from tokzoo.errors import TokzooError, unknown
from tokzoo.train import hosts
from tokzoo.train.checkpoint import Checkpoints
from tokzoo.train.evaluate import Batches, make_evaluate, make_pictures
from tokzoo.train.mesh import (
  check_batch,
  host_arrays,
  make_mesh,
  programs_in_flight,
  put_batch,
)
from tokzoo.train.recipe import Recipe
from tokzoo.train.run_dir import load_run, open_run
from tokzoo.train.serial import to_json
from tokzoo.train.signals import stop_requests
from tokzoo.train.state import Layout, TrainState, lay_out, make_state
from tokzoo.train.step import Metrics, make_step, metric_name
from tokzoo.train.writers import Log, OnLog, open_log
from tokzoo.version import code_version

EvaluationBatches = Mapping[str, Callable[[], Batches]]
"""By evaluator, a function that gives its batches, once from the beginning."""


class DataIterator(Protocol):
  """Training batches of this process's rows, with a JSON state: `tokzoo.data.loader`."""

  def __next__(self) -> Mapping[str, Any]: ...

  def get_state(self) -> Any: ...

  def set_state(self, state: Any) -> None: ...


@dataclass(frozen=True)
class Result:
  """What a run ended with.

  step:         steps done
  variables:    Linen variables on the mesh: averaged weights where they are kept
  metrics:      the last training line of the log; {} if this call trained no step
  evaluations:  evaluator -> metrics after the last step; {} if the run was stopped
  stopped_by:   "SIGTERM" or "SIGINT" where the run was stopped before its end, else None
  out:          the run directory
  """

  step: int
  variables: dict[str, PyTree]
  metrics: dict[str, float]
  evaluations: dict[str, dict[str, float]]
  stopped_by: str | None
  out: Path


def train(
  recipe: Recipe,
  out: str | Path,
  *,
  restart: bool = False,
  mesh: Mesh | None = None,
  batches: DataIterator | None = None,
  evaluations: EvaluationBatches | None = None,
  initial: Variables | None = None,
  writers: Sequence[str] = (),
  progress: bool = True,
  on_log: OnLog | None = None,
) -> Result:
  """Trains a recipe, or continues the run in `out`.

  Args:
    recipe: everything that the run is.
    out: the run directory; run_dir.py says what lies in it.
    restart: begin anew where `out` already holds a run.
    mesh: instead of one over all devices by `recipe.mesh`.
    batches: training batches, instead of those of `recipe.data`.
    evaluations: batches by evaluator, instead of those of its `data`.
    initial: weights to start from where paths agree, instead of `recipe.init_from`.
    writers: further places for numbers and pictures: "tensorboard", "wandb", "trackio".
    progress: show the run on the terminal.
    on_log: called with every line of the log.

  Returns:
    The result. A run that was stopped by SIGTERM or Ctrl-C is saved and has `stopped_by`.

  Raises:
    TokzooError: a recipe, mesh, data or directory that does not fit; a loss that is not
      finite; a checkpoint that cannot be written; or only damaged ones to continue from.
  """
  _check(recipe)
  mesh = make_mesh(recipe.mesh) if mesh is None else mesh
  check_batch(mesh, recipe.batch_size, recipe.accumulate)
  rows = tokzoo.data.host_rows(mesh, recipe.batch_size)
  out = Path(out)
  with contextlib.ExitStack() as stack:
    if batches is None:
      loader = tokzoo.data.loader(recipe.data, recipe.batch_size, recipe.seed, rows)
      batches = stack.enter_context(contextlib.closing(loader))
    first = _peek(batches, rows.stop - rows.start)
    layout = lay_out(recipe, _global_shapes(first, recipe.batch_size), mesh)
    notes = open_run(out, recipe, restart)
    checkpoints = stack.enter_context(
      contextlib.closing(Checkpoints(out / "checkpoints", recipe.keep))
    )
    restored = checkpoints.restore(layout.shapes)
    if restored is None:
      if initial is None and recipe.init_from is not None:
        initial = load_run(recipe.init_from)[1]
      global_batch = put_batch(first, mesh, recipe.batch_size)
      state = make_state(recipe, layout, global_batch, initial)
    else:
      state = restored.state
      batches.set_state(restored.about["data"])
      notes = [f"continues after step {int(state.step)}", *notes]
      for sentence in restored.skipped:
        warnings.warn(sentence, stacklevel=2)
    log = stack.enter_context(
      open_log(recipe, out, int(state.step), writers, progress, on_log)
    )
    for note in notes:
      log.say(note)
    meter = _Meter(recipe, layout, checkpoints, log)
    watch = _Watch(recipe, layout, rows, evaluations or {}, first, log)
    state, stopped_by = _run(recipe, layout, state, batches, checkpoints, meter, watch)
    if stopped_by is not None:
      log.say(
        f"stopped by {stopped_by} after step {int(state.step)}, which is saved: start the "
        "same run again to continue."
      )
    return Result(
      step=int(state.step),
      variables=state.variables(),
      metrics=meter.last,
      evaluations=watch.last if stopped_by is None else {},
      stopped_by=stopped_by,
      out=out,
    )


def _run(
  recipe: Recipe,
  layout: Layout,
  state: TrainState,
  batches: DataIterator,
  checkpoints: Checkpoints,
  meter: "_Meter",
  watch: "_Watch",
) -> tuple[TrainState, str | None]:
  """Steps until the last one, or until a signal; returns the state and the signal."""
  step = make_step(recipe, layout)
  about = {"recipe": to_json(recipe), "code": code_version()}
  done = int(state.step)
  stopped_by = None
  if done:
    # A kill may have come between a save and the evaluations of its step.
    watch.visit(state, done)
  checkpoints.warm(state)
  with stop_requests() as request:
    while done < recipe.steps and stopped_by is None:
      batch = put_batch(_next(batches, done), layout.mesh, recipe.batch_size)
      with jax.transfer_guard("disallow"):
        state, metrics = step(state, batch)
      done += 1
      meter.push(done, metrics)
      checkpoints.poll(meter.landed)
      # Hosts must leave at the same step; several agree only where a line is logged.
      if jax.process_count() == 1 or done % recipe.log_every == 0:
        stopped_by = hosts.any_name(request.name)
      if stopped_by or _due(done, recipe.save_every) or done == recipe.steps:
        kept = {**about, "data": batches.get_state()}
        checkpoints.save(done, state, kept, meter.drain)
      if stopped_by is None and watch.is_due(done):
        meter.drain()
        checkpoints.poll(meter.landed)
        watch.visit(state, done)
        meter.restart_clock()
    meter.drain()
    checkpoints.settle()
  return state, stopped_by


class _Meter:
  """Fetches metrics behind the device, stops at what is not finite, logs means."""

  def __init__(
    self, recipe: Recipe, layout: Layout, checkpoints: Checkpoints, log: Log
  ):
    self._every = recipe.log_every
    self._lag = programs_in_flight(layout.mesh.devices.flat)
    self._players = layout.assignment
    self._checkpoints = checkpoints
    self._log = log
    self._flying: deque[tuple[int, Metrics]] = deque()
    self._window: list[dict[str, np.ndarray]] = []
    self._clock: float | None = None
    self._timed = 0
    self.landed = 0
    self.last: dict[str, float] = {}

  def push(self, step: int, metrics: Metrics) -> None:
    """Takes the metrics of a step that was just sent to the device."""
    self._flying.append((step, metrics))
    if len(self._flying) > self._lag:
      self._land()

  def drain(self) -> None:
    """Waits for the steps in flight."""
    while self._flying:
      self._land()

  def restart_clock(self) -> None:
    """Leaves what happened between two steps out of the speed."""
    self._clock, self._timed = None, 0

  def _land(self) -> None:
    step, metrics = self._flying.popleft()
    values = jax.device_get(metrics)
    self._require_finite(step, values)
    self.landed = step
    self._window.append(values)
    if self._clock is None:
      self._clock = time.perf_counter()  # from here: the first step compiled
    else:
      self._timed += 1
    if step % self._every == 0:
      means = {
        name: float(np.mean([values[name] for values in self._window]))
        for name in values
      }
      if self._timed:
        now = time.perf_counter()
        means["steps_per_second"] = self._timed / max(now - self._clock, 1e-9)
        self._clock, self._timed = now, 0
      self._window.clear()
      self.last = means
      self._log.write(step, "train", means)

  def _require_finite(self, step: int, values: Mapping[str, np.ndarray]) -> None:
    for player in self._players:
      for kind, word in (("loss", "loss"), ("grad_norm", "gradient")):
        value = float(values[metric_name(kind, player, self._players)])
        if not math.isfinite(value):
          # So that the last good one is on disk, and known.
          self._checkpoints.settle(self.landed)
          also = [name for name in values if not math.isfinite(values[name])]
          raise TokzooError(
            f"step {step}: the {word} of the player {player!r} is {value} (not finite: "
            f"{', '.join(also)}), so the run stopped; {self._checkpoints.intact()}: lower "
            "the learning rate, set clip_norm, or look at the data of this step."
          )


class _Watch:
  """Evaluations and pictures, each on its schedule and after the last step."""

  def __init__(
    self,
    recipe: Recipe,
    layout: Layout,
    rows: slice,
    batches: EvaluationBatches,
    first: Mapping[str, np.ndarray],
    log: Log,
  ):
    self._recipe = recipe
    self._log = log
    self._first = first
    placed = layout.placed.variables(use_ema=False)
    self._evaluate = make_evaluate(recipe.task, layout.mesh, placed, recipe.batch_size)
    self._draw = make_pictures(recipe.task, layout.mesh, placed, recipe.batch_size)
    self._batches: dict[str, Callable[[], Batches]] = {
      name: functools.partial(
        tokzoo.data.evaluation_batches,
        config.data,
        recipe.batch_size,
        rows,
        config.batches,
      )
      for name, config in recipe.evaluators.items()
    }
    for name, function in batches.items():
      if name not in recipe.evaluators:
        raise unknown("evaluator", name, recipe.evaluators)
      self._batches[name] = function
    self.last: dict[str, dict[str, float]] = {}

  def is_due(self, step: int) -> bool:
    """Whether anything is to be done after a step."""
    every = [config.every for config in self._recipe.evaluators.values()]
    last = step == self._recipe.steps
    return last or any(_due(step, e) for e in [*every, self._recipe.picture_every])

  def visit(self, state: TrainState, step: int) -> None:
    """Does what is due after a step."""
    last = step >= self._recipe.steps
    for name, config in self._recipe.evaluators.items():
      if last or _due(step, config.every):
        values = self._evaluate(state.variables(config.use_ema), self._batches[name]())
        self.last[name] = values
        self._log.write(step, name, values)
    if last or _due(step, self._recipe.picture_every):
      batch = self._first
      for function in self._batches.values():
        batch = next(iter(function()))
        break
      for name, image in self._draw(state.variables(), batch).items():
        self._log.picture(step, name, image)


def _check(recipe: Recipe) -> None:
  """Raises `TokzooError` for numbers that no run can have."""
  for name in ("batch_size", "steps", "accumulate", "log_every", "keep"):
    if getattr(recipe, name) < 1:
      raise TokzooError(
        f"{name} is {getattr(recipe, name)}, but must be at least 1: mend the recipe."
      )
  if not 0 <= recipe.seed < 2**32:
    raise TokzooError(
      f"seed is {recipe.seed}, but must be in [0, 2^32): choose another."
    )
  if recipe.ema is not None and not 0.0 <= recipe.ema < 1.0:
    raise TokzooError(
      f"ema is {recipe.ema}, but a decay is in [0, 1): choose one, such as 0.999."
    )


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _peek(batches: DataIterator, rows: int) -> dict[str, np.ndarray]:
  """The first batch, which is then given again."""
  state = batches.get_state()
  first = host_arrays(_next(batches, 0))
  batches.set_state(state)
  for name, array in first.items():
    if array.ndim == 0 or len(array) != rows:
      raise TokzooError(
        f"the data gives {name} of shape {list(array.shape)}, but this process makes "
        f"{rows} rows of each batch: give the loader rows=host_rows(mesh, batch_size)."
      )
  return first


def _next(batches: DataIterator, done: int) -> Mapping[str, Any]:
  try:
    with hosts.patience(f"batch {done + 1}"):
      return next(batches)
  except StopIteration:
    raise TokzooError(
      f"the data ended after {done} batches: use data that repeats, or fewer steps."
    ) from None


def _global_shapes(
  first: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  return {
    name: jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype)
    for name, array in first.items()
  }
