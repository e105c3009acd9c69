"""Recipes as JSON: readable by people, and read back into the same dataclasses.

A dataclass becomes an object with the key "class" ("module:QualName") before its fields, a
dtype {"dtype": "bfloat16"}, a function {"function": "module:name"}; lists come back as
tuples, since a config is hashable. Linen modules are dataclasses, so they work as fields.
"""

import dataclasses
import importlib
import json
import sys
import types
from typing import Any

import flax.linen as nn
import numpy as np

from tokzoo.errors import TokzooError

_LINEN = ("parent", "name")
"""Fields that every Linen module has; they belong to the module tree, not to the config."""


def to_json(value: Any) -> Any:
  """A config as JSON values.

  Raises:
    TokzooError: it holds something that has no JSON form here, such as an array.
  """
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, tuple | list):
    return [to_json(item) for item in value]
  if isinstance(value, dict):
    return {str(key): to_json(item) for key, item in value.items()}
  if not isinstance(value, type) and dataclasses.is_dataclass(value):
    fields = {
      field.name: to_json(getattr(value, field.name)) for field in _fields(type(value))
    }
    return {"class": _address(type(value)), **fields}
  if isinstance(value, np.dtype) or (
    hasattr(value, "dtype") and isinstance(value, type)
  ):
    return {"dtype": np.dtype(value).name}
  if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
    return {"function": _address(value)}
  raise TokzooError(
    f"a recipe is written into every checkpoint, but {value!r} ({type(value).__name__}) "
    "has no JSON form: use numbers, strings, tuples, dtypes, functions or dataclasses."
  )


def from_json(value: Any) -> Any:
  """What `to_json` wrote, as the same dataclasses.

  Names are looked up in tokzoo and in modules that are already imported, nowhere else.

  Raises:
    TokzooError: a class or field that this tokzoo does not have.
  """
  if isinstance(value, list):
    return tuple(from_json(item) for item in value)
  if not isinstance(value, dict):
    return value
  if set(value) == {"dtype"}:
    return np.dtype(value["dtype"])
  if set(value) == {"function"}:
    return _find(value["function"])
  fields = {key: from_json(item) for key, item in value.items() if key != "class"}
  if "class" not in value:
    return fields
  cls: Any = _find(value["class"])
  if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
    raise TokzooError(
      f"{value['class']} is no dataclass: the recipe was changed by hand."
    )
  strange = set(fields) - {field.name for field in _fields(cls)}
  if strange:
    raise TokzooError(
      f"the recipe sets {min(strange)!r} of {value['class']}, which this tokzoo does not "
      "have: use the version of tokzoo that wrote it."
    )
  return cls(**fields)


def changes(before: Any, after: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
  """Where two JSON values differ: {"optimizers.model.peak_lr": (0.001, 0.0005)}."""
  if isinstance(before, dict) and isinstance(after, dict):
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(before.keys() | after.keys()):
      inner = f"{path}.{key}" if path else key
      found |= changes(before.get(key), after.get(key), inner)
    return found
  return {} if before == after else {path: (before, after)}


def readable(value: Any) -> bytes:
  """JSON text, indented, with a newline at its end."""
  return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _fields(cls: type) -> list[dataclasses.Field]:
  """The fields that the constructor takes, without those of Linen's module tree."""
  is_linen = issubclass(cls, nn.Module)
  return [
    field
    for field in dataclasses.fields(cls)
    if field.init and not (is_linen and field.name in _LINEN)
  ]


def _address(value: Any) -> str:
  """ "module:QualName"."""
  if "<" in value.__qualname__:
    raise TokzooError(
      f"{value.__qualname__} of {value.__module__} has no name of its own and cannot be "
      "written into a checkpoint: define it at the top level of a module."
    )
  return f"{value.__module__}:{value.__qualname__}"


def _find(address: str) -> Any:
  """The class or function at "module:QualName"."""
  module, _, name = address.partition(":")
  try:
    if module.split(".")[0] == "tokzoo":
      found: Any = importlib.import_module(module)
    else:
      found = sys.modules[module]
    for part in name.split("."):
      found = getattr(found, part)
  except (ImportError, KeyError, AttributeError) as error:
    raise TokzooError(
      f"the recipe names {address}, which is not there: import its module first, or use "
      "the version of tokzoo that wrote it."
    ) from error
  return found
