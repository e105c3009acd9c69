"""Claims of a paper, measured at small scale: a sentence, a function, a verdict.

Claim("PSNR rises with the number of kept tokens", source="One-D-Piece, abstract",
      measure=psnr_by_prefix, holds=rises, seeds=(0, 1, 2))
"""

import contextvars
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tokzoo.contract import Task, Variables
from tokzoo.data import DataConfig, loader
from tokzoo.errors import TokzooError
from tokzoo.train.state import given_by

Numbers = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Claim:
  """One sentence of a paper that can be measured here.

  sentence:  what is claimed, with the bar
  source:    where: paper and section, or the sheet that sets the bar
  measure:   seed -> named numbers; trains what it needs, on real data
  holds:     whether one seed's numbers bear the sentence out
  setting:   data, model, steps: what the numbers stand for
  seeds:     each is measured; the verdict counts them
  needs:     raises a TokzooError where what it is measured on is not at hand
  """

  sentence: str
  source: str
  measure: Callable[[int], Numbers]
  holds: Callable[[Numbers], bool]
  setting: str
  seeds: tuple[int, ...] = (0, 1, 2)
  needs: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What came out of a claim: numbers and verdict by seed."""

  claim: Claim
  numbers: dict[int, dict[str, float]]
  held: dict[int, bool]

  @property
  def sentence(self) -> str:
    """ "holds for 3 of 3 seeds"."""
    return f"holds for {sum(self.held.values())} of {len(self.held)} seeds"

  @property
  def holds(self) -> bool:
    return all(self.held.values())

  def means(self) -> dict[str, float]:
    """Mean of every number over the seeds."""
    names = next(iter(self.numbers.values()))
    return {
      name: float(np.mean([numbers[name] for numbers in self.numbers.values()]))
      for name in names
    }


def judge(
  claim: Claim, say: Callable[[str], None] = lambda text: None, together: bool = False
) -> Verdict:
  """Measures a claim for every seed, one by one or `together`; `say` is told of each."""
  if together:
    measure = measure_together(claim.measure, claim.seeds).__getitem__
  else:
    measure = claim.measure
  numbers, held = {}, {}
  for seed in claim.seeds:
    found = {name: float(value) for name, value in measure(seed).items()}
    numbers[seed], held[seed] = found, bool(claim.holds(found))
    told = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    say(f"seed {seed}: {told}: {'holds' if held[seed] else 'does not hold'}")
  return Verdict(claim, numbers, held)


def rows(
  arrays: Mapping[str, np.ndarray], batch: int, seed: int
) -> Iterator[Mapping[str, Any]]:
  """An endless stream of random rows of arrays in memory."""
  rng = np.random.default_rng(seed)
  count = len(next(iter(arrays.values())))
  while True:
    chosen = rng.integers(count, size=batch)
    yield {name: values[chosen] for name, values in arrays.items()}


def kept_rows(
  data: DataConfig, count: int, batch: int, seed: int
) -> Iterator[Mapping[str, Any]]:
  """An endless stream of random rows of the first `count` records (about) of a shuffled pass.

  The pipeline makes some ten thousand small crops a second and core, which a small model on an
  accelerator outruns; these are made once, and kept.
  """
  each = min(count, 256)
  stream = loader(data, each, seed)
  first = [dict(next(stream)) for _ in range(-(-count // each))]
  arrays = {name: np.concatenate([part[name] for part in first]) for name in first[0]}
  return rows(arrays, batch, seed)


def fit(
  task: Task,
  batches: Iterator[Mapping[str, Any]],
  steps: int,
  seed: int,
  peak_lr: float = 2e-3,
) -> Variables:
  """Trains one player for a claim: Adam, 5 % warm-up, cosine to zero, clipping at 1.

  The trainer proper keeps runs; a claim needs only the weights at the end. In a thread of
  `measure_together` the model is trained in one program with those of the other seeds.
  """
  ask = _ASK.get()
  if ask is not None:
    wish = _Wish(task, batches, steps, seed, peak_lr)
    ask(wish)
    return wish.trained.result()
  init_rng, step_rng = jax.random.split(jax.random.key(seed))
  first = dict(next(batches))
  variables = {**jax.jit(task.init)(init_rng, first), **given_by(task)}
  optimizer, update = _update(task, steps, peak_lr)
  state, step = optimizer.init(variables["params"]), jax.jit(update)
  for index in range(steps):
    batch = first if index == 0 else dict(next(batches))
    variables, state = step(variables, state, batch, step_rng, np.int32(index))
  return variables


@dataclasses.dataclass
class _Wish:
  """What a seed's thread asks of `fit`."""

  task: Task
  batches: Iterator[Mapping[str, Any]]
  steps: int
  seed: int
  peak_lr: float
  trained: "Future[Variables]" = dataclasses.field(default_factory=Future)


_ASK: contextvars.ContextVar[Callable[[_Wish], None] | None] = contextvars.ContextVar(
  "ask", default=None
)
"""Whom `fit` asks in this thread."""


def measure_together(
  measure: Callable[[int], Numbers], seeds: Sequence[int]
) -> dict[int, Numbers]:
  """`measure` of every seed, each in a thread of its own; what they `fit` is trained in one
  program: a small model leaves most of an accelerator idle.

  Raises:
    TokzooError: the seeds do not train the same models in the same order.
  """
  said: dict[int, queue.SimpleQueue[Any]] = {
    seed: queue.SimpleQueue() for seed in seeds
  }

  def run(seed: int) -> None:
    _ASK.set(said[seed].put)
    try:
      said[seed].put(measure(seed))
    except BaseException as error:
      said[seed].put(error)

  for seed in seeds:
    threading.Thread(target=run, args=(seed,), daemon=True).start()
  while True:
    words = {seed: said[seed].get() for seed in seeds}
    wishes = [word for word in words.values() if isinstance(word, _Wish)]
    try:
      for word in words.values():
        if isinstance(word, BaseException):
          raise word
      if not wishes:
        return words
      alike = {(repr(w.task), w.steps, w.peak_lr) for w in wishes}
      if len(wishes) < len(words) or len(alike) > 1:
        raise TokzooError(
          "the seeds of this claim do not train the same models in the same order, so they "
          "cannot be trained together: measure them one by one."
        )
      trained = _fit_together(wishes)
    except BaseException as error:
      for wish in wishes:
        wish.trained.set_exception(error)
      raise
    for wish, variables in zip(wishes, trained, strict=True):
      wish.trained.set_result(variables)


def _fit_together(wishes: Sequence[_Wish]) -> list[Variables]:
  """`fit` with a first axis more, the seeds."""
  one = wishes[0]
  if len({wish.seed for wish in wishes}) == 1:
    # What all seeds share, a tokenizer say: they ask for the same training.
    return [fit(one.task, one.batches, one.steps, one.seed, one.peak_lr)] * len(wishes)
  task, steps, seeds = one.task, one.steps, [wish.seed for wish in wishes]

  def stacked(*leaves: Any) -> Any:
    stack = np.stack if isinstance(leaves[0], np.ndarray) else jnp.stack
    return stack(leaves)

  batches = (
    jax.tree.map(stacked, *map(dict, rows))
    for rows in zip(*(wish.batches for wish in wishes), strict=False)
  )
  keys = jax.vmap(jax.random.split)(jnp.stack([jax.random.key(seed) for seed in seeds]))
  first = next(batches)
  variables = dict(jax.jit(jax.vmap(task.init))(keys[:, 0], first))
  variables |= jax.tree.map(lambda leaf: jnp.stack([leaf] * len(seeds)), given_by(task))
  optimizer, update = _update(task, steps, one.peak_lr)
  state = jax.vmap(optimizer.init)(variables["params"])
  step = jax.jit(jax.vmap(update, in_axes=(0, 0, 0, 0, None)))
  for index in range(steps):
    batch = first if index == 0 else next(batches)
    variables, state = step(variables, state, batch, keys[:, 1], np.int32(index))
  return [jax.tree.map(lambda leaf, i=i: leaf[i], variables) for i in range(len(seeds))]


def _update(
  task: Task, steps: int, peak_lr: float
) -> tuple[optax.GradientTransformation, Callable[..., tuple[Variables, Any]]]:
  """The optimizer, and one step with it; nothing of the seed is in the program."""
  schedule = optax.warmup_cosine_decay_schedule(0.0, peak_lr, steps // 20 + 1, steps)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))

  def update(variables, state, batch, rng, index):
    def loss(params):
      key = jax.random.fold_in(rng, index)
      found = task.losses({**variables, "params": params}, batch, key, index)
      return found.players["model"], found.updates

    gradient, updates = jax.grad(loss, has_aux=True)(variables["params"])
    change, state = optimizer.update(gradient, state, variables["params"])
    params = optax.apply_updates(variables["params"], change)
    return {**variables, **updates, "params": params}, state

  return optimizer, update
