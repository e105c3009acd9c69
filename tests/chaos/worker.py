"""Starts runs of several processes cheaply, and strikes them: `python -m tests.chaos.worker`.

Reads one attempt a line, as JSON, forks its processes, watches them as `tokzoo launch` does,
and answers how they ended. No device is opened before a fork, so a child is a whole process
that is there in a fraction of a second. Every child strikes itself, at the moment that the
fault names: from a thread that looks at the run directory where that is the moment.
"""

import dataclasses
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.chaos.faults import Fault
from tests.train.tasks import AutoEncoder, Linear, Rows, held_out, make_recipe
from tokzoo.data import host_rows
from tokzoo.launch.local import free_port
from tokzoo.launch.watch import watch
from tokzoo.train import MeshShape, make_mesh, train
from tokzoo.train.checkpoint import Checkpoints
from tokzoo.train.hosts import Hosts, joined

STEPS = 12
WAIT, LOST, STUCK, GRACE = 12, 5, 8, 9
"""Seconds: to meet; of silence; without data; and for the others, after the first bad end."""
LATE, PAUSE = 5.0, 1.5
"""Seconds that a late process comes late, and that a paused one stands still."""


@dataclasses.dataclass(frozen=True)
class Attempt:
  """One start of a run.

  out:        run directory
  processes:  of two devices each
  fault:      what strikes it
  """

  out: str
  processes: int = 4
  fault: Fault | None = None


def chaos_recipe(devices: int):
  """Random draws, a collection, EMA and AdamW over both axes; a save at every fourth step."""
  return make_recipe(
    task=Linear(AutoEncoder(hidden=64, depth=0), noise=0.1),
    batch_size=16,
    ema=0.9,
    steps=STEPS,
    save_every=4,
    log_every=2,
    mesh=MeshShape(2, devices // 2),
  )


class Striker:
  """Does to this process what a fault says."""

  def __init__(self, fault: Fault | None, index: int, out: Path):
    self._fault = fault if fault is not None and fault.process == index else None
    self._out = out

  def reach(self, moment: str) -> None:
    """Called by the process at its moments."""
    if self._fault is not None and self._fault.moment == moment:
      self._strike()

  def lie_in_wait(self) -> None:
    """Strikes from a thread when the run directory shows that the moment has come."""
    if self._fault is None:
      return
    folder = self._out / "checkpoints"
    signs: dict[str, Callable[[], bool]] = {
      f"while step {step} is written": lambda step=step: any(
        folder.glob(f"{step:08d}*orbax-checkpoint-tmp*/*")
      )
      for step in (4, 8)
    }
    signs["when step 8 is written"] = (folder / f"{8:08d}").is_dir
    sign = signs.get(self._fault.moment)
    if self._fault.deed in ("disk full", "slow disk"):
      self._strike()
    elif sign is not None:
      threading.Thread(target=self._wait_for, args=(sign,), daemon=True).start()

  def _wait_for(self, sign: Callable[[], bool]) -> None:
    while not sign():
      time.sleep(0.0005)
    self._strike()

  def _strike(self) -> None:
    assert self._fault is not None
    (self._out / "struck").write_text(str(time.time()))
    match self._fault.deed:
      case "killed":
        os.kill(os.getpid(), signal.SIGKILL)
      case "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
      case "paused":
        pid = os.getpid()
        if os.fork() == 0:  # somebody must wake it
          time.sleep(PAUSE)
          os.kill(pid, signal.SIGCONT)
          os._exit(0)
        os.kill(pid, signal.SIGSTOP)
      case "told to stop":
        os.kill(os.getpid(), signal.SIGTERM)
      case "late":
        time.sleep(LATE)
      case "absent":
        os._exit(0)
      case "without data":
        time.sleep(3600)
      case "failing":
        raise RuntimeError("the disk of this host's data is gone")
      case "slow disk":
        os.environ["SLOW_DISK_MS"] = os.environ["SLOW_DISK_PROCESS_MS"]
      case "disk full":
        # Writes fail with "File too large"; no signal asks for more.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


class StruckRows(Rows):
  """Training rows that tell the moments of a step."""

  def __init__(self, striker: Striker, batch_size: int, rows: slice):
    super().__init__(batch_size, rows)
    self._striker = striker
    self._peeked = False

  def __next__(self):
    if self._peeked and self.taken == 0:
      self._striker.reach("before the first step")
    self._peeked = True
    if self.taken == 5:
      self._striker.reach("in step 6")
    return super().__next__()


def run(attempt: Attempt, index: int, port: int) -> None:
  """What one process does."""
  out = Path(attempt.out)
  striker = Striker(attempt.fault, index, out)
  striker.reach("before meeting")
  striker.lie_in_wait()
  hosts = Hosts(f"127.0.0.1:{port}", attempt.processes, index, WAIT, LOST, STUCK)
  with joined(hosts):
    recipe = chaos_recipe(2 * attempt.processes)
    mesh = make_mesh(recipe.mesh)
    rows = host_rows(mesh, recipe.batch_size)
    batches = held_out(recipe.batch_size, rows=rows)

    def evaluation():
      striker.reach("while evaluating")
      return batches()

    restore = Checkpoints.restore

    def struck_restore(self, like):
      if self.steps():
        timer = threading.Timer(0.02, striker.reach, ("while restoring",))
        timer.start()
      return restore(self, like)

    Checkpoints.restore = struck_restore
    result = train(
      recipe,
      out,
      mesh=mesh,
      batches=StruckRows(striker, recipe.batch_size, rows),
      evaluations={"held_out": evaluation},
      progress=True,
    )
    striker.reach("after the last step")
  print("DONE", result.step, result.stopped_by, flush=True)


class Child:
  """A forked process, with as much of `subprocess.Popen` as `watch` uses."""

  def __init__(self, pid: int):
    self._pid = pid
    self._code: int | None = None

  def poll(self) -> int | None:
    """Its exit code, or None."""
    if self._code is None:
      pid, status = os.waitpid(self._pid, os.WNOHANG)
      self._code = os.waitstatus_to_exitcode(status) if pid else None
    return self._code

  def send_signal(self, sig: int) -> None:
    """Sends it a signal."""
    os.kill(self._pid, sig)


def start(attempt: Attempt, index: int, port: int) -> Child:
  """Forks one process, which writes into `process-I.log` of the run directory."""
  pid = os.fork()
  if pid:
    return Child(pid)
  try:
    log = os.open(
      f"{attempt.out}/process-{index}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND
    )
    os.dup2(log, 1)
    os.dup2(log, 2)
    run(attempt, index, port)
    sys.stdout.flush()
    # As an interpreter that ends: jax parts from the others.
    import jax

    jax.distributed.shutdown()
    os._exit(0)
  except BaseException:
    traceback.print_exc()
    os._exit(1)


def serve() -> None:
  """Answers each attempt on stdin with how it ended."""
  for line in sys.stdin:
    told = json.loads(line)
    fault = told.pop("fault")
    attempt = Attempt(**told, fault=Fault(**fault) if fault else None)
    Path(attempt.out).mkdir(parents=True, exist_ok=True)
    port, began = free_port(), time.time()
    ended = watch(
      [start(attempt, index, port) for index in range(attempt.processes)], GRACE
    )
    answer = {
      **dataclasses.asdict(ended),
      "code": ended.code,
      "sentence": ended.sentence,
      "seconds": time.time() - began,
      "end": time.time(),
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
  serve()
