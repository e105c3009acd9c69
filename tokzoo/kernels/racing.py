"""Timing two programs turn by turn, in one process, on the same inputs.

A machine slows down and speeds up by itself; what is run in turns suffers the same. So a
benchmark here is a race: each turn every contestant runs once, and what is reported is the
median over turns, and its ratio to the median of a named peer.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

_REST = 0.25
"""Seconds between runs: OpenMP's threads (faiss, torch) keep a core busy for 0.2 s after their
work is done, at the cost of whoever comes next."""


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
    peers: name -> a call without arguments that returns when it is done.
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
  times: dict[str, list[float]] = {name: [] for name in runs}
  for turn in range(turns + 1):
    for name, run in runs.items():
      time.sleep(_REST)
      begin = time.perf_counter()
      run()
      if turn:
        times[name].append(time.perf_counter() - begin)
  return times


def jitted(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
  """A peer of `race` that is a jax program."""
  return _bind(jax.jit(function).lower(*arguments).compile(), arguments)


def temporary_bytes(compiled: Any) -> int | None:
  """What a compiled program needs beyond inputs and outputs."""
  memory = compiled.memory_analysis()
  return None if memory is None else int(memory.temp_size_in_bytes)


def _bind(compiled: Any, arguments: tuple[Any, ...]) -> Callable[[], Any]:
  return lambda: jax.block_until_ready(compiled(*arguments))
