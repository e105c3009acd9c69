"""`tokzoo plan --measure`: what was predicted, beside a run of the same program."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.cli.experiments import find_recipe, load_experiment
from tokzoo.cli.main import main
from tokzoo.cli.planning import errors
from tokzoo.errors import TokzooError
from tokzoo.machines import parse
from tokzoo.train.mesh import make_mesh
from tokzoo.train.plan import plan
from tokzoo.train.plan.measuring import measure, waves
from tokzoo.train.plan.programs import lower
from tokzoo.train.recipe import MeshShape


def recipe_of(**changes):
  recipe = find_recipe(load_experiment("instella-t2i"), "nano-digits")
  return dataclasses.replace(recipe, batch_size=16, **changes)


@pytest.mark.parametrize("what", ["train", "encode"])
def test_what_runs_is_what_was_planned(what, tmp_path, monkeypatch):
  monkeypatch.setenv("TOKZOO_CACHE", str(tmp_path))
  recipe, machine = recipe_of(mesh=MeshShape(data=8)), parse("cpu:8")
  made = plan(recipe, str(machine), what)
  found = measure(recipe, what, machine, made, 2)
  assert found.program_bytes == made.bytes_per_device
  assert found.peak_bytes is None  # CPUs do not say
  assert errors(made, found)["bytes"] == 0
  assert 0 < found.step_seconds < 10 and found.spread >= 0
  assert found.examples_per_second == pytest.approx(16 / found.step_seconds)
  used = made.flops_per_device / (found.step_seconds * machine.chip.flops)
  assert found.utilisation == pytest.approx(used)


def test_waves_fill_a_state_and_the_step_runs_on_it():
  recipe = recipe_of()
  program = lower(recipe, "train", make_mesh(MeshShape(data=1, fsdp=8)))
  arguments = waves(program.arguments)
  for array, shape in zip(
    jax.tree.leaves(arguments), jax.tree.leaves(program.arguments), strict=True
  ):
    assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
    assert array.sharding.is_equivalent_to(shape.sharding, array.ndim)
  state, _ = arguments
  for moment in jax.tree.leaves(state.opt_states):
    if jnp.issubdtype(moment.dtype, jnp.floating):
      assert float(moment.min()) >= 0
  kernel = max(jax.tree.leaves(state.params), key=lambda leaf: leaf.size)
  assert len(np.unique(np.asarray(kernel))) > kernel.size / 2 and kernel.min() < -0.03
  new, metrics = program.lowered.compile()(*arguments)
  assert int(new.step) == 1 and np.isfinite(float(metrics["loss"]))


def test_another_machine_is_refused(capsys):
  with pytest.raises(TokzooError, match=r"needs the machine that is planned, cpu:4"):
    recipe = recipe_of()
    measure(recipe, "train", parse("cpu:4"), None, 1)  # type: ignore[arg-type]
  command = "plan instella-t2i --recipe nano-digits --topology cpu:8 --measure"
  assert main([*command.split(), "-1"]) == 2
  assert "choose 1 or more" in capsys.readouterr().err


def test_the_command_prints_both_and_the_error(capsys, tmp_path, monkeypatch):
  monkeypatch.setenv("TOKZOO_CACHE", str(tmp_path))
  command = "plan instella-t2i --recipe nano-digits --topology cpu:8 --measure 1 --json"
  assert main([*command.split(), "--batch-size", "16"]) == 0
  told = json.loads(capsys.readouterr().out)
  predicted = told["plan"]["step_seconds_estimate"]
  measured = told["measured"]["step_seconds"]
  assert told["errors"]["step_seconds"] == pytest.approx(predicted / measured - 1)
  assert told["errors"]["bytes"] == 0
