"""Runs that are killed, and runs of several processes: what their processes do.

python -m tests.train.worker fork              forks a run for each line "OUT STEPS" on stdin
python -m tests.train.worker host I N PORT OUT STEPS   process I of N of one run
"""

import os
import sys
import time
import traceback

import jax

from tests.train.tasks import AutoEncoder, Linear, Rows, held_out, make_recipe
from tokzoo.data import host_rows
from tokzoo.errors import TokzooError
from tokzoo.train import MeshShape, Optimizer, make_mesh, train


def killed_recipe(steps: int):
  """Random draws, a collection, two accumulated batches, EMA; a save at every other step."""
  return make_recipe(
    task=Linear(AutoEncoder(hidden=16), noise=0.1),
    batch_size=16,
    accumulate=2,
    ema=0.9,
    steps=steps,
    save_every=2,
    log_every=2,
    mesh=MeshShape(1, 2),
  )


def shared_recipe(steps: int):
  """For two processes of two devices, or one of four."""
  return make_recipe(
    task=Linear(AutoEncoder(hidden=64), noise=0.1),
    batch_size=16,
    optimizers={"model": Optimizer("sgd", peak_lr=0.1)},
    ema=0.9,
    steps=steps,
    save_every=6,
    log_every=2,
    mesh=MeshShape(2, 2),
  )


class Unhurried(Rows):
  """Rows that take a while, so that a signal comes in the middle of a run."""

  def __next__(self):
    time.sleep(0.05)
    return super().__next__()


def run(recipe, out, mesh=None, rows_type=Rows):
  """Trains with the rows that this process makes."""
  mesh = mesh or make_mesh(recipe.mesh)
  rows = host_rows(mesh, recipe.batch_size)
  return train(
    recipe,
    out,
    mesh=mesh,
    batches=rows_type(recipe.batch_size, rows),
    evaluations={"held_out": held_out(recipe.batch_size, rows=rows)},
    progress=False,
  )


def fork_runs() -> None:
  """One child per line; says its pid, then how it ended. No device is opened before a fork,
  so that a child starts in a fraction of a second and is a whole process all the same."""
  for line in sys.stdin:
    out, steps = line.split()
    child = os.fork()
    if child == 0:
      try:
        result = run(killed_recipe(int(steps)), out)
        os._exit(0 if result.stopped_by is None else 3)
      except BaseException:
        traceback.print_exc()
        os._exit(1)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


def one_host(index: int, count: int, port: int, out: str, steps: int) -> None:
  """One process of a run of several."""
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"localhost:{port}", count, index)
  try:
    result = run(shared_recipe(steps), out, rows_type=Unhurried)
  except TokzooError as error:
    print("STOPPED", error, flush=True)
    os._exit(2)
  print("DONE", result.step, result.stopped_by, flush=True)


if __name__ == "__main__":
  if sys.argv[1] == "fork":
    fork_runs()
  else:
    index, count, port, out, steps = sys.argv[2:]
    one_host(int(index), int(count), int(port), out, int(steps))
