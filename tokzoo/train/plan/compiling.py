"""Hands programs to the process that compiles (`child.py`) and reads what it says.

An ordinary start never loads a compiler of another machine: what is loaded there stays
there. A compiler that dies takes only its program with it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokzoo.errors import TokzooError, missing_extra
from tokzoo.machines import Topology, is_installed
from tokzoo.machines.topologies import pinned
from tokzoo.train.plan.programs import What
from tokzoo.train.recipe import Recipe
from tokzoo.train.serial import to_json

Facts = dict[str, Any]
"""What the compiler says of a program, per device: see `child.py`."""


def compile_all(
  programs: Sequence[tuple[Recipe, What]], topology: Topology
) -> Iterator[Facts | TokzooError]:
  """Compiles programs for a machine, one after the other.

  Yields:
    For each its facts, or the error that says why there are none.

  Raises:
    TokzooError: the machine's compiler is not installed.
  """
  if not is_installed(str(topology)):
    raise missing_extra(topology.chip.packages[0], "plan", f"planning for {topology}")
  asked = [{"recipe": to_json(recipe), "what": what} for recipe, what in programs]
  modules = {name: path for one in asked for name, path in _modules(one["recipe"])}
  done = 0
  while done < len(asked):
    request = {
      "topology": str(topology),
      "modules": modules,
      "programs": asked[done:],
    }
    for told in _run(request, topology):
      done += 1
      yield TokzooError(told["error"]) if "error" in told else told["facts"]


def _run(request: dict[str, Any], topology: Topology) -> Iterator[dict[str, Any]]:
  """The answers of one process, as they come; at its death, one that says so."""
  with tempfile.TemporaryDirectory() as folder:
    requests, answers = Path(folder) / "requests.json", Path(folder) / "answers.jsonl"
    errors = Path(folder) / "stderr"
    requests.write_text(json.dumps(request))
    answers.touch()
    command = [sys.executable, "-m", "tokzoo.train.plan.child", requests, answers]
    with open(errors, "wb") as stderr:
      process = subprocess.Popen(
        command,
        env=pinned(topology, os.environ),
        stdout=stderr,
        stderr=stderr,
        stdin=subprocess.DEVNULL,
      )
    try:
      given, line = 0, ""
      with open(answers) as file:
        while True:
          is_over = process.poll() is not None
          for piece in file:
            line += piece  # which may end before the line does
            if line.endswith("\n"):
              given += 1
              yield json.loads(line)
              line = ""
          if is_over:
            break
          try:
            process.wait(0.1)
          except subprocess.TimeoutExpired:
            continue
    finally:
      process.kill()
      process.wait()
    if given < len(request["programs"]):
      yield {"error": _last_words(process.returncode, errors.read_text("utf-8"))}


def _last_words(code: int, text: str) -> str:
  # jax ends a traceback with a note on how to get more of it.
  note = ("--------------------", "For simplicity, JAX has removed")
  lines = [line for line in text.splitlines() if line.strip()]
  lines = [line for line in lines if not line.startswith(note)]
  return (
    f"the process that compiles ended with code {code}: "
    f"{lines[-1].strip()[:300] if lines else 'it said nothing'}"
  )


def _modules(value: Any) -> Iterator[tuple[str, str]]:
  """Name and file of the modules outside tokzoo that a recipe's JSON names."""
  if isinstance(value, list):
    for item in value:
      yield from _modules(item)
  if isinstance(value, dict):
    for key, item in value.items():
      if key in ("class", "function") and isinstance(item, str):
        name = item.partition(":")[0]
        file = getattr(sys.modules.get(name), "__file__", None)
        if name.split(".")[0] != "tokzoo" and file:
          yield name, str(Path(file).resolve())
      else:
        yield from _modules(item)
