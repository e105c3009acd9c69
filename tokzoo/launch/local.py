"""This machine: the processes of a run as children of this one.

The way to see a run of several processes before a pod is rented, and to use one node without
a scheduler. Each writes `process-I.log` in the job's folder, process 0 to the terminal.
A run whose process dies or hangs is ended and started again, from its newest checkpoint.
"""

import contextlib
import dataclasses
import socket
import subprocess
import sys
from collections.abc import Sequence

from tokzoo.errors import TokzooError
from tokzoo.launch.job import MISTAKE, Job, Rendered
from tokzoo.launch.watch import watch
from tokzoo.train.signals import stop_requests


@dataclasses.dataclass(frozen=True)
class Local:
  """Processes of this machine."""

  wait_seconds: int = 60
  """How long a process waits for the others to come."""
  lost_seconds: int = 30
  """Silence after which a process is taken for lost."""
  grace_seconds: int = 15
  """What the others have to end by themselves before they are killed."""

  def render(self, job: Job) -> Rendered:
    """See `Scheduler`; the commands are those of the processes, which run at once."""
    topology = job.topology
    if topology.num_hosts > 1:
      raise job.refuse("local", "this is one machine; name a topology of one host")
    if topology.chip.platform != "cpu" and job.processes > 1:
      raise job.refuse("local", "one process feeds all chips of a host")
    python = (sys.executable, "-m", "tokzoo")
    environment = [f"{name}={value}" for name, value in job.environment.items()]
    if job.processes == 1:
      return Rendered({}, (("env", *environment, *python, *job.words[1:]),))
    meeting = (
      "--distributed",
      f"--hosts.coordinator=127.0.0.1:{free_port()}",
      f"--hosts.num-processes={job.processes}",
      f"--hosts.wait-seconds={self.wait_seconds}",
      f"--hosts.lost-seconds={self.lost_seconds}",
    )
    commands = tuple(
      (
        "env",
        *environment,
        *python,
        *job.words[1:],
        *meeting,
        f"--hosts.process-id={i}",
      )
      for i in range(job.processes)
    )
    return Rendered({}, commands)

  def run(self, job: Job) -> int:
    """Runs the job to its end.

    Returns:
      0; 2 after a user's mistake, which one of the processes has told; 1 if the run still
      fails after `job.restarts`.

    Raises:
      TokzooError: the job's folder cannot be written.
    """
    with stop_requests() as request:
      for attempt in range(job.restarts + 1):
        # A new port each time: the old one may still be closing.
        with self._started(job, self.render(job).commands) as processes:
          ended = watch(processes, self.grace_seconds, lambda: request.name is not None)
        if ended.code == 0 or request.name is not None:
          break
        left = job.restarts - attempt if ended.code != MISTAKE else 0
        print(
          f"tokzoo: {ended.sentence} (its log: {job.folder}/process-*.log); "
          + (
            f"starting again, {left} times at most." if left else "not started again."
          ),
          file=sys.stderr,
          flush=True,
        )
        if not left:
          break
    return ended.code

  @contextlib.contextmanager
  def _started(self, job: Job, commands: Sequence[Sequence[str]]):
    try:
      job.folder.mkdir(parents=True, exist_ok=True)
      with contextlib.ExitStack() as stack:
        logs = [
          stack.enter_context(open(job.folder / f"process-{index}.log", "a"))
          for index in range(1, len(commands))
        ]
        yield [
          subprocess.Popen(command, stdout=log, stderr=log)
          for command, log in zip(commands, [None, *logs])
        ]
    except OSError as error:
      raise TokzooError(
        f"cannot write {job.folder}: {error.strerror}; name another --folder."
      ) from error


def free_port() -> int:
  """A port of this machine that nobody listens at."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]
