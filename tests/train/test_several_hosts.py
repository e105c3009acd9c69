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


def test_two_processes_equal_one(tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  recipe = worker.shared_recipe(12)
  worker.run(recipe, one, make_mesh(recipe.mesh, jax.devices()[:4]))
  assert finish(start_hosts(two, 12)) == ["DONE 12 None"] * 2
  expected, about = arrays_of(one)
  found, about_found = arrays_of(two)
  assert about["data"] == about_found["data"] == {"taken": 12}
  for name, array in found.items():
    np.testing.assert_allclose(array, expected[name], 1e-4, 1e-6, err_msg=name)
  for mine, theirs in zip(lines_of(one), lines_of(two), strict=True):
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
      if key != "split":
        np.testing.assert_allclose(value, theirs[key], 1e-4)


def test_a_signal_to_one_process_stops_both_and_both_continue(tmp_path):
  hosts = start_hosts(tmp_path, 100_000)
  wait_until(lambda: newest(tmp_path) > 0)
  hosts[1].send_signal(signal.SIGTERM)
  first, second = finish(hosts)
  assert second.endswith("SIGTERM") and first.endswith("a signal to another host")
  done = int(first.split()[1])
  assert newest(tmp_path) == done
  lines = lines_of(tmp_path)
  assert finish(start_hosts(tmp_path, done + 2)) == [f"DONE {done + 2} None"] * 2
  assert lines_of(tmp_path)[: len(lines)] == lines
