"""Reads a compiled program: its instructions, as XLA prints them (`compiled.as_text()`).

Only what counting needs is kept: shapes, operands, and the attributes as text. What a
program costs is in `costs.py`.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator

import numpy as np

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\) -> .*\{$")
_NAMES = re.compile(r"%([\w.\-]+)")
_COMMENT = re.compile(r"/\*[^*]*\*/")


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array. `is_hbm`: it lies in main memory, not in a scratchpad on the chip."""

  dtype: str
  dims: tuple[int, ...]
  is_hbm: bool = True

  @property
  def size(self) -> int:
    """Elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    """Without the padding of a tiled layout."""
    bits = _BITS.get(self.dtype)
    if bits is None:
      digits = re.match(r"[a-z]+(\d+)", self.dtype)
      bits = int(digits[1]) if digits else 0
    return self.size * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  shapes:      of what it makes; several for a tuple
  operands:    names
  attributes:  what follows the opcode, as text
  """

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  def called(self, *keys: str) -> list[str]:
    """Computations named by attributes: `called("body")` of `body=%region_0`."""
    found = []
    for key in keys:
      for one, several in re.findall(
        rf"\b{key}=(?:%([\w.\-]+)|\{{([^}}]*)\}})", self.attributes
      ):
        found += [one] if one else _NAMES.findall(several)
    return found


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions by name, in order."""

  name: str
  instructions: dict[str, Instruction]

  @property
  def root(self) -> Instruction:
    """What it returns."""
    return next(i for i in reversed(self.instructions.values()) if i.is_root)

  def users(self, name: str) -> list[Instruction]:
    """Instructions that read a value."""
    return self._users.get(name, [])

  @functools.cached_property
  def _users(self) -> dict[str, list[Instruction]]:
    found: dict[str, list[Instruction]] = {}
    for instruction in self.instructions.values():
      for operand in instruction.operands:
        found.setdefault(operand, []).append(instruction)
    return found


@dataclasses.dataclass(frozen=True)
class Module:
  """A program."""

  computations: dict[str, Computation]
  entry: str


def parse_module(text: str) -> Module:
  """The program that XLA printed."""
  computations: dict[str, Computation] = {}
  entry, current = "", None
  for line in text.splitlines():
    if current is None:
      header = _HEADER.match(line)
      if header:
        current = Computation(header[2], {})
        computations[header[2]] = current
        entry = header[2] if header[1] else entry
    elif line.startswith("}"):
      current = None
    elif " = " in line:
      instruction = _instruction(line)
      current.instructions[instruction.name] = instruction
  return Module(computations, entry)


def _instruction(line: str) -> Instruction:
  left, _, right = line.strip().partition(" = ")
  is_root = left.startswith("ROOT ")
  shape_end = _closing(right) if right.startswith("(") else right.index(" ")
  shape, rest = right[:shape_end], right[shape_end:].lstrip()
  opcode, _, rest = rest.partition("(")
  operands_end = _closing("(" + rest) - 1
  return Instruction(
    name=left.removeprefix("ROOT ").lstrip("%"),
    shapes=tuple(_shapes(shape)),
    opcode=opcode,
    operands=tuple(_NAMES.findall(rest[:operands_end])),
    attributes=rest,
    is_root=is_root,
  )


def _closing(text: str) -> int:
  """Where the parenthesis that `text` begins with has been closed."""
  depth = 0
  for place, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return place + 1
  raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def _shapes(text: str) -> Iterator[Shape]:
  for dtype, dims, layout in _SHAPE.findall(_COMMENT.sub("", text)):
    sizes = tuple(int(size) for size in dims.split(",") if size)
    # A TPU's layout names another memory than its main one: S(1) is VMEM.
    yield Shape(dtype, sizes, not re.search(r"S\([1-9]", layout))


def trip_count(module: Module, loop: Instruction) -> int | None:
  """How often a `while` runs; None where the program does not say.

  Compilers write it down where they can; else the condition `counter < constant` of a scan
  says it, whose counter begins at 0.
  """
  told = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
  if told:
    return int(told[1])
  condition = module.computations[loop.called("condition")[0]]
  if (
    condition.root.opcode != "compare"
    or "direction=LT" not in condition.root.attributes
  ):
    return None
  for name in condition.root.operands:
    found = condition.instructions[name]
    value = (
      re.match(r"(\d+)\)", found.attributes) if found.opcode == "constant" else None
    )
    if value:
      return int(value[1])
  return None


def groups(instruction: Instruction, num_devices: int) -> np.ndarray:
  """Who takes part in a collective.

  XLA writes groups as lists, {{0,1},{2,3}}; as a transposed count, [2,4]<=[4,2]T(1,0); or as
  axes of a mesh, mesh['a'=4,'b'=2] {'a'}. Pairs of a permutation come as groups of two.

  Returns:
    int[groups, members]: places in the program's device order.
  """
  text = instruction.attributes
  pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", text)
  listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", text)
  for found in (pairs, listed):
    if found:
      rows = re.findall(r"\{([\d,]+)\}", found[1])
      return np.array([[int(d) for d in row.split(",")] for row in rows])
  counted = re.search(
    r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text
  )
  if counted:
    return _iota(counted[2]).reshape(_numbers(counted[1]))
  mesh = re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}", text
  )
  if mesh:
    return _mesh_groups(mesh[1], mesh[2], mesh[3])
  return np.arange(num_devices)[None]


def _mesh_groups(axes: str, order: str | None, chosen: str) -> np.ndarray:
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  count = math.prod(sizes.values())
  ids = _iota(order) if order else np.arange(count)
  # Part of an axis: 'a':(2)4 is 4 of the devices along `a`, after 2 coarser parts.
  dims: list[int] = []
  inside: list[int] = []
  parts = {
    name: (int(before or 1), int(size or sizes[name]))
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
  }
  for name, size in sizes.items():
    if name in parts:
      before, here = parts[name]
      inside.append(len(dims) + 1)
      dims += [before, here, size // (before * here)]
    else:
      dims.append(size)
  outside = [axis for axis in range(len(dims)) if axis not in inside]
  members = math.prod(dims[axis] for axis in inside)
  return ids.reshape(dims).transpose(outside + inside).reshape(-1, members)


def _iota(text: str) -> np.ndarray:
  """[2,8]T(1,0): the numbers from 0, reshaped and transposed."""
  shape, _, order = text.partition("T")
  dims = _numbers(shape.strip("[]"))
  ids = np.arange(math.prod(dims)).reshape(dims)
  return (ids.transpose(_numbers(order.strip("()"))) if order else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


def window(instruction: Instruction) -> list[dict[str, int]]:
  """The window of a convolution: size, stride, pad, dilations along each spatial axis."""
  found = re.search(r"window=\{([^}]*)\}", instruction.attributes)
  fields: dict[str, str] = dict(
    field.split("=", 1) for field in (found[1].split() if found else [])
  )
  rank = len(fields["size"].split("x")) if "size" in fields else 0

  def numbers(name: str, default: str) -> list[str]:
    return fields.get(name, "x".join([default] * rank)).split("x") if rank else []

  columns = (
    numbers("size", "1"),
    numbers("stride", "1"),
    [pad.split("_")[0] for pad in numbers("pad", "0_0")],
    numbers("lhs_dilate", "1"),
    numbers("rhs_dilate", "1"),
  )
  names = ("size", "stride", "pad", "lhs_dilate", "rhs_dilate")
  return [
    dict(zip(names, map(int, row), strict=True)) for row in zip(*columns, strict=True)
  ]


@functools.lru_cache(maxsize=4096)
def valid_positions(
  inputs: int, outputs: int, size: int, stride: int, pad: int, lhs: int, rhs: int
) -> int:
  """Pairs of output and window positions of one axis that meet an input element.

  Padding and the holes of a dilated input cost nothing, as XLA counts too.
  """
  total = 0
  for start in itertools.count(0, 1024):
    if start >= size:
      return total
    places = np.arange(start, min(start + 1024, size))[:, None] * rhs - pad
    index = places + np.arange(outputs)[None] * stride
    total += int(((index >= 0) & (index % lhs == 0) & (index // lhs < inputs)).sum())
  return total
