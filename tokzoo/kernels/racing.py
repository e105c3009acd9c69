"""Timing two programs turn by turn, in one process, on the same inputs.

A machine slows down and speeds up by itself; what is run in turns suffers the same. So a
benchmark here is a race: each turn every contestant runs once, and what is reported is the
median over turns, and its ratio to the median of a named peer.

An accelerator works behind the host: there a turn is several runs, and one wait for the last.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

_REST = 0.25
"""Seconds between runs: OpenMP's threads (faiss, torch) keep a core busy for 0.2 s after their
work is done, at the cost of whoever comes next."""

_TURN = 0.02
"""Seconds that a turn of an accelerator lasts at least, most of a hundred runs."""


@dataclasses.dataclass(frozen=True)
class Row:
  """One implementation against one peer.

  op:              what is computed
  spec:            on which shapes
  implementation:  ours
  seconds:         median over turns
  peer:            the name of the other one
  peer_seconds:    its median over the same turns
  ratio:           seconds / peer_seconds: below 1, ours is faster
  peak_bytes:      what the compiled program needs beyond inputs and outputs; None: not known
  """

  op: str
  spec: str
  implementation: str
  seconds: float
  peer: str
  peer_seconds: float
  ratio: float
  peak_bytes: int | None


def race(
  op: str,
  spec: str,
  ours: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]],
  peers: Mapping[str, Callable[[], Any]],
  turns: int = 5,
) -> list[Row]:
  """Runs all in turns, once before the clock starts.

  Args:
    op: what is computed.
    spec: on which shapes.
    ours: name -> a function for `jax.jit` and its arguments.
    peers: name -> a call without arguments, of jax or of torch or one that returns when it
      is done.
    turns: how often each runs.

  Returns:
    A row for each of ours against each peer.
  """
  runs: dict[str, Callable[[], Any]] = dict(peers)
  peaks = {}
  for name, (function, arguments) in ours.items():
    compiled = jax.jit(function).lower(*arguments).compile()
    peaks[name] = temporary_bytes(compiled)
    runs[name] = _bind(compiled, arguments)
  times = take_turns(runs, turns)
  median = {name: statistics.median(seconds) for name, seconds in times.items()}
  return [
    Row(
      op,
      spec,
      name,
      median[name],
      peer,
      median[peer],
      median[name] / median[peer],
      peaks[name],
    )
    for name in ours
    for peer in peers
  ]


def take_turns(
  runs: Mapping[str, Callable[[], Any]], turns: int
) -> dict[str, list[float]]:
  """Seconds of each call in each turn; all run once before the clock starts."""
  is_host = jax.default_backend() == "cpu"
  repeats = dict.fromkeys(runs, 1)
  times: dict[str, list[float]] = {name: [] for name in runs}
  for turn in range(turns + 1):
    for name, run in runs.items():
      if is_host:
        time.sleep(_REST)
      elif not turn:
        _timed(run, 1)  # what a first run of all loads and compiles
      seconds = _timed(run, repeats[name])
      if turn:
        times[name].append(seconds)
      elif not is_host:
        repeats[name] = max(1, min(100, round(_TURN / seconds)))
  return times


def _timed(run: Callable[[], Any], repeats: int) -> float:
  """Seconds of a run: of so many in a row, until the last is done."""
  begin = time.perf_counter()
  made = None
  for _ in range(repeats):
    made = run()
  jax.block_until_ready(made)
  torch = sys.modules.get("torch")
  if torch is not None and torch_device() == "cuda":
    torch.cuda.synchronize()
  return (time.perf_counter() - begin) / repeats


def torch_device() -> str:
  """Where peers of torch run: on the GPU where ours does, else on the CPU."""
  import torch

  return (
    "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
  )


def jitted(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
  """A peer of `race` that is a jax program."""
  return _bind(jax.jit(function).lower(*arguments).compile(), arguments)


def temporary_bytes(compiled: Any) -> int | None:
  """What a compiled program needs beyond inputs and outputs."""
  memory = compiled.memory_analysis()
  return None if memory is None else int(memory.temp_size_in_bytes)


def _bind(compiled: Any, arguments: tuple[Any, ...]) -> Callable[[], Any]:
  return lambda: compiled(*arguments)
