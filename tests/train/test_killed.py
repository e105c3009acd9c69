"""A run that is killed at random moments, also during a save, ends in the same bits."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax

from tests.train.test_checkpoint import arrays_of, assert_same_bits
from tokzoo.train.writers import read_log

ROOT = Path(__file__).parents[2]


def environment(devices: int) -> dict[str, str]:
  """Of a process with some CPU devices that shares this session's compilation cache."""
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONWARNINGS": "ignore",
  }


class Runs:
  """A process that forks runs, for starting them cheaply."""

  def __init__(self):
    self._process = subprocess.Popen(
      [sys.executable, "-m", "tests.train.worker", "fork"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=environment(2),
    )

  def start(self, out: Path, steps: int) -> int:
    """The pid of a new run."""
    self._process.stdin.write(f"{out} {steps}\n")
    self._process.stdin.flush()
    return int(self._process.stdout.readline())

  def ended(self) -> int:
    """Waits; the exit code of the run, negative if a signal ended it."""
    return int(self._process.stdout.readline())

  def close(self):
    self._process.stdin.close()
    self._process.wait()


def saving(out: Path) -> bool:
  return any((out / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def newest(out: Path) -> int:
  """The step of the newest checkpoint, 0 if there is none."""
  names = [path.name for path in (out / "checkpoints").glob("*") if path.name.isdigit()]
  return int(max(names, default="0"))


def wait_until(condition, seconds: float = 60):
  deadline = time.perf_counter() + seconds
  while not condition():
    assert time.perf_counter() < deadline, "waited in vain"
    time.sleep(0.0005)


def lines_of(out: Path) -> list[dict]:
  """The log without the speed, which no two runs share."""
  lines = read_log(out / "log.jsonl")
  for line in lines:
    line.pop("steps_per_second", None)
  return lines


def test_killed_and_resumed_ends_bit_identical(tmp_path):
  steps, kills = 72, 12
  straight, broken = tmp_path / "straight", tmp_path / "broken"
  draw = random.Random(0)
  killed_saving = 0
  with contextlib.closing(Runs()) as runs:
    runs.start(straight, steps)
    assert runs.ended() == 0
    for kill in range(kills):
      pid = runs.start(broken, steps)
      if kill % 3 == 0:  # at any moment, also while it starts or restores
        time.sleep(draw.uniform(0, 0.8))
      elif kill % 3 == 1:  # a while after its next save
        before = newest(broken)
        wait_until(lambda before=before: newest(broken) > before)
        time.sleep(draw.uniform(0, 0.1))
      else:  # in the middle of a save
        wait_until(lambda: saving(broken))
        time.sleep(draw.uniform(0, 0.03))
        killed_saving += saving(broken)
      os.kill(pid, signal.SIGKILL)
      assert runs.ended() == -signal.SIGKILL, "the run ended before it was killed"
    assert 0 < newest(broken) < steps
    runs.start(broken, steps)
    assert runs.ended() == 0
  assert killed_saving >= 2
  expected, about = arrays_of(straight)
  found, about_found = arrays_of(broken)
  assert_same_bits(found, expected)
  # The code's version is not compared: a commit may come while this test runs.
  for part in ("step", "recipe", "data", "arrays"):
    assert about_found[part] == about[part]
  assert lines_of(broken) == lines_of(straight)
  assert not saving(broken)
