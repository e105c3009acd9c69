"""`tokzoo verify-checkpoint`: is every checkpoint of a run whole?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from tokzoo.cli.console import emit, parse, table
from tokzoo.errors import TokzooError
from tokzoo.train.checkpoint import Checkpoints, Damaged


def run_verify_checkpoint(arguments: Sequence[str]) -> int:
  return parse(verify_checkpoint, "verify-checkpoint", arguments)


def verify_checkpoint(
  run: Annotated[Path, tyro.conf.Positional], /, json: bool = False
) -> int:
  """Reads every checkpoint of a run and says which are whole.

  Structure, the digest of each array, and that its values are finite. Nothing is changed.
  The exit code is 0 if all are whole, and 1 if any is damaged.

  Args:
    run: the run directory, or its folder checkpoints.
    json: print the table as JSON.
  """
  folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
  rows = examine(folder)

  def render(console: Console) -> None:
    columns = ("step", "state", "arrays", "MB")
    shown = [
      (row["step"], row["fault"] or "whole", row["arrays"], row["bytes"] / 1e6)
      for row in rows
    ]
    console.print(table(f"Checkpoints in {folder}", columns, shown))

  emit(rows, json, render)
  return int(any(row["fault"] for row in rows))


def examine(folder: Path) -> list[dict[str, Any]]:
  """One row per checkpoint, oldest first: step, arrays, bytes in memory, fault or None.

  Raises:
    TokzooError: no folder of checkpoints, or none in it.
  """
  if not folder.is_dir():
    raise TokzooError(f"there is no run at {folder}: name a run directory.")
  checkpoints = Checkpoints(folder, read_only=True)
  try:
    steps = checkpoints.steps()
    if not steps:
      raise TokzooError(
        f"there is no checkpoint in {folder}: name the directory of a run that has saved."
      )
    return [_row(checkpoints, step) for step in steps]
  finally:
    checkpoints.close()


def _row(checkpoints: Checkpoints, step: int) -> dict[str, Any]:
  try:
    return {"step": step, **checkpoints.verify(step), "fault": None}
  except Damaged as error:
    return {"step": step, "arrays": 0, "bytes": 0, "fault": str(error)}
