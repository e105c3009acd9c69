"""Watches the processes of one run, and says which one is to blame when it ends badly.

Three endings: all end well; one dies, and the others, whose collectives it leaves, have
`grace` seconds to say so before they are killed; one hangs, upon which jax ends the others
after its heartbeat timeout, and the one that still lives after `grace` is killed.
"""

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from tokzoo.launch.job import MISTAKE
from tokzoo.train.hosts import LOST

_VICTIM = (LOST, -signal.SIGABRT)
"""Exit codes of a process that another one's end has ended."""
_PAUSE = 0.05
"""Seconds between two looks."""


class Process(Protocol):
  """A child: `subprocess.Popen`, or as much of it as is used."""

  def poll(self) -> int | None:
    """Its exit code, negative for a signal; None while it lives."""
    ...

  def send_signal(self, sig: int) -> None:
    """Sends it a signal."""
    ...


@dataclasses.dataclass(frozen=True)
class Ended:
  """How the processes of a run ended.

  codes:  of each process; negative for a signal
  blame:  the process that was the first to end by itself, or hung; None if all are done,
          or none did
  hung:   whether that one had to be killed
  """

  codes: tuple[int, ...]
  blame: int | None = None
  hung: bool = False

  @property
  def code(self) -> int:
    """0 if all ended well, 2 after a user's mistake, else 1."""
    if not any(self.codes):
      return 0
    return MISTAKE if self._cause() == MISTAKE else 1

  @property
  def sentence(self) -> str:
    """What happened, naming the process."""
    if not any(self.codes):
      return f"all {len(self.codes)} processes are done"
    if self.blame is None:
      return "every process lost another one: the network between them failed"
    if self.hung:
      return f"process {self.blame} hung: the others lost it, and it was killed"
    code = self._cause()
    if code == 0:
      return f"process {self.blame} left the run before its end"
    if code < 0:
      return f"process {self.blame} was killed by {signal.Signals(-code).name}"
    return f"process {self.blame} failed with exit code {code}"

  def _cause(self) -> int:
    return 0 if self.blame is None else self.codes[self.blame]


def watch(
  processes: Sequence[Process],
  grace: float,
  asked_to_stop: Callable[[], bool] = lambda: False,
) -> Ended:
  """Waits until all have ended, and sees to it that they do once one has ended badly.

  Args:
    processes: by process id.
    grace: seconds between the first bad end and the end of all.
    asked_to_stop: when it turns True, all are told to save and stop (SIGTERM).

  Returns:
    How they ended. No process is left.
  """
  codes: dict[int, int] = {}  # in the order in which they ended
  deadline, told = float("inf"), False
  hung: list[int] = []
  while len(codes) < len(processes):
    living = [index for index in range(len(processes)) if index not in codes]
    for index in living:
      code = processes[index].poll()
      if code is not None:
        codes[index] = code
    now = time.monotonic()
    if deadline == float("inf") and any(codes.values()):
      deadline = now + grace
    if not told and asked_to_stop():
      told = True
      _signal([processes[i] for i in living], signal.SIGTERM)
    if now > deadline and not hung:
      hung = [index for index in living if index not in codes]
      _signal([processes[i] for i in hung], signal.SIGKILL)
    time.sleep(_PAUSE)
  in_order = tuple(codes[index] for index in range(len(processes)))
  if not any(in_order):
    return Ended(in_order)
  for index, code in codes.items():
    if code not in _VICTIM and index not in hung:
      return Ended(in_order, index)
  return Ended(in_order, hung[0] if hung else None, bool(hung))


def _signal(processes: Sequence[Process], number: int) -> None:
  for process in processes:
    if process.poll() is None:
      process.send_signal(number)
