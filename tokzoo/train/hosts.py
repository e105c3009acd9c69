"""Several processes: how they meet, what they must agree on, how they part.

The meeting place, the heartbeats and the barriers are those of `jax.distributed`. With one
process nothing is sent.

A process that has failed leaves at once (`joined`): its exit is what tells the others, who
would wait for it in a collective. They ask jax's coordination service which process it was,
say so, and leave with `LOST`, upon which a scheduler starts the job again. Where a process
hangs instead of dying, its heartbeats stop; after `lost_seconds` jax itself ends the others,
naming it (SIGABRT). Heartbeats come from a thread of their own, though: a process whose data
do not come has to end itself (`patience`).
"""

import contextlib
import contextvars
import dataclasses
import faulthandler
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax._src import distributed  # its coordination service has no public name
from jax.experimental import multihost_utils

from tokzoo.errors import TokzooError

LOST = 75
"""Exit code of a process that lost another one: EX_TEMPFAIL of sysexits.h, "try again"."""


@dataclasses.dataclass(frozen=True)
class Hosts:
  """How the processes of one run meet. What is None is found by jax itself on Cloud TPU,
  GKE and Slurm; elsewhere it is read from the environment."""

  coordinator: str | None = None
  """HOST:PORT of process 0; JAX_COORDINATOR_ADDRESS."""
  num_processes: int | None = None
  """How many there are; JAX_NUM_PROCESSES."""
  process_id: int | None = None
  """Which one this is, from 0; JAX_PROCESS_ID."""
  wait_seconds: int = 300
  """How long a process waits for the others to come."""
  lost_seconds: int = 100
  """Silence after which a process is taken for lost, and the run ends."""
  stuck_seconds: int = 1200
  """How long a process waits for its own data before it gives up."""


_PATIENCE: contextvars.ContextVar[float] = contextvars.ContextVar("stuck_seconds")


def join(hosts: Hosts) -> None:
  """Meets the other processes; returns when all are there.

  One that is still alone after `wait_seconds` is ended by jax (SIGABRT).

  Raises:
    TokzooError: nothing says where to meet, or who comes.
  """
  try:
    jax.distributed.initialize(
      hosts.coordinator,
      _number(hosts.num_processes, "JAX_NUM_PROCESSES"),
      _number(hosts.process_id, "JAX_PROCESS_ID"),
      initialization_timeout=hosts.wait_seconds,
      heartbeat_timeout_seconds=hosts.lost_seconds,
      shutdown_timeout_seconds=hosts.lost_seconds,
    )
  except (RuntimeError, ValueError) as error:
    raise TokzooError(
      f"the other hosts cannot be met ({str(error).splitlines()[0]}): outside Cloud TPU, "
      "Slurm and Kubernetes give --hosts.coordinator HOST:PORT, --hosts.num-processes and "
      "--hosts.process-id, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
      "JAX_PROCESS_ID."
    ) from error


@contextlib.contextmanager
def joined(hosts: Hosts) -> Iterator[None]:
  """A run of several processes: meets the others, and leaves at once if the run fails.

  It leaves the process, with 2 after a user's mistake, `LOST` after another process was
  lost, and 1 after anything else: jax would first wait for the others, and they for it.
  """
  join(hosts)
  _PATIENCE.set(hosts.stuck_seconds)
  try:
    yield
  except (Exception, KeyboardInterrupt) as error:
    lost = find_lost(error, hosts.lost_seconds)
    # jax.process_index() would open the devices first, together with the others.
    state = distributed.global_state
    me = f"tokzoo: process {state.process_id} of {state.num_processes}"
    if lost:
      print(
        f"{me} stops: {lost} was lost; start the run again to continue from its newest "
        "whole checkpoint.",
        file=sys.stderr,
      )
      code = LOST
    elif isinstance(error, TokzooError):
      print(f"{me}: {error}", file=sys.stderr)
      code = 2
    else:
      traceback.print_exc()
      print(f"{me} failed.", file=sys.stderr)
      code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def patience(what: str) -> Iterator[None]:
  """Ends this process if the block takes longer than `stuck_seconds` of a joined run.

  Around what one process does alone while the others wait for it.

  Args:
    what: that is waited for, for the message.
  """
  seconds = _PATIENCE.get(None)
  if seconds is None or jax.process_count() == 1:
    yield
    return

  def give_up() -> None:
    faulthandler.dump_traceback()
    print(
      f"tokzoo: process {jax.process_index()} of {jax.process_count()} gives up: {what} did "
      f"not come within {seconds:g} s, and the others wait.",
      file=sys.stderr,
      flush=True,
    )
    os._exit(1)

  timer = threading.Timer(seconds, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def find_lost(error: BaseException, seconds: float) -> str | None:
  """Which process an error comes from that another one's end may have caused.

  Args:
    error: that ended this process's run.
    seconds: after which silence means that a process is lost.

  Returns:
    "process 2", or "process 1, process 2"; None if all are alive, or if the error has
    nothing to do with them.
  """
  client = distributed.global_state.client
  if client is None or not _comes_from_outside(error):
    return None
  try:
    # Who is lost can come no more; who fails alike comes at once; who fails alone finds out
    # after the time that heartbeats take that all others are well.
    client.wait_at_barrier("tokzoo: who is lost", int(1000 * (seconds + 5)))
  except jax.errors.JaxRuntimeError as verdict:
    text = str(verdict)
    numbers = re.findall(r"[Tt]ask (\d+) heartbeat|sending heartbeats\):\n(\d+)", text)
    if numbers:
      return ", ".join(
        f"process {n}" for n in sorted({a or b for a, b in numbers}, key=int)
      )
    if "DEADLINE_EXCEEDED" not in text:
      return "process 0 (it coordinates the others)"
  return None


def is_first() -> bool:
  """True in the process that writes logs and tidies folders."""
  return jax.process_index() == 0


def any_host(flag: bool) -> bool:
  """True if the flag is set in any process. All processes must call it."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def any_name(name: str | None) -> str | None:
  """The name given in this process, or "a signal" if only another one has one."""
  return name or "a signal to another host" if any_host(name is not None) else None


def wait_for_all(name: str) -> None:
  """Returns when every process has come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _number(given: int | None, variable: str) -> int | None:
  """What was given, else what the environment says, else None."""
  return (
    given
    if given is not None or variable not in os.environ
    else int(os.environ[variable])
  )


def _comes_from_outside(error: BaseException) -> bool:
  """Whether an error, or one that it came from, was raised by the runtime: collectives,
  barriers and storage give a status ("UNAVAILABLE: ..."), of whatever type."""
  cause: BaseException | None = error
  while cause is not None:
    if isinstance(cause, jax.errors.JaxRuntimeError):
      return True
    if re.match(r"[A-Z]+(_[A-Z]+)*: ", str(cause)):
      return True
    cause = cause.__cause__ or cause.__context__
  return False
