"""Checkpoints: saved by Orbax in the background, read back, and trusted only by digest.

A checkpoint is one folder `checkpoints/00000500` that holds

  state  the whole `TrainState`, as flat named arrays
  about  JSON: step, recipe, position of the data, code version, and for each array its
         dtype, shape and digest

Orbax writes beside and renames, so a killed save leaves nothing that looks whole. What it
cannot see, a truncated or changed file, shows in the digests (see digest.py), which are of
the arrays as they were on the device. A new checkpoint is read back before an older one is
deleted.

On one CPU device a save is a copy of the state, made in the device's turn, and all else
happens behind the steps. Elsewhere the loop waits until the state has left the devices, whose
memory may not hold it twice.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tokzoo.errors import TokzooError
from tokzoo.train import hosts
from tokzoo.train.digest import Looks, host_digest, look, told
from tokzoo.train.mesh import named_leaves
from tokzoo.train.quiet import quieten
from tokzoo.train.state import TrainState

FORMAT = 1
_GROUP = 1 << 30
"""Bytes that are read back at a time, to bound host memory."""


class Damaged(Exception):
  """A checkpoint that is not what was saved. The text names the part and the reason."""


@dataclass(frozen=True)
class Restored:
  """What a run continues from.

  state:    on the current mesh
  about:    the JSON that was saved with it
  skipped:  newer checkpoints that are damaged: one sentence each
  """

  state: TrainState
  about: dict[str, Any]
  skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Copy:
  """A state that `save` took, and what to keep with it."""

  step: int
  arrays: dict[str, jax.Array]
  about: Mapping[str, Any]


class Checkpoints:
  """The checkpoints of one run.

  Args:
    folder: `checkpoints` of the run directory.
    keep: newest checkpoints that are kept.
    read_only: change nothing, not even leftovers of a killed save.

  Raises:
    TokzooError: the folder cannot be made.
  """

  def __init__(self, folder: str | Path, keep: int = 2, read_only: bool = False):
    self.folder = Path(folder).absolute()
    self._keep = keep
    self._read_only = read_only
    self._unverified: dict[int, Mapping[str, Sequence[Any]]] = {}
    self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoints", _step_back)
    self._pending: _Copy | None = None
    self._writing: tuple[int, concurrent.futures.Future[Any]] | None = None
    self._reading: concurrent.futures.Future[str | None] | None = None
    self._heard = quieten()
    self._has_failed = False
    if not read_only:
      self._sweep()
    try:
      self._manager = ocp.CheckpointManager(
        self.folder,
        options=ocp.CheckpointManagerOptions(
          step_format_fixed_length=8, read_only=read_only, create=not read_only
        ),
        item_handlers={
          # Mantissas of weights are noise: zstd takes off a twelfth, for more time than
          # all the rest of a save.
          "state": ocp.PyTreeCheckpointHandler(use_compression=False),
          "about": ocp.JsonCheckpointHandler(),
        },
      )
    except OSError as error:
      raise TokzooError(
        f"cannot keep checkpoints in {self.folder}: {error.strerror}; name another folder."
      ) from error

  def steps(self) -> list[int]:
    """Steps of the whole checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def warm(self, state: TrainState) -> None:
    """Compiles what the first save asks of the device, which would hold the steps up."""
    arrays = named_leaves(state)
    look(arrays, state.step.sharding)
    if _is_alone(state):
      _copy(arrays)

  def save(
    self,
    step: int,
    state: TrainState,
    about: Mapping[str, Any],
    drain: Callable[[], None] = lambda: None,
  ) -> None:
    """Takes the state as it is now; `poll` and `settle` see to the rest.

    Args:
      step: that the state is after.
      state: of global arrays, which may be given to the next step when this returns.
      about: JSON values to keep with it.
      drain: writes the metrics of all steps, which must be done before a checkpoint is.

    Raises:
      TokzooError: the state is not finite, or this or the save before could not be written.
    """
    if self._pending is not None:
      drain()
    self.settle()
    self._heard.take_failure()  # of another run in this process
    arrays = named_leaves(state)
    if _is_alone(state):
      self._pending = _Copy(step, _copy(arrays), about)
      return
    looks = look(arrays, state.step.sharding)  # behind the steps in flight
    drain()
    layout, written = self._described(step, arrays, about, looks)
    with self._save_errors(step):
      # By the worker, whose low priority the threads inherit that Orbax starts.
      self._worker.submit(self._write, step, arrays, written).result()
    self._unverified[step] = layout

  def _described(
    self,
    step: int,
    arrays: Mapping[str, jax.Array],
    about: Mapping[str, Any],
    looks: Looks,
  ) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
    """What is kept of the arrays, and all the JSON.

    Raises:
      TokzooError: one of them is not finite.
    """
    digests, bad = told(looks)
    if bad is not None:
      raise TokzooError(
        f"the state after step {step} is not finite ({bad}) and was not saved; "
        f"{self.intact()}: lower the learning rate, or set clip_norm."
      )
    layout: dict[str, Sequence[Any]] = {
      name: [array.dtype.name, list(array.shape), digests[name]]
      for name, array in arrays.items()
    }
    written = {"format": FORMAT, "step": step, **about, "arrays": layout}
    written["sha256"] = _sha256(written)
    return layout, written

  def _write(
    self, step: int, arrays: Mapping[str, jax.Array], written: Mapping[str, Any]
  ) -> None:
    items = ocp.args.Composite(
      state=ocp.args.PyTreeSave(arrays), about=ocp.args.JsonSave(written)
    )
    self._manager.save(step, args=items, force=True)

  def _begin(self) -> None:
    """Has the copy of a state that `save` took described and written by the worker."""
    assert self._pending is not None
    taken, self._pending = self._pending, None

    def go() -> dict[str, Sequence[Any]]:
      looks = look(taken.arrays, taken.arrays["step"].sharding)
      layout, written = self._described(taken.step, taken.arrays, taken.about, looks)
      self._write(taken.step, taken.arrays, written)
      return layout

    self._writing = (taken.step, self._worker.submit(go))

  def _written(self) -> None:
    """Waits until the worker has handed a copy to Orbax."""
    if self._writing is None:
      return
    (step, writing), self._writing = self._writing, None
    error = writing.exception()
    if isinstance(error, TokzooError):  # the state was not finite
      raise error
    with self._save_errors(step):
      self._unverified[step] = writing.result()

  def poll(self, landed: int) -> None:
    """Begins to write what `save` took, notices when that is done, and has it read back
    behind the steps, without waiting.

    Cheap: called after every step.

    Args:
      landed: the newest step whose metrics are in the log, which may not lag behind a
        checkpoint.

    Raises:
      TokzooError: the state was not finite, the save failed, or reads back differently.
    """
    # Several processes would come here at different steps; they settle at the next save.
    if jax.process_count() > 1:
      return
    if self._pending is not None and self._pending.step <= landed:
      self._begin()
    if self._writing is not None and self._writing[1].done():
      self._written()
    if not self._unverified:
      return
    if self._reading is None and not self._manager.is_saving_in_progress():
      (step, layout), *_ = self._unverified.items()
      with self._save_errors(step):
        self._manager.wait_until_finished()  # raises what made it fail
      self._reading = self._worker.submit(self._read_back, step, layout)
    if self._reading is not None and self._reading.done():
      self.settle()

  def settle(self, landed: int | None = None) -> None:
    """Waits for the save under way, reads it back, then deletes what is too old.

    Args:
      landed: of a run that fails, the newest step that was good: what `save` took later is
        let go.

    Raises:
      TokzooError: the state was not finite, could not be written, or reads back differently.
    """
    if self._pending is not None and landed is not None and landed < self._pending.step:
      self._pending = None
    if self._pending is not None:
      self._begin()
    self._written()
    for step, layout in list(self._unverified.items()):
      with self._save_errors(step):
        self._wait_for_save()
        reading, self._reading = self._reading, None
        fault = reading.result() if reading else self._read_back(step, layout)
        if hosts.any_host(fault is not None):
          raise Damaged(fault or "another host read back something else")
      del self._unverified[step]
      for old in self.steps()[: -self._keep]:
        self._manager.delete(old)

  def _wait_for_save(self) -> None:
    """Waits for the save under way; raises what made it fail."""
    while jax.process_count() > 1 and self._manager.is_saving_in_progress():
      failure = self._heard.take_failure()
      if failure is not None:
        raise failure
      time.sleep(0.005)
    self._manager.wait_until_finished()

  def restore(self, like: TrainState) -> Restored | None:
    """The newest checkpoint that is whole, on the current mesh; None if there is none at all.

    Damaged ones that are newer are moved to `damaged/`, so that the run can save again at
    their steps.

    Args:
      like: `jax.ShapeDtypeStruct`s with the shardings to restore to.

    Raises:
      TokzooError: all are damaged, or they are of another model.
    """
    faults: dict[int, str] = {}
    for step in reversed(self.steps()):
      try:
        about = self.about(step)
        arrays = self._arrays(step, about, like)
      except Damaged as error:
        faults[step] = str(error)
        continue
      self._set_aside(list(faults))
      leaves = [arrays[name] for name in named_leaves(like)]
      state = jax.tree.unflatten(jax.tree.structure(like), leaves)
      skipped = tuple(
        f"checkpoint {bad} is damaged ({why}) and was moved to {self.folder.parent / 'damaged'}"
        for bad, why in faults.items()
      )
      return Restored(state, about, skipped)
    if faults:
      raise _none_whole(self.folder, faults)
    return None

  def load(
    self, choose: Callable[[list[str]], list[str]]
  ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Some arrays of the newest checkpoint that is whole, on the host, and its JSON.

    Args:
      choose: from the names of all arrays, those to read; only they are checked.

    Raises:
      TokzooError: there is none.
    """
    faults: dict[int, str] = {}
    for step in reversed(self.steps()):
      try:
        about = self.about(step)
        names = choose(list(about["arrays"]))
        arrays: dict[str, np.ndarray] = {}
        for group, fault in self._host_groups(step, about["arrays"], names):
          if fault:
            raise Damaged(fault)
          arrays |= group
        return arrays, about
      except Damaged as error:
        faults[step] = str(error)
    if faults:
      raise _none_whole(self.folder, faults)
    raise TokzooError(
      f"there is no checkpoint in {self.folder}: name the directory of a run that has saved."
    )

  def about(self, step: int) -> dict[str, Any]:
    """The JSON of one checkpoint.

    Raises:
      Damaged: it is not there, cut short, or changed.
    """
    about = self._read(step, "about", ocp.args.JsonRestore())
    digest = about.pop("sha256", None) if isinstance(about, dict) else None
    if digest != _sha256(about):
      raise Damaged("its description was changed")
    if about["format"] > FORMAT:
      raise TokzooError(
        f"checkpoint {step} in {self.folder} has format {about['format']}, this tokzoo "
        f"reads up to {FORMAT}: upgrade tokzoo."
      )
    return about

  def verify(self, step: int) -> dict[str, Any]:
    """Reads a whole checkpoint on the host and checks structure, digests, finite values.

    Returns:
      What it holds: {"arrays": number, "bytes": in memory}.

    Raises:
      Damaged: what is wrong with it.
    """
    layout = self.about(step)["arrays"]
    total = 0
    for arrays, fault in self._host_groups(step, layout, sorted(layout)):
      if fault:
        raise Damaged(fault)
      for name, array in arrays.items():
        # Of bfloat16 and its like NumPy knows little.
        is_float = jnp.issubdtype(array.dtype, jnp.floating)
        if is_float and not np.isfinite(array.astype(np.float32)).all():
          raise Damaged(f"{name} is not finite")
        total += array.nbytes
    return {"arrays": len(layout), "bytes": total}

  def close(self) -> None:
    """Gives up what is under way; `settle` first to wait for it."""
    self._worker.shutdown(cancel_futures=True)
    if self._has_failed and jax.process_count() > 1:
      return  # Orbax would wait for the other processes, which wait for this one
    with contextlib.suppress(
      Exception
    ):  # told by `settle`, or the run has already failed
      self._manager.close()

  def _arrays(
    self, step: int, about: Mapping[str, Any], like: TrainState
  ) -> dict[str, jax.Array]:
    """The arrays of a checkpoint on the mesh of `like`, checked by their digests."""
    wanted = named_leaves(like)
    _check_layout(self.folder, step, about, wanted)
    arguments = ocp.args.PyTreeRestore(
      item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted)
    )
    arrays = self._read(step, "state", arguments)
    for name, found in told(look(arrays, like.step.sharding))[0].items():
      if found != about["arrays"][name][2]:
        raise Damaged(f"{name} does not agree with its digest")
    return arrays

  def _read(self, step: int, part: str, arguments: ocp.args.CheckpointArgs) -> Any:
    """One part of a checkpoint, whatever a changed file makes its readers raise."""
    composite = ocp.args.Composite(**{part: arguments})
    try:
      return self._manager.restore(step, args=composite)[part]
    except (MemoryError, jax.errors.JaxRuntimeError):  # the latter: a host was lost
      raise
    except Exception as error:  # a changed file can make its readers raise anything
      reason = _reason(error)
      if "Out of memory" in reason:
        raise
      if "Permission denied" in reason:
        raise TokzooError(
          f"checkpoint {step} in {self.folder} may not be read ({reason}): ask for "
          "permission to read it."
        ) from error
      raise Damaged(f"its {part} cannot be read: {reason}") from error

  def _read_back(self, step: int, layout: Mapping[str, Sequence[Any]]) -> str | None:
    """What is wrong with a checkpoint as it lies on the disk. Hosts share the arrays."""
    mine = sorted(layout)[jax.process_index() :: jax.process_count()]
    try:
      self.about(step)
      faults = [fault for _, fault in self._host_groups(step, layout, mine) if fault]
    except Damaged as error:
      return str(error)
    return faults[0] if faults else None

  def _host_groups(
    self, step: int, layout: Mapping[str, Sequence[Any]], names: Sequence[str]
  ) -> Iterator[tuple[dict[str, np.ndarray], str | None]]:
    """Reads arrays to the host, a bounded number of bytes at a time, with their first fault."""
    sizes = {
      name: int(np.prod(layout[name][1])) * jnp.dtype(layout[name][0]).itemsize
      for name in names
    }
    for group in _groups(sizes, _GROUP):
      on_host = ocp.RestoreArgs(restore_type=np.ndarray)
      arguments = ocp.args.PyTreeRestore(
        item=dict.fromkeys(group, 0),
        restore_args=dict.fromkeys(group, on_host),
        partial_restore=True,
      )
      arrays = self._read(step, "state", arguments)
      wrong = [
        name
        for name in group
        if [arrays[name].dtype.name, list(arrays[name].shape)] != list(layout[name][:2])
        or list(host_digest(arrays[name])) != list(layout[name][2])
      ]
      yield arrays, f"{wrong[0]} does not agree with its digest" if wrong else None

  def _set_aside(self, steps: Sequence[int]) -> None:
    """Moves damaged checkpoints out of the way, keeping them for whoever wants to look."""
    if self._read_only or not steps:
      return
    if hosts.is_first():
      for step in steps:
        place = self.folder.parent / "damaged" / f"{step:08d}"
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(exist_ok=True)
        (self.folder / f"{step:08d}").rename(place)
    hosts.wait_for_all("damaged checkpoints moved")
    self._manager.reload()

  def _sweep(self) -> None:
    """Removes what a killed or failed save left, which only takes up space."""
    if hosts.is_first():
      for leftover in self.folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)
    hosts.wait_for_all("leftovers removed")

  def intact(self) -> str:
    """Which checkpoint the run can continue from, for a message."""
    steps = [step for step in self.steps() if step not in self._unverified]
    if not steps:
      return "there is no earlier checkpoint"
    return f"checkpoint {steps[-1]} in {self.folder} is intact"

  @contextlib.contextmanager
  def _save_errors(self, step: int) -> Iterator[None]:
    """Turns whatever went wrong with a save into one sentence."""
    try:
      yield
    except Exception as error:  # Orbax and TensorStore raise many types for a full disk
      self._unverified[step] = {}
      self._has_failed = True
      # Of several processes perhaps only this one failed: the others would not come to
      # sweep with it, and do so when the run is started again.
      if jax.process_count() == 1:
        self._sweep()
      raise TokzooError(
        f"checkpoint {step} could not be saved ({_reason(error)}); {self.intact()}: "
        "mend the cause, for instance by freeing space, and start the run again."
      ) from error


def _is_alone(state: TrainState) -> bool:
  """Whether all of a state lies on one CPU device. Of several, programs that wait for each
  other could be sent by two threads in two orders."""
  devices = list(state.step.sharding.device_set)
  return len(devices) == 1 and devices[0].platform == "cpu"


@jax.jit
def _copy(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Copies of arrays, made when it is their turn on the device; no waiting."""
  return jax.tree.map(jnp.copy, arrays)


def _step_back() -> None:
  """Lets the steps go first on cores that they share with this thread and its children."""
  if sys.platform.startswith("linux"):  # where each thread has a priority of its own
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _check_layout(
  folder: Path, step: int, about: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  """Raises `TokzooError` where a checkpoint is of another model than the recipe's."""
  saved = {
    name: f"{dtype}{shape}" for name, (dtype, shape, _) in about["arrays"].items()
  }
  asked = {
    name: f"{leaf.dtype.name}{list(leaf.shape)}" for name, leaf in wanted.items()
  }
  for name in sorted(saved.keys() | asked.keys()):
    if saved.get(name) != asked.get(name):
      raise TokzooError(
        f"checkpoint {step} in {folder} does not fit the recipe: it holds {name} as "
        f"{saved.get(name, 'nothing')}, the recipe as {asked.get(name, 'nothing')}; "
        "choose another --out, or pass --restart to begin anew."
      )


def _groups(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
  """Names in groups of at most `limit` bytes, or of one name."""
  group: list[str] = []
  total = 0
  for name, size in sizes.items():
    if group and total + size > limit:
      yield group
      group, total = [], 0
    group.append(name)
    total += size
  if group:
    yield group


def _reason(error: BaseException) -> str:
  """The few words of an error that say why."""
  whole = " ".join(str(error).split())
  # TensorStore adds details in brackets, in no certain order: "RESOURCE_EXHAUSTED: ...: No
  # space left on device [os_error_code='28' tensorstore_spec='...']".
  text = re.split(r" \[(?:os_error_code|tensorstore_spec)", whole)[0]
  if "os_error_code" in whole:
    return text.rsplit(": ", 1)[-1]
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  code, _, rest = text.partition(": ")
  if (
    code.isupper() and rest
  ):  # TensorStore nests: the last part says what it stumbled over
    return f"{code}, {rest.rsplit(': ', 1)[-1][:100]}"
  return (text or type(error).__name__)[:100]


def _none_whole(folder: Path, faults: Mapping[int, str]) -> TokzooError:
  listed = "; ".join(f"{step}: {why}" for step, why in faults.items())
  return TokzooError(
    f"no checkpoint in {folder} is whole ({listed}): restore a copy of the folder, or "
    "begin anew with --restart."
  )


def _sha256(about: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
