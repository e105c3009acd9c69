"""Where numbers and pictures of a run go.

`log.jsonl` and PNG files always; the terminal unless it is switched off; TensorBoard, wandb
and trackio by name. Only the first process writes.
"""

import contextlib
import importlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)

from tokzoo.errors import TokzooError, missing_extra, unknown
from tokzoo.files import write_atomic
from tokzoo.train import hosts
from tokzoo.train.recipe import Recipe
from tokzoo.train.serial import to_json

Values = Mapping[str, float]

OnLog = Callable[[int, str, Values], None]
"""Called with step, split ("train" or an evaluator's name) and values."""


class Writer(Protocol):
  """A place for the numbers and pictures of a run."""

  def write(self, step: int, split: str, values: Values) -> None: ...

  def picture(self, step: int, name: str, image: np.ndarray) -> None: ...

  def close(self) -> None: ...


W = TypeVar("W", bound=Writer)


class JsonLines:
  """`log.jsonl`, one object per line: {"step": 10, "split": "train", "loss": 0.5, ...}.

  What is not finite becomes null, since JSON has no word for it. Pictures go to
  `pictures/STEP-NAME.png`.

  Args:
    folder: the run directory.
    resumed: the step that the run continues from. Later lines are of steps that will be
      done again, and go; so do evaluations at that step, and a line cut short by a kill.
  """

  def __init__(self, folder: Path, resumed: int = 0):
    self._folder = folder
    path = folder / "log.jsonl"
    kept = [line for line in read_log(path) if _still_holds(line, resumed)]
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    self._file = path.open("a")

  def write(self, step: int, split: str, values: Values) -> None:
    told = {
      name: value if math.isfinite(value) else None for name, value in values.items()
    }
    try:
      self._file.write(json.dumps({"step": step, "split": split, **told}) + "\n")
      self._file.flush()
    except OSError as error:
      raise TokzooError(
        f"cannot write {self._file.name}: {error.strerror}; free some space and start the "
        "run again."
      ) from error

  def picture(self, step: int, name: str, image: np.ndarray) -> None:
    place = self._folder / "pictures" / f"{step:08d}-{name.replace('/', '-')}.png"
    try:
      place.parent.mkdir(exist_ok=True)
      Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(place)
    except OSError as error:
      raise TokzooError(
        f"cannot write {place}: {error.strerror or error}; free some space and start the "
        "run again."
      ) from error

  def close(self) -> None:
    self._file.close()


_SHORT = ("loss", "batch_entropy", "perplexity", "usage", "steps_per_second")
"""What the live line shows: how it goes, and whether the codes are used."""


class Terminal:
  """One live line with a bar where there is a terminal, plain lines elsewhere.

  Args:
    title: of the run.
    start: steps already done.
    steps: of the whole run.
  """

  def __init__(self, title: str, start: int, steps: int):
    self._console = Console(stderr=True)
    self._live = self._console.is_terminal
    self._clock, self._start, self._steps = time.perf_counter(), start, steps
    self._progress = Progress(
      TextColumn("{task.description}"),
      BarColumn(),
      MofNCompleteColumn(),
      TextColumn("{task.fields[values]}"),
      TimeRemainingColumn(elapsed_when_finished=True),
      console=self._console,
      disable=not self._live,
    )
    self._task = self._progress.add_task(
      title, total=steps, completed=start, values="compiling the step"
    )
    self._progress.start()

  def say(self, text: str) -> None:
    """One line of its own."""
    self._console.print(text, markup=False, highlight=False, soft_wrap=True)

  def write(self, step: int, split: str, values: Values) -> None:
    told = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    if split == "train" and self._live:
      short = "  ".join(
        f"{name} {value:.4g}"
        for name, value in values.items()
        if name.startswith(_SHORT)
      )
      self._progress.update(self._task, completed=step, values=short)
      return
    elapsed = time.perf_counter() - self._clock
    left = elapsed / max(step - self._start, 1) * (self._steps - step)
    ending = f"  {_duration(left)} left" if split == "train" else ""
    self.say(f"step {step}/{self._steps}  {split}  {told}{ending}")

  def picture(self, step: int, name: str, image: np.ndarray) -> None:
    """Pictures are on disk; the terminal is for numbers."""

  def close(self) -> None:
    self._progress.stop()


class TensorBoard:
  """Event files in `tensorboard/`."""

  def __init__(self, folder: Path, title: str, config: Mapping[str, Any]):
    module = _optional("tensorboardX", "TensorBoard logs")
    self._writer = module.SummaryWriter(str(folder / "tensorboard"))
    self._writer.add_text("recipe", f"```json\n{json.dumps(config, indent=2)}\n```", 0)

  def write(self, step: int, split: str, values: Values) -> None:
    for name, value in values.items():
      self._writer.add_scalar(f"{split}/{name}", value, step)

  def picture(self, step: int, name: str, image: np.ndarray) -> None:
    self._writer.add_image(name, image, step, dataformats="HWC")

  def close(self) -> None:
    self._writer.close()


class Tracker:
  """wandb, or trackio, which has the same interface."""

  def __init__(self, module: str, folder: Path, title: str, config: Mapping[str, Any]):
    self._module = _optional(module, f"logging to {module}")
    self._run = self._module.init(
      project="tokzoo", name=f"{title} {folder.name}", config=dict(config)
    )

  def write(self, step: int, split: str, values: Values) -> None:
    self._module.log(
      {f"{split}/{name}": value for name, value in values.items()}, step=step
    )

  def picture(self, step: int, name: str, image: np.ndarray) -> None:
    self._module.log({name: self._module.Image(image)}, step=step)

  def close(self) -> None:
    self._module.finish()


def open_writer(
  name: str, folder: Path, title: str, config: Mapping[str, Any]
) -> Writer:
  """The optional writer of that name: tensorboard, wandb, trackio.

  Raises:
    TokzooError: an unknown name, or its package is not installed.
  """
  match name:
    case "tensorboard":
      return TensorBoard(folder, title, config)
    case "wandb" | "trackio":
      return Tracker(name, folder, title, config)
  raise unknown("writer", name, ("tensorboard", "wandb", "trackio"))


class Log:
  """All places that a run writes to, as one."""

  def __init__(
    self, writers: Sequence[Writer], terminal: Terminal | None, on_log: OnLog | None
  ):
    self._writers = writers
    self._terminal = terminal
    self._on_log = on_log

  def say(self, text: str) -> None:
    """A sentence for whoever watches."""
    if self._terminal is not None:
      self._terminal.say(text)

  def write(self, step: int, split: str, values: Values) -> None:
    for writer in self._writers:
      writer.write(step, split, values)
    if self._on_log is not None:
      self._on_log(step, split, values)

  def picture(self, step: int, name: str, image: np.ndarray) -> None:
    for writer in self._writers:
      writer.picture(step, name, image)


@contextlib.contextmanager
def open_log(
  recipe: Recipe,
  out: Path,
  start: int,
  names: Sequence[str] = (),
  progress: bool = True,
  on_log: OnLog | None = None,
) -> Iterator[Log]:
  """The log of a run, closed in the end. In all processes but the first it does nothing.

  Args:
    recipe: of the run.
    out: the run directory.
    start: steps already done.
    names: optional writers, see `open_writer`.
    progress: write to the terminal.
    on_log: called with every line.
  """
  if not hosts.is_first():
    yield Log((), None, None)
    return
  with contextlib.ExitStack() as stack:

    def opened(writer: W) -> W:
      stack.callback(writer.close)
      return writer

    title = f"{recipe.system}/{recipe.name}"
    writers: list[Writer] = [opened(JsonLines(out, start))]
    for name in names:
      writers.append(opened(open_writer(name, out, title, to_json(recipe))))
    terminal = opened(Terminal(title, start, recipe.steps)) if progress else None
    yield Log([*writers, *([terminal] if terminal else [])], terminal, on_log)


def read_log(path: Path) -> list[dict[str, Any]]:
  """The lines of a `log.jsonl`; one that a kill cut short is left out."""
  if not path.is_file():
    return []
  lines = []
  for line in path.read_text(errors="replace").splitlines():
    try:
      value = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(value, dict) and "step" in value:
      lines.append(value)
  return lines


def _still_holds(line: Mapping[str, Any], resumed: int) -> bool:
  """Whether a line of the log is of a step that will not be done again."""
  step = line["step"]
  return step < resumed or (step == resumed and line.get("split") == "train")


def _optional(module: str, purpose: str) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise missing_extra(module, "writers", purpose) from error


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
