"""The process that compiles: its backend is pinned to the CPU before jax is imported.

  python -m tokzoo.train.plan.child REQUESTS ANSWERS

REQUESTS is a JSON file: the topology, the modules that recipes name beside tokzoo's, and a
list of programs. ANSWERS gets one line of JSON for each, as soon as it is there: what the
compiler says (`Facts`), or one sentence why there is nothing.
"""

import importlib.util
import json
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax

from tokzoo.errors import TokzooError, missing_extra
from tokzoo.machines import parse
from tokzoo.machines.costs import count
from tokzoo.machines.topologies import devices
from tokzoo.train.mesh import make_mesh
from tokzoo.train.plan.programs import lower, memory_of
from tokzoo.train.serial import from_json


def main(requests: str, answers: str) -> None:
  """Compiles everything that was asked for."""
  asked = json.loads(Path(requests).read_text())
  for name, path in asked["modules"].items():
    _load(name, path)
  with open(answers, "a") as file:
    for program in asked["programs"]:
      try:
        told = {"facts": _compile(asked["topology"], **program)}
      except TokzooError as error:
        told = {"error": str(error)}
      file.write(json.dumps(told) + "\n")
      file.flush()


_GPU_OPTIONS = {
  # Products as calls of cuBLAS: tiles of Triton kernels are found by trying them out on a
  # device, and the guess in its place fails at many shapes.
  "xla_gpu_enable_triton_gemm": False,
  # Nobody runs the machine code; what is read off the program comes before it.
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}


def _compile(topology_name: str, recipe: Any, what: Any) -> dict[str, Any]:
  topology = parse(topology_name)
  read = from_json(recipe)
  mesh = make_mesh(read.mesh, devices(topology_name))
  program = lower(read, what, mesh)
  facts: dict[str, Any] = {
    "mesh": dict(mesh.shape),
    "num_params": program.num_params,
    "batch_bytes": program.batch_bytes,
  }
  start = time.perf_counter()
  try:
    with warnings.catch_warnings():
      # A cache on disk keeps such programs, but nobody can load them without the machine.
      warnings.filterwarnings("ignore", "Error .* persistent compilation cache")
      options = _GPU_OPTIONS if topology.chip.platform == "cuda" else {}
      compiled = program.lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    needed = _needed_bytes(str(error), program.argument_bytes)
    if needed is None:
      raise _refused(topology_name, str(error)) from error
    return {**facts, "too_large": needed, "compile_seconds": _since(start)}
  facts["compile_seconds"] = _since(start)
  facts["memory"] = memory_of(compiled)
  text = compiled.as_text()
  costs = count(text, topology.islands(list(mesh.devices.flat)))
  analysis = compiled.cost_analysis() or {}
  seconds = analysis.get("optimal_seconds", 0.0)
  facts["compiler_seconds"] = seconds if seconds > 0 and " while(" not in text else None
  facts["flops"] = costs.flops
  facts["hbm_bytes"] = costs.hbm_bytes
  facts["collectives"] = [vars(one) for one in costs.collectives]
  facts["unknown_loops"] = costs.unknown_loops
  facts["unknown_kernels"] = list(costs.unknown_kernels)
  return facts


def _refused(topology_name: str, message: str) -> TokzooError:
  """What a compiler says that refuses a program, or cannot compile any."""
  if "libdevice not found" in message or "ptxas" in message:
    return missing_extra(
      "nvidia-cuda-nvcc-cu12", "plan", f"planning for {topology_name}"
    )
  first = message.splitlines()[0]
  return TokzooError(
    f"the compiler of {topology_name} refuses the program: {first[:300]}"
  )


def _needed_bytes(message: str, argument_bytes: int) -> float | None:
  """What a program takes, when a TPU's compiler refuses it for that; or None."""
  found = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds", message)
  if "RESOURCE_EXHAUSTED" not in message or found is None:
    return None
  return argument_bytes + float(found[1]) * 1024 ** (1 + "KMGT".index(found[2]))


def _since(start: float) -> float:
  return time.perf_counter() - start


def _load(name: str, path: str) -> None:
  """An experiment's module, under the name that the recipe's classes bear."""
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)


if __name__ == "__main__":
  main(*sys.argv[1:])
