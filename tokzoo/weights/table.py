"""Conversion tables: the authors' parameter names and layouts to ours, and back.

A table stands beside its model as a tuple of rules

  Rule("encoder.transformer_blocks.{i}.attn.q_proj.weight",
       "params/encoder/block_{i}/attn/q_proj/kernel", LINEAR)

Every rule works both ways: `{name}` stands for one part of a key (no dot, no slash) and is
carried over. Both directions are total: a key that no rule knows, a parameter that no key
fills, or a shape that disagrees is an error that names it.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.traverse_util
import numpy as np

from tokzoo.errors import TokzooError

State = Mapping[str, np.ndarray]
"""The authors' state: key -> array."""


@dataclasses.dataclass(frozen=True)
class Transform:
  """A change of layout and its inverse, with a name for reports."""

  name: str
  to_ours: Callable[[np.ndarray], np.ndarray]
  to_authors: Callable[[np.ndarray], np.ndarray]


KEEP = Transform("keep", lambda x: x, lambda x: x)
LINEAR = Transform("[out, in] -> [in, out]", lambda x: x.T, lambda x: x.T)
CONV2D = Transform(
  "[out, in, h, w] -> [h, w, in, out]",
  lambda x: x.transpose(2, 3, 1, 0),
  lambda x: x.transpose(3, 2, 0, 1),
)
POINTWISE = Transform(
  "[out, in, 1, 1] -> [in, out]",
  lambda x: x.reshape(x.shape[:2]).T,
  lambda x: x.T[:, :, None, None],
)


@dataclasses.dataclass(frozen=True)
class Rule:
  """One line of a table: the authors' key, our path, the change of layout between them."""

  key: str
  path: str
  transform: Transform = KEEP


class Step(Protocol):
  """A change of a whole state and its inverse, e.g. `weight_norm.WeightNorm`."""

  def to_ours(self, state: State) -> State: ...

  def to_authors(self, state: State) -> State: ...


def linear_rules(key: str, path: str) -> tuple[Rule, Rule]:
  """A torch Linear with bias and a Linen Dense."""
  weight = Rule(f"{key}.weight", f"{path}/kernel", LINEAR)
  return weight, Rule(f"{key}.bias", f"{path}/bias")


def conv2d_rules(key: str, path: str) -> tuple[Rule, Rule]:
  """A torch Conv2d with bias and a Linen Conv."""
  weight = Rule(f"{key}.weight", f"{path}/kernel", CONV2D)
  return weight, Rule(f"{key}.bias", f"{path}/bias")


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of a conversion report."""

  key: str
  path: str
  shape: tuple[int, ...]
  transform: str


@dataclasses.dataclass(frozen=True)
class Table:
  """The rules of one system, and keys of published files that hold no parameter.

  rules:     tried in order; the first that matches counts
  ignore:    regular expressions over whole keys (buffers such as `num_batches_tracked`)
  averages:  what the keys of running averages begin with; the rest is the key of the
             parameter without its dots. Where a file holds both, the average counts
  steps:     what happens to a whole state before the rules, in order, and after them on the
             way back, in reverse: what no rule of one key can say
  """

  rules: tuple[Rule, ...]
  ignore: tuple[str, ...] = ()
  averages: str | None = None
  steps: tuple[Step, ...] = ()

  def raw(self) -> "Table":
    """The same table for the parameters themselves, where a file holds their averages, too."""
    if self.averages is None:
      return self
    ignore = (*self.ignore, re.escape(self.averages) + ".*")
    return dataclasses.replace(self, averages=None, ignore=ignore)

  def to_ours(self, state: State, like: Any) -> dict[str, Any]:
    """Converts the authors' state to our variables.

    Args:
      state: the authors' key -> array.
      like: our variables, or their `jax.eval_shape`: the shapes and dtypes to arrive at.

    Returns:
      NumPy arrays in the structure of `like`.

    Raises:
      TokzooError: an unknown key, a missing one, or a shape that disagrees.
    """
    return self.convert(state, like)[0]

  def convert(self, state: State, like: Any) -> tuple[dict[str, Any], list[Row]]:
    """As `to_ours`, and the report: one row per key that was used."""
    wanted = flatten(like)
    found: dict[str, np.ndarray] = {}
    report: list[Row] = []
    state = self._averaged(state)
    for step in self.steps:
      state = step.to_ours(state)
    for key, array in state.items():
      if any(re.fullmatch(pattern, key) for pattern in self.ignore):
        continue
      rule, path = self._match(key, forward=True)
      if path not in wanted:
        raise TokzooError(
          f"the weights hold {key!r} {list(array.shape)}, for which the model as configured "
          f"has no place ({path}): it has {_nearest_sizes(path, wanted)}. Choose the preset "
          "that the file was made with."
        )
      value = rule.transform.to_ours(np.asarray(array))
      expected = wanted[path]
      if value.shape != tuple(expected.shape):
        raise TokzooError(
          f"the weights hold {key!r} of shape {list(array.shape)}, but the model as configured "
          f"expects {list(expected.shape)} at {path}: choose the preset that the file was made "
          "with."
        )
      found[path] = np.asarray(value, expected.dtype, order="C")
      report.append(Row(key, path, tuple(array.shape), rule.transform.name))
    missing = sorted(set(wanted) - set(found))
    if missing:
      keys = [self._match(path, forward=False)[1] for path in missing]
      raise TokzooError(
        f"the weights lack {_some(keys)}, which the model as configured needs: "
        "choose the preset that the file was made with, or fetch the whole file again."
      )
    return unflatten(found), report

  def to_authors(self, variables: Any) -> dict[str, np.ndarray]:
    """The inverse: our variables in the authors' names and layouts.

    Raises:
      TokzooError: a parameter that no rule knows.
    """
    state = {}
    for path, value in flatten(variables).items():
      rule, key = self._match(path, forward=False)
      state[key] = np.asarray(rule.transform.to_authors(np.asarray(value)), order="C")
    return dict(self._published(state))

  def published_shapes(self, like: Any) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a published file of a model of these shapes, without its arrays.

    Raises:
      TokzooError: a parameter that no rule knows.
    """
    state = {}
    for path, leaf in flatten(like).items():
      rule, key = self._match(path, forward=False)
      one = np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
      state[key] = rule.transform.to_authors(one)
    return {key: array.shape for key, array in self._published(state).items()}

  def _published(self, state: State) -> State:
    """The steps' way back."""
    for step in reversed(self.steps):
      state = step.to_authors(state)
    return state

  def _averaged(self, state: State) -> State:
    """The state with each parameter that has a running average replaced by it."""
    if self.averages is None:
      return state
    named = {f"{self.averages}{key.replace('.', '')}": key for key in state}
    return {key: array for key, array in state.items() if key not in named} | {
      named[key]: array for key, array in state.items() if key in named
    }

  def _match(self, name: str, forward: bool) -> tuple[Rule, str]:
    """The first rule for a key (forward) or a path, and the name on the other side."""
    for rule in self.rules:
      source, target = (rule.key, rule.path) if forward else (rule.path, rule.key)
      match = re.fullmatch(_pattern(source), name)
      if match:
        return rule, target.format(**match.groupdict())
    side = "the weights hold" if forward else "the model has"
    raise TokzooError(
      f"{side} {name!r}, which the conversion table does not know: "
      "it may be of another system, or of a wrapper (a prefix such as 'module.')."
    )


def flatten(variables: Any) -> dict[str, Any]:
  """A tree of dictionaries as {"params/encoder/kernel": leaf}."""
  return flax.traverse_util.flatten_dict(variables, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  return flax.traverse_util.unflatten_dict(dict(flat), sep="/")


def fingerprint(variables: Any) -> str:
  """SHA-256 over every path, shape, dtype and value: which weights these are."""
  state = hashlib.sha256()
  for path, value in sorted(flatten(variables).items()):
    array = np.asarray(value)
    state.update(f"{path} {array.dtype.name} {array.shape}\n".encode())
    state.update(array.tobytes())
  return state.hexdigest()


def _pattern(template: str) -> str:
  """A rule's key or path as a regular expression: {name} is one part without dot or slash."""
  parts = re.split(r"\{(\w+)\}", template)
  seen: set[str] = set()
  pattern = ""
  for index, part in enumerate(parts):
    if index % 2 == 0:
      pattern += re.escape(part)
    else:
      pattern += f"(?P={part})" if part in seen else rf"(?P<{part}>[^./]+)"
      seen.add(part)
  return pattern


def _nearest_sizes(path: str, wanted: Mapping[str, Any]) -> str:
  parent = path.rsplit("/", 1)[0]
  siblings = sorted(p for p in wanted if p.startswith(parent + "/"))
  return _some(siblings) if siblings else f"nothing under {parent}"


def _some(names: list[str], most: int = 4) -> str:
  """A few names and how many more there are."""
  text = ", ".join(repr(name) for name in names[:most])
  return text + (f" and {len(names) - most} more" if len(names) > most else "")
