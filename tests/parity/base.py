"""What a fixture comparison is, and how a computed tensor is held against the authors'."""

import dataclasses
import importlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tokzoo.errors import TokzooError, unknown
from tokzoo.files import read_safetensors

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Ids:
  """Computed indices or bits: equal to the letter except where `tied`."""

  values: np.ndarray
  tied: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
  """How one kind of fixture is computed, and how close it must come.

  compute:    (config, tensors) -> every out/, grad/ and after/ tensor by its name
  tolerance:  rtol and atol: 1e-4 for whole models, 1e-5 for layers
  noisy:      regular expressions of tensors with a wider one: where a tiny random network
              amplifies the noise of float32 in the authors' own code as well
  """

  compute: Callable[[dict, Tensors], Mapping[str, np.ndarray | Ids]]
  tolerance: float = 1e-4
  noisy: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def tolerance_of(self, name: str) -> float:
    """Of one tensor."""
    wider = [t for names, t in self.noisy.items() if re.fullmatch(names, name)]
    return max([self.tolerance, *wider])


@dataclasses.dataclass(frozen=True)
class Row:
  """One tensor of a fixture."""

  name: str
  shape: tuple[int, ...]
  error: float
  tolerance: float
  passed: bool
  note: str = ""


def comparisons() -> dict[str, Comparison]:
  """All comparisons, by kind. A kind has one comparison, a system one file or a few."""
  found: dict[str, Comparison] = {}
  for file in sorted(Path(__file__).parent.glob("*.py")):
    if file.stem in ("base", "run") or file.stem.startswith(("test_", "_")):
      continue
    module = importlib.import_module(f"tests.parity.{file.stem}")
    for kind, comparison in module.COMPARISONS.items():
      if kind in found:
        raise TokzooError(f"the fixture kind {kind!r} has two comparisons.")
      found[kind] = comparison
  return found


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
  """`jax.jit` without the compiler's slower passes: what runs once is not worth them."""
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def applied(module: Any, variables: Any, *arguments: Any, **settings: Any) -> Any:
  """`module.apply`, compiled as one program: operation by operation, each is compiled."""
  run = compiled(lambda v, given: module.apply(v, *given, **settings))
  return run(variables, arguments)


def compare(path: Path) -> list[Row]:
  """Runs the comparison of one fixture: out/, grad/, grad_in/ (of an input) and after/."""
  tensors, metadata = read_safetensors(path, "fixture")
  known = comparisons()
  kind = metadata.get("kind", "")
  if kind not in known:
    raise unknown("fixture kind", kind, known)
  comparison = known[kind]
  computed = comparison.compute(json.loads(metadata["config"]), tensors)
  held = ("out", "grad", "grad_in", "after")
  wanted = [name for name in tensors if name.split("/")[0] in held]
  return [_row(name, tensors[name], computed.get(name), comparison) for name in wanted]


def _row(name: str, expected: np.ndarray, got, comparison: Comparison) -> Row:
  shape = tuple(expected.shape)
  tolerance = comparison.tolerance_of(name)
  if got is None:
    return Row(name, shape, float("inf"), tolerance, False, "not computed")
  if isinstance(got, Ids):
    values = np.asarray(got.values)
    if values.shape != shape:
      return Row(name, shape, float("inf"), 0.0, False, f"shape {values.shape}")
    differ = values != expected
    tied = (
      np.zeros(shape, bool) if got.tied is None else np.broadcast_to(got.tied, shape)
    )
    wrong = int((differ & ~tied).sum())
    note = f"{int((differ & tied).sum())} ties" if (differ & tied).any() else "exact"
    return Row(name, shape, float(wrong), 0.0, wrong == 0, note)
  values = np.asarray(got)
  if values.shape != shape:
    return Row(name, shape, float("inf"), tolerance, False, f"shape {values.shape}")
  error = float(np.max(np.abs(values - expected), initial=0.0))
  # Gradients are small numbers: an absolute tolerance of their own size would pass zeros.
  largest = float(np.max(np.abs(expected), initial=0.0))
  atol = tolerance * min(1.0, largest) if name.startswith("grad") else tolerance
  close = np.allclose(values, expected, rtol=tolerance, atol=atol)
  return Row(name, shape, error, atol, bool(close))
