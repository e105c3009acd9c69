"""A job: one training command for one machine, and what every scheduler needs to know of it.

A scheduler is a frozen dataclass of settings with `render(job)`: text of files and the
command that hands them over. Rendering is pure, so a dry run shows exactly what would be
run. Nothing of the environment goes into a file: credentials stay where the schedulers'
own tools keep them.
"""

import dataclasses
import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.machines import Topology
from tokzoo.train.hosts import LOST

COORDINATOR_PORT = 8476
"""Where process 0 listens, on machines whose scheduler names none."""

MISTAKE = 2
"""Exit code of a user's mistake: starting again would repeat it."""


@dataclasses.dataclass(frozen=True)
class Job:
  """What is to run.

  name:      lower-case letters, digits and hyphens
  words:     the command of one process: tokzoo train ...
  topology:  the machine
  processes: of the run; each has the same number of chips
  folder:    for the job's files, relative to the working directory
  setup:     shell command that every host runs first; "" for none
  restarts:  how often the run is started again after a process was lost
  """

  name: str
  words: tuple[str, ...]
  topology: Topology
  processes: int
  folder: Path
  setup: str = ""
  restarts: int = 3

  @property
  def command(self) -> str:
    """The words as a line of shell; they meet the others where there are several."""
    return shlex.join(self.words + (("--distributed",) if self.processes > 1 else ()))

  @property
  def environment(self) -> dict[str, str]:
    """What every process needs: for processors, how many devices to simulate."""
    if self.topology.chip.platform != "cpu":
      return {}
    count = self.topology.num_chips // self.processes
    return {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
    }

  def refuse(self, scheduler: str, why: str) -> TokzooError:
    """The error for a machine that a scheduler does not have."""
    return TokzooError(f"{scheduler} cannot run {self.name} on {self.topology}: {why}.")


@dataclasses.dataclass(frozen=True)
class Rendered:
  """What a scheduler gets.

  files:     path -> text
  commands:  argument vectors, to be run one after the other
  """

  files: Mapping[Path, str]
  commands: tuple[tuple[str, ...], ...]

  def show(self) -> str:
    """Files and commands as people read them."""
    parts = [f"# ---- {path}\n{text.rstrip()}\n" for path, text in self.files.items()]
    lines = "\n".join(shlex.join(command) for command in self.commands)
    return "\n".join([*parts, f"# ---- run\n{lines}"])


class Scheduler(Protocol):
  """Settings of one way to run a job."""

  def render(self, job: Job) -> Rendered:
    """The job's files and commands.

    Raises:
      TokzooError: this scheduler has no such machine, or a setting is missing.
    """
    ...


def submit(rendered: Rendered) -> int:
  """Writes the files and runs the commands; the first exit code that is not 0, or 0.

  Raises:
    TokzooError: a tool that is not installed, or files that cannot be written.
  """
  for command in rendered.commands:
    if shutil.which(command[0]) is None:
      raise TokzooError(
        f"{command[0]} is not installed here: run this where it is, or copy what --dry-run "
        "prints."
      )
  for path, text in rendered.files.items():
    write_atomic(path, text.encode())
  for command in rendered.commands:
    code = subprocess.run(command, check=False).returncode
    if code:
      return code
  return 0


def script(job: Job, *parts: str) -> str:
  """A bash script from its parts; empty ones are left out."""
  title = f"# {job.name} on {job.topology}, written by tokzoo launch."
  body = "\n".join(part.strip("\n") for part in parts if part)
  return f"#!/bin/bash\n{title}\n{body}\n"


def exports(environment: Mapping[str, str]) -> str:
  """Lines that set variables, for values that are known here."""
  return "\n".join(f"export {k}={shlex.quote(v)}" for k, v in environment.items())


def again(job: Job) -> str:
  """Lines that run the command, and again after another host was lost.

  Every host does so by itself; they wait for each other when they start.
  """
  return f"""
for attempt in $(seq 0 {job.restarts}); do
  status=0
  {job.command} || status=$?
  # 0: done. {MISTAKE}: a mistake, which a new start would repeat. Else, as {LOST}: a host was lost.
  if [[ $status -eq 0 || $status -eq {MISTAKE} ]]; then
    break
  fi
  echo "attempt $attempt ended with $status" >&2
  sleep 10
done
exit $status"""


def yaml(value: str | int | bool) -> str:
  """A scalar of YAML (JSON's are)."""
  return json.dumps(value)
