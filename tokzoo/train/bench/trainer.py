"""The trainer measured: its step, beside PyTorch's; what the loop adds; how long XLA compiles.

  step      the jitted step alone, turn by turn with the peers, medians
  loop      the same step within `tokzoo.train.train`: data, log lines, checkpoints. What it
            takes longer than the step alone is lost outside of it
  compile   tracing and compiling the step, with an empty cache and with a full one

A step alone is timed in blocks of as many as the loop keeps in flight, so that both are
sent ahead alike.
"""

import contextlib
import dataclasses
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tokzoo.data
from tokzoo.data import DataConfig
from tokzoo.kernels.racing import take_turns
from tokzoo.tokenizers.image.instella_t2i import WEIGHTS, Config
from tokzoo.train.loop import train
from tokzoo.train.mesh import make_mesh, put_batch
from tokzoo.train.recipe import MeshShape, Optimizer, Recipe
from tokzoo.train.state import lay_out, make_state
from tokzoo.train.step import make_step
from tokzoo.train.tasks import Reconstruction

_BLOCK = 4
"""Steps that are timed at once."""

MODEL = Config(
  image_size=64,
  patch=8,
  num_tokens=32,
  bits=16,
  width=128,
  layers=3,
  head_dim=32,
  down_after=(),
  decoder_width=128,
  decoder_layers=3,
  decoder_head_dim=32,
  up_after=(),
  rope_dims=(8, 12, 12),
  span=None,
)
"""A tiny TiTok-like tokenizer: 64 patches and 32 latent tokens, 3 + 3 blocks."""


@dataclasses.dataclass(frozen=True)
class StepRow:
  """One way to do the same step.

  seconds:          of one step, median over the turns
  ratio:            our step's time over this one's: below 1, ours is faster
  first_seconds:    of the first step, compiling included
  """

  name: str
  seconds: float
  examples_per_second: float
  ratio: float
  first_seconds: float


@dataclasses.dataclass(frozen=True)
class LoopReport:
  """A run of the trainer.

  steps:              that were timed
  seconds_per_step:   within the loop, median of steps without log line or save, and the
                      share of a log line that falls on a step
  step_seconds:       of the step alone, median of measurements before and after
  lost:               share of the loop's time outside the step: 1 - step / loop, saves apart
  data_wait:          share of the loop's time that it waited for batches
  log_seconds:        that a log line takes
  save_steps:         how long a save holds the loop up: median, in steps
  save_longest_steps: the longest that a single one of the steps beside its writing takes longer
  save_costs_steps:   the same with what its writing and reading back, on the same cores,
                      take from the steps beside them
  saves:              how many saves there were
  """

  steps: int
  seconds_per_step: float
  step_seconds: float
  lost: float
  data_wait: float
  log_seconds: float
  save_steps: float
  save_longest_steps: float
  save_costs_steps: float
  saves: int


@dataclasses.dataclass(frozen=True)
class Report:
  """All of it; `compile_seconds` by "cold" and "warm"; `left_out`: peers that are not here."""

  batch_size: int
  parameters: int
  rows: tuple[StepRow, ...]
  loop: LoopReport
  compile_seconds: dict[str, float]
  left_out: str | None


def recipe_of(
  batch_size: int = 8, steps: int = 300, model: Config = MODEL, save_every: int = 60
) -> Recipe:
  """The benchmark's recipe: photographs, AdamW, saves far more often than anybody needs."""
  return Recipe(
    system="instella-t2i",
    name="bench",
    task=Reconstruction(model=model, distance="l2"),
    data=DataConfig(
      source="photos", crop="random", size=model.image_size, repeat=1000, threads=1
    ),
    batch_size=batch_size,
    steps=steps,
    optimizers={
      "model": Optimizer(peak_lr=1e-4, schedule="constant", weight_decay=0.01)
    },
    log_every=5,
    save_every=save_every,
    mesh=MeshShape(1, 1),
  )


def bench(turns: int = 5, batch_size: int = 8, steps: int = 300) -> Report:
  """Measures all of it on one device.

  Args:
    turns: how often each way to do a step is timed, in blocks.
    batch_size: B.
    steps: of the loop's run; at least 150, for two saves.
  """
  recipe = recipe_of(batch_size, max(steps, 150))
  compile_seconds = compile_times(recipe)
  ours = OurStep(recipe)
  runs: dict[str, Callable[[], Any]] = {"tokzoo": ours}
  first = {"tokzoo": ours.first_seconds}
  left_out = missing_peer()
  if left_out is None:
    for name, step in _peers(recipe, ours).items():
      begin = time.perf_counter()
      step()
      first[name] = time.perf_counter() - begin
      runs[name] = _block(step)
  before = take_turns(runs, turns)
  loop = run_loop(recipe, lambda: statistics.median(_alone(ours, turns)))
  seconds = {name: statistics.median(times) / _BLOCK for name, times in before.items()}
  rows = tuple(
    StepRow(
      name, each, batch_size / each, seconds["tokzoo"] / each, first_seconds=first[name]
    )
    for name, each in seconds.items()
  )
  parameters = sum(leaf.size for leaf in jax.tree.leaves(ours.state.params))
  return Report(batch_size, parameters, rows, loop, compile_seconds, left_out)


class OurStep:
  """The trainer's jitted step on one batch; called, it does a block of steps.

  weights:  before the first step, by published name
  loss:     of the last step
  """

  def __init__(self, recipe: Recipe):
    mesh = make_mesh(recipe.mesh, jax.devices()[:1])
    loader = tokzoo.data.loader(recipe.data, recipe.batch_size, recipe.seed)
    with contextlib.closing(loader):
      batch = next(loader)
    self.image = batch["image"]
    layout = lay_out(recipe, batch, mesh)
    self.batch = put_batch(batch, mesh, recipe.batch_size)
    self.state = make_state(recipe, layout, self.batch)
    self.weights = WEIGHTS.to_authors(jax.device_get(self.state.variables()))
    self._step = make_step(recipe, layout)
    begin = time.perf_counter()
    self.loss = self._once()
    self.first_seconds = time.perf_counter() - begin

  def __call__(self) -> None:
    for _ in range(_BLOCK - 1):
      self.state, _ = self._step(self.state, self.batch)
    self.loss = self._once()

  def _once(self) -> float:
    self.state, metrics = self._step(self.state, self.batch)
    return float(metrics["loss"])


def run_loop(recipe: Recipe, alone: Callable[[], float]) -> LoopReport:
  """Runs the trainer and compares it with the step alone.

  Args:
    recipe: of `recipe_of`.
    alone: measures the seconds of one step; called before and after the run.
  """
  begin_alone = alone()
  loader = tokzoo.data.loader(recipe.data, recipe.batch_size, recipe.seed)
  with tempfile.TemporaryDirectory() as out, contextlib.closing(loader):
    stamped = _Stamped(loader)
    mesh = make_mesh(recipe.mesh, jax.devices()[:1])
    train(recipe, Path(out) / "run", mesh=mesh, batches=stamped, progress=False)
  step_seconds = statistics.median([begin_alone, alone()])
  return _report(recipe, stamped.stamps, step_seconds)


def _report(
  recipe: Recipe, stamps: Sequence[tuple[float, float]], step_seconds: float
) -> LoopReport:
  """Reads a run from the times at which batches were asked for and came."""
  # The first batch is only looked at; then batch t + 1 is asked for when step t has been
  # sent and what follows it is done: interval t belongs to step t.
  asked = np.diff([begin for begin, _ in stamps])
  waits = np.array([end - begin for begin, end in stamps])[: len(asked)]
  number = np.arange(len(asked))
  plain = number > _BLOCK  # before, programs are compiled and steps in flight fill up
  logged = plain & (number % recipe.log_every == 0)
  at_save = [s for s in number[plain] if s % recipe.save_every == 0]
  shadow = recipe.save_every // 2  # by then a save is written and read back
  is_line = logged.copy()
  for save in at_save:
    logged[save : save + shadow] = plain[save : save + shadow] = False
  usual = float(np.median(asked[plain & ~logged]))
  line = max(float(np.median(asked[logged])) - usual, 0.0)

  def held(save: int, steps: int) -> float:
    """What these steps took longer than as many others."""
    lines = is_line[save : save + steps].sum() * line
    return float((asked[save : save + steps].sum() - lines) / usual) - steps

  def longest(save: int) -> float:
    """What the slowest of the steps after a save took longer than the usual one."""
    return float(asked[save : save + shadow].max() / usual) - 1

  whole = [save for save in at_save if save + shadow <= len(asked)]
  seconds = usual + line / recipe.log_every
  return LoopReport(
    steps=int(plain.sum()),
    seconds_per_step=seconds,
    step_seconds=step_seconds,
    lost=1 - step_seconds / seconds,
    data_wait=float(waits[plain].sum() / asked[plain].sum()),
    log_seconds=line,
    # A save waits for the steps in flight; the steps after it then find nobody to wait for.
    save_steps=statistics.median(held(save, _BLOCK) for save in whole),
    save_longest_steps=statistics.median(longest(save) for save in whole),
    save_costs_steps=statistics.median(held(save, shadow) for save in whole),
    saves=len(whole),
  )


def compile_times(recipe: Recipe) -> dict[str, float]:
  """Seconds to trace and compile the step: "cold" with an empty cache, "warm" with a full
  one, as at the second start of a run."""
  mesh = make_mesh(recipe.mesh, jax.devices()[:1])
  model = recipe.task.model
  shape = (recipe.batch_size, model.image_size, model.image_size, model.channels)
  batch = {"image": jax.ShapeDtypeStruct(shape, np.float32)}
  found = {}
  with _empty_cache():
    for name in ("cold", "warm"):
      jax.clear_caches()
      layout = lay_out(recipe, batch, mesh)
      begin = time.perf_counter()
      make_step(recipe, layout).lower(layout.shapes, batch).compile()
      found[name] = time.perf_counter() - begin
  return found


def missing_peer() -> str | None:
  """Why there are no peers, None if there are."""
  if importlib.util.find_spec("torch") is None:
    return "PyTorch is not installed: pip install torch"
  return None


def _peers(recipe: Recipe, ours: OurStep) -> dict[str, Callable[[], float]]:
  from tokzoo.train.bench.peers import instella_t2i as peer

  optimizer = recipe.optimizers["model"]
  return {
    name: peer.make_step(
      recipe.task.model,
      ours.image,
      ours.weights,
      optimizer.peak_lr,
      optimizer.weight_decay,
      is_compiled=is_compiled,
    )
    for name, is_compiled in (("PyTorch", False), ("PyTorch, compiled", True))
  }


def _block(step: Callable[[], Any]) -> Callable[[], None]:
  def run() -> None:
    for _ in range(_BLOCK):
      step()

  return run


def _alone(ours: OurStep, turns: int) -> list[float]:
  """Seconds of one step, a few times, without rests: as in the loop."""
  times = []
  for _ in range(turns):
    begin = time.perf_counter()
    ours()
    times.append((time.perf_counter() - begin) / _BLOCK)
  return times


class _Stamped:
  """A loader that notes when each batch is asked for and when it comes."""

  def __init__(self, loader: Any):
    self._loader = loader
    self.stamps: list[tuple[float, float]] = []

  def __next__(self) -> Mapping[str, Any]:
    begin = time.perf_counter()
    batch = next(self._loader)
    self.stamps.append((begin, time.perf_counter()))
    return batch

  def get_state(self) -> Any:
    return self._loader.get_state()

  def set_state(self, state: Any) -> None:
    self._loader.set_state(state)


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
  """A compilation cache of its own, empty at first, that keeps everything."""
  from jax.experimental.compilation_cache import compilation_cache

  settings = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  with tempfile.TemporaryDirectory() as folder:
    settings["jax_compilation_cache_dir"] = folder
    try:
      for name, value in settings.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()
      yield
    finally:
      for name, value in before.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()
