"""What one run of a compiled program costs a device: operations, bytes, collectives.

XLA's own count has two gaps: it takes the body of a loop once, however often it runs, and
for a GPU there is none. So the program is walked here, a loop's body times its trips.

  operations  2 for each multiplication and addition of a product or convolution, without
              those that meet padding (as XLA counts), and what kernels say of themselves.
              Elementwise work is left out: it is bound by memory
  bytes       what each instruction reads from and writes to main memory. A fusion is one
              instruction; of an operand that it only slices, the slice counts. What stays in
              a scratchpad (VMEM) is free
  sent        bytes that a device sends in a collective, by the ring algorithm, of x bytes of
              operands over n members: all-reduce 2 x (n - 1) / n, all-gather x (n - 1),
              reduce-scatter and all-to-all x (n - 1) / n, permute x
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from tokzoo.machines import hlo
from tokzoo.machines.hlo import Computation, Instruction, Module, Shape

_FREE = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
  *("while", "conditional", "call", "partition-id", "replica-id", "domain"),
  *("opt-barrier", "add-dependency", "copy-done", "async-update", "async-done"),
}
_COLLECTIVES = {
  *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
  *("collective-permute", "collective-broadcast"),
}
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of collective over one kind of wire, in one run of the program.

  kind:     as XLA calls it
  over:     "link" inside a slice or node (ICI, NVLink), "network" between them (DCN)
  count:    how many
  sent:     bytes that each device sends
  crossing: bytes of these that leave its slice or node, per device
  """

  kind: str
  over: str
  count: int
  sent: float
  crossing: float


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of one run on one device.

  flops:           see above
  hbm_bytes:       read and written
  collectives:     summed by kind and wire
  unknown_loops:   loops whose trips the program does not say; their bodies count once
  unknown_kernels: kernels that do not say what they cost
  """

  flops: float
  hbm_bytes: float
  collectives: tuple[Collective, ...]
  unknown_loops: int
  unknown_kernels: tuple[str, ...]

  @property
  def sent(self) -> float:
    """Bytes that each device sends in all collectives."""
    return sum(collective.sent for collective in self.collectives)


def count(text: str, islands: Sequence[int]) -> Costs:
  """Counts a program.

  Args:
    text: `compiled.as_text()`.
    islands: of each device in the program's order, the slice or node that it is in.
  """
  module = hlo.parse_module(text)
  counter = _Counter(module, np.asarray(islands))
  counter.visit(module.computations[module.entry], 1.0)
  return counter.costs()


class _Counter:
  """Walks a program from its entry, with the number of times that each part runs."""

  def __init__(self, module: Module, islands: np.ndarray):
    self._module = module
    self._islands = islands
    self._flops = 0.0
    self._bytes = 0.0
    self._seen: dict[str, tuple[float, Collective]] = {}
    self._unknown_loops = 0
    self._unknown_kernels: set[str] = set()

  def costs(self) -> Costs:
    sums: dict[tuple[str, str], list[float]] = {}
    for times, one in self._seen.values():
      total = sums.setdefault((one.kind, one.over), [0.0, 0.0, 0.0])
      for place, value in enumerate((1.0, one.sent, one.crossing)):
        total[place] += times * value
    collectives = tuple(
      Collective(kind, over, round(number), sent, crossing)
      for (kind, over), (number, sent, crossing) in sorted(sums.items())
    )
    kernels = tuple(sorted(self._unknown_kernels))
    return Costs(self._flops, self._bytes, collectives, self._unknown_loops, kernels)

  def visit(self, part: Computation, times: float, is_fused: bool = False) -> None:
    """Adds what `part` costs, run so many times; a fused one moves nothing by itself."""
    for instruction in part.instructions.values():
      self._flops += times * self._operations(part, instruction)
      if not is_fused:
        self._bytes += times * self._moved(part, instruction)
      self._collect(part, instruction, times)
      match instruction.opcode:
        case "while":
          trips = hlo.trip_count(self._module, instruction)
          self._unknown_loops += trips is None
          self._enter(
            instruction, ("body",), times * (1 if trips is None else trips), is_fused
          )
        case "fusion":
          self._enter(instruction, ("calls",), times, True)
        case "call" | "async-start" | "custom-call":
          self._enter(
            instruction, ("calls", "to_apply", "called_computations"), times, is_fused
          )
        case "conditional":
          self._visit_dearest(instruction, times, is_fused)

  def _enter(
    self, instruction: Instruction, keys: tuple[str, ...], times: float, is_fused: bool
  ) -> None:
    for name in instruction.called(*keys):
      self.visit(self._module.computations[name], times, is_fused)

  def _visit_dearest(
    self, instruction: Instruction, times: float, is_fused: bool
  ) -> None:
    """Of the branches, the one with most to do."""
    names = instruction.called(
      "branch_computations", "true_computation", "false_computation"
    )

    def price(name: str) -> tuple[float, float]:
      alone = _Counter(self._module, self._islands)
      alone.visit(self._module.computations[name], 1.0)
      return alone._flops, alone._bytes

    if names:
      self.visit(self._module.computations[max(names, key=price)], times, is_fused)

  # ------------------------------------------------------------ operations

  def _operations(self, part: Computation, instruction: Instruction) -> float:
    match instruction.opcode:
      case "dot":
        return _dot(part, instruction)
      case "convolution":
        return _convolution(part, instruction)
      case "custom-call":
        return self._library_call(part, instruction)
    return 0.0

  def _library_call(self, part: Computation, instruction: Instruction) -> float:
    """Products and convolutions that a library does, and kernels of ours."""
    text = instruction.attributes
    target = re.search(r'custom_call_target="([^"]*)"', text)
    name = target[1] if target else ""
    if "gemm" in name or "matmul" in name:
      return _dot(part, instruction)
    if name.startswith("__cudnn$conv"):
      return _library_convolution(part, instruction, name)
    if name in ("tpu_custom_call", "mosaic_gpu_v2", "__gpu$xla.gpu.triton"):
      return self._kernel(part, instruction)[0]
    return 0.0

  def _kernel(
    self, part: Computation, instruction: Instruction
  ) -> tuple[float, float | None]:
    """Operations and bytes that a kernel says it costs (`tokzoo.kernels.cost`)."""
    text = instruction.attributes
    told = re.search(r'"cost_estimate":\{([^}]*)\}', text)
    if told:
      named = dict(re.findall(r'"(\w+)":"?(\d+)', told[1]))
      return float(named.get("flops", 0)), float(named.get("bytes_accessed", 0))
    scope = re.search(r"kernel_cost_(\d+)_flops_(\d+)_bytes", text)
    if scope:
      return float(scope[1]), float(scope[2])
    self._unknown_kernels.add(instruction.name)
    return 0.0, None

  # ------------------------------------------------------------ bytes

  def _moved(self, part: Computation, instruction: Instruction) -> float:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
      return 0.0
    written = _hbm(instruction.shapes)
    if opcode == "fusion":
      inner = self._module.computations[instruction.called("calls")[0]]
      return self._moved_by_fusion(part, instruction, inner)
    if opcode == "custom-call":
      if "kernel_cost_" in instruction.attributes or "cost_estimate" in (
        instruction.attributes
      ):
        told = self._kernel(part, instruction)[1]
        if told is not None:
          return told
      if not instruction.operands:  # allocates a buffer
        return 0.0
    if opcode in _SLICES:
      return 2 * written
    if opcode == "dynamic-update-slice":
      return 2 * _hbm(_shapes_of(part, instruction.operands[1]))
    if opcode in ("copy-start", "send", "recv"):
      return 2 * _hbm(instruction.shapes[:1])
    return written + sum(
      _hbm(_shapes_of(part, operand)) for operand in instruction.operands
    )

  def _moved_by_fusion(
    self, part: Computation, instruction: Instruction, inner: Computation
  ) -> float:
    total = 0.0
    parameters = [i for i in inner.instructions.values() if i.opcode == "parameter"]
    number = {int(re.match(r"\d+", p.attributes)[0]): p for p in parameters}  # type: ignore[index]
    for place, operand in enumerate(instruction.operands):
      users = inner.users(number[place].name) if place in number else []
      if users and all(user.opcode in _SLICES for user in users):
        # Of the operand only this is read, wherever it lies.
        is_hbm = bool(_hbm(_shapes_of(part, operand)))
        total += is_hbm * sum(sum(s.bytes for s in u.shapes) for u in users)
      elif users and all(
        user.opcode == "dynamic-update-slice" and user.operands[0] == number[place].name
        for user in users
      ):
        continue  # written in place
      else:
        total += _hbm(_shapes_of(part, operand))
    root = inner.root
    results = root.operands if root.opcode == "tuple" else (root.name,)
    for shape, name in zip(instruction.shapes, results, strict=False):
      result = inner.instructions[name]
      if result.opcode == "dynamic-update-slice" and shape.is_hbm:
        total += sum(s.bytes for s in _shapes_of(inner, result.operands[1]))
      elif shape.is_hbm:
        total += shape.bytes
    return total

  # ------------------------------------------------------------ collectives

  def _collect(self, part: Computation, instruction: Instruction, times: float) -> None:
    kind = instruction.opcode.removesuffix("-start")
    is_between_slices = (
      kind == "send" and "_xla_megascale_transfer_type" in instruction.attributes
    )
    if kind not in _COLLECTIVES and not is_between_slices:
      return
    # A compiler may write the beginning, middle and end of one collective into several
    # fusions; they bear one channel.
    channel = re.search(r"channel_id=(\d+)", instruction.attributes)
    key = f"{kind} {channel[1]}" if channel else f"{part.name} {instruction.name}"
    if key in self._seen and self._seen[key][0] >= times:
      return
    operand_bytes = sum(
      sum(shape.bytes for shape in _shapes_of(part, name))
      for name in instruction.operands
      if not instruction.opcode.startswith("send") or name == instruction.operands[0]
    )
    if is_between_slices:
      found = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
      assert found is not None
      kind = found[1].lower().replace("_", "-")
      slices = len(set(self._islands.tolist()))
      one = _sent(kind, operand_bytes, slices, slices)
    else:
      if kind == "all-reduce" and "all-reduce-scatter" in part.name:
        kind = (
          "reduce-scatter"  # TPUs write one as the fusion of a reduction and a slice
        )
      if instruction.opcode == "all-gather-start" and not instruction.operands:
        operand_bytes = instruction.shapes[0].bytes
      members = hlo.groups(instruction, len(self._islands))
      islands = max(len(set(row)) for row in self._islands[members].tolist())
      one = _sent(kind, operand_bytes, members.shape[1], islands)
    self._seen[key] = (times, one)


def _sent(kind: str, operand_bytes: float, members: int, islands: int) -> Collective:
  """One collective among `members` devices, spread over so many slices or nodes."""
  n = max(members, 1)
  match kind:
    case "all-reduce":
      sent = 2 * operand_bytes * (n - 1) / n
    case "all-gather":
      sent = operand_bytes * (n - 1)
    case "collective-permute" | "collective-broadcast":
      sent = operand_bytes
    case _:
      sent = operand_bytes * (n - 1) / n
  if islands == 1:
    return Collective(kind, "link", 1, sent, 0.0)
  # A ring leaves a slice once, and its members there share the way out.
  return Collective(kind, "network", 1, sent, sent * islands / n)


def _shapes_of(part: Computation, name: str) -> tuple[Shape, ...]:
  found = part.instructions.get(name)
  return found.shapes if found else ()


def _hbm(shapes: Sequence[Shape]) -> float:
  return sum(shape.bytes for shape in shapes if shape.is_hbm)


def _dot(part: Computation, instruction: Instruction) -> float:
  """2 |out| times the length of the sum."""
  contracting = re.search(
    r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', instruction.attributes
  )
  left = _shapes_of(part, instruction.operands[0])
  if contracting is None or not left:
    return 0.0
  axes = [int(axis) for axis in re.findall(r"\d+", contracting[1])]
  return 2.0 * instruction.shapes[0].size * math.prod(left[0].dims[a] for a in axes)


def _convolution(part: Computation, instruction: Instruction) -> float:
  """2 times the products of an input element and a weight that exist."""
  (left,), (kernel,) = (_shapes_of(part, name) for name in instruction.operands[:2])
  out = instruction.shapes[0]
  of_left, of_kernel, of_out = _labels(instruction)
  total = 2.0 * left.dims[of_left.index("b")] * left.dims[of_left.index("f")]
  total *= kernel.dims[of_kernel.index("o")]
  for axis, place in enumerate(hlo.window(instruction)):
    total *= hlo.valid_positions(
      left.dims[of_left.index(str(axis))],
      out.dims[of_out.index(str(axis))],
      place["size"],
      place["stride"],
      place["pad"],
      place["lhs_dilate"],
      place["rhs_dilate"],
    )
  for group in ("feature_group_count", "batch_group_count"):
    found = re.search(rf"{group}=(\d+)", instruction.attributes)
    total /= int(found[1]) if found else 1
  return total


def _library_convolution(
  part: Computation, instruction: Instruction, name: str
) -> float:
  """2 |output| |weights| / output features, whichever of the three is asked for."""
  first, second = (_shapes_of(part, o)[0] for o in instruction.operands[:2])
  made = instruction.shapes[0]
  if "BackwardInput" in name:
    output, weights = first, second
  elif "BackwardFilter" in name:
    output, weights = second, made
  else:
    output, weights = made, second
  _, of_kernel, _ = _labels(instruction)
  return 2.0 * output.size * weights.size / weights.dims[of_kernel.index("o")]


def _labels(instruction: Instruction) -> tuple[str, str, str]:
  """What each axis is, "b01f_01io->b01f": of the input, of the weights, of the output."""
  found = re.search(r"dim_labels=(\w+?)_(\w+?)->(\w+)", instruction.attributes)
  assert found is not None
  return found[1], found[2], found[3]
