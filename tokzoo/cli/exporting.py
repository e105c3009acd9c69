"""`tokzoo export`: a run as one self-describing file, and such a file as a run again."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from tokzoo.cli.console import note, parse
from tokzoo.data import state_after
from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.hub import load
from tokzoo.remote import is_remote, located
from tokzoo.systems import part_of_config
from tokzoo.train import MeshShape, Recipe, from_json, load_run, make_mesh, to_json
from tokzoo.train.checkpoint import Checkpoints
from tokzoo.train.mesh import put_batch
from tokzoo.train.plan.programs import batch_shapes
from tokzoo.train.run_dir import open_run
from tokzoo.train.state import TrainState, lay_out, make_state
from tokzoo.version import code_version
from tokzoo.weights.checkpoint import read_checkpoint, write_checkpoint


def run_export(arguments: Sequence[str]) -> None:
  parse(export, "export", arguments)


def export(
  run: Annotated[str, tyro.conf.Positional],
  /,
  out: str,
  weights_licence: str = "not stated",
) -> None:
  """Turns a run into one checkpoint file that tokzoo.load reads; or such a file into a run.

  A run made from a file goes on at the step that the file is of: same weights, same place in
  the data and the schedule. Its optimizer begins anew, since a file holds no moments.

  Args:
    run: the run directory; or a file that was exported, to get a run of it.
    out: the file to write, *.safetensors, also remote (gs://...); or the new run directory.
    weights_licence: under which others may use the weights.
  """
  if located(run).is_file():
    step = restore_run(run, Path(out))
    note(f"wrote {out}: a run after step {step}, whose optimizer begins anew.")
    return
  if not out.endswith(".safetensors"):
    raise TokzooError(f"a checkpoint ends in .safetensors; {out} does not.")
  model = load(Path(run))
  recipe_json, _, step = load_run(run)
  recipe = from_json(recipe_json)
  system, part = part_of_config(model.config)
  header = {
    "system": system,
    "part": part,
    "config": to_json(model.config),
    "recipe": recipe_json,
    "step": step,
    "tile": getattr(recipe.task, "tile", False),
    "sampling": recipe.sampling,
    "tokenizer": recipe.tokenizer,
    "tokenizer_origin": model.card.header.get("tokenizer_origin"),
    "weights_licence": weights_licence,
    "code_version": code_version(),
  }
  write_checkpoint(out, model.variables, header)
  note(f"wrote {out}: {system} {part}, {model.num_parameters / 1e6:.2f} M parameters.")


def restore_run(file: str | Path, out: Path) -> int:
  """Makes a run directory of an exported file, as if the run had just saved.

  What a file does not hold is as at the first step: optimizer moments, a discriminator.

  Args:
    file: that `tokzoo export` wrote.
    out: the new run directory.

  Returns:
    The step that the run is at.

  Raises:
    TokzooError: not such a file, one that does not say how it was trained, or a directory
      that holds something already.
  """
  variables, header = read_checkpoint(file)
  if "recipe" not in header:
    raise TokzooError(
      f"{file} does not say how it was trained: start a run from its weights instead "
      f"(tokzoo train ... --init-from {file})."
    )
  if is_remote(out) or (out.exists() and any(out.iterdir())):
    raise TokzooError(f"{out} is remote or holds files: name a new folder here.")
  recipe, step = from_json(header["recipe"]), int(header["step"])
  state = _state_at(recipe, variables, step)
  open_run(out, recipe)
  if header.get("tokenizer_origin"):
    write_atomic(out / "tokenizer.txt", f"{header['tokenizer_origin']}\n".encode())
  about = {
    "recipe": header["recipe"],
    "code": code_version(),
    "data": state_after(step),
  }
  with contextlib.closing(Checkpoints(out / "checkpoints")) as checkpoints:
    checkpoints.save(step, state, about)
    checkpoints.settle()
  return step


def _state_at(recipe: Recipe, variables: Any, step: int) -> TrainState:
  """The state of a run after some steps, with these weights and a fresh optimizer."""
  # One row on one device: only shapes matter, and a checkpoint restores on any mesh.
  small = dataclasses.replace(recipe, batch_size=1, accumulate=1, mesh=MeshShape(1, 1))
  mesh = make_mesh(small.mesh, jax.devices()[:1])
  shapes = batch_shapes(small)
  batch = {name: np.zeros(like.shape, like.dtype) for name, like in shapes.items()}
  layout = lay_out(small, batch, mesh)
  state = make_state(small, layout, put_batch(batch, mesh, 1), variables)
  opt_states = {
    player: _scheduled_at(
      opt_state, max(step - recipe.optimizers[player].start_step, 0)
    )
    for player, opt_state in state.opt_states.items()
  }
  placed = jnp.asarray(step, jnp.int32)
  state = dataclasses.replace(state, step=placed, opt_states=opt_states)
  return jax.device_put(state, layout.placed)


def _scheduled_at(opt_state: Any, count: int) -> Any:
  """Moves the learning rate's schedule, and nothing else, to an update."""

  def move(node: Any) -> Any:
    if not isinstance(node, optax.ScaleByScheduleState):
      return node
    return node._replace(count=jnp.asarray(count, jnp.int32))

  return jax.tree.map(
    move, opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState)
  )
