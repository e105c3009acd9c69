"""Two processes of two devices are one process of four."""

import signal
import socket
import subprocess
import sys

import jax
import numpy as np

from tests.train import worker
from tests.train.test_checkpoint import arrays_of
from tests.train.test_killed import ROOT, environment, lines_of, newest, wait_until
from tokzoo.train import make_mesh


def start_hosts(out, steps) -> list[subprocess.Popen]:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-m", "tests.train.worker", "host"]
  return [
    subprocess.Popen(
      [*command, str(index), "2", str(port), str(out), str(steps)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=environment(2),
    )
    for index in range(2)
  ]


def finish(hosts) -> list[str]:
  """What each process printed last."""
  told = [host.communicate(timeout=120) for host in hosts]
  assert [host.returncode for host in hosts] == [0, 0], told
  return [out.strip().splitlines()[-1] for out, _ in told]


def test_two_processes_stopped_and_continued_equal_one(tmp_path):
  one, two, steps = tmp_path / "one", tmp_path / "two", 40
  recipe = worker.shared_recipe(steps)
  worker.run(recipe, one, make_mesh(recipe.mesh, jax.devices()[:4]))
  # A signal to one process stops both, at the same step.
  hosts = start_hosts(two, steps)
  wait_until(lambda: newest(two) > 0)
  hosts[1].send_signal(signal.SIGTERM)
  first, second = finish(hosts)
  done = newest(two)
  assert 0 < done < steps
  assert second == f"DONE {done} SIGTERM"
  assert first == f"DONE {done} a signal to another host"
  assert finish(start_hosts(two, steps)) == [f"DONE {steps} None"] * 2
  expected, about = arrays_of(one)
  found, about_found = arrays_of(two)
  assert about["data"] == about_found["data"] == {"taken": steps}
  for name, array in found.items():
    np.testing.assert_allclose(array, expected[name], 1e-3, 1e-5, err_msg=name)
  for mine, theirs in zip(lines_of(one), lines_of(two), strict=True):
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
      if key != "split":
        np.testing.assert_allclose(value, theirs[key], 1e-3)
