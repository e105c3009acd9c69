"""`tokzoo bench kernels`, `train`, `images`, `sound`, `scaling`: how fast tokzoo is, beside named peers."""

import dataclasses
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any, Literal

import jax
from rich.console import Console

from tokzoo.cli.console import emit, facts, parse, table
from tokzoo.errors import TokzooError, missing_extra, unknown
from tokzoo.kernels.codebook_search.arg_specs import ARG_SPECS
from tokzoo.version import code_version

_HELP = """usage: tokzoo bench COMMAND ...

  tokzoo bench kernels   Codebook search, bit packing and a VQ step beside named peers.
  tokzoo bench train     The trainer's step beside PyTorch's, and what its loop costs.
  tokzoo bench images    Image tokenizers and generators beside the same in PyTorch.
  tokzoo bench sound     Codecs of sound beside the same in transformers.
  tokzoo bench scaling   Operations and collectives of one device of 1, 2, 4 and 8.

tokzoo bench COMMAND --help says more."""


def run_bench(arguments: Sequence[str]) -> int:
  commands = {
    "kernels": kernels,
    "train": train,
    "images": images,
    "sound": sound,
    "scaling": scaling,
  }
  if not arguments or arguments[0] in ("-h", "--help"):
    print(_HELP)
    return 0
  name, *rest = arguments
  if name not in commands:
    raise unknown("benchmark", name, commands)
  return int(parse(commands[name], f"bench {name}", rest) or 0)


def kernels(
  op: Literal["all", "codebook_search", "bit_packing", "vq_step"] = "all",
  spec: str | None = None,
  turns: int = 5,
  json: bool = False,
) -> None:
  """Times what the project's speed stands on, turn by turn with named peers.

  A ratio is our time divided by the peer's, both medians of the same turns: below 1 we are
  faster. Peers that are not installed are left out with a word: `pip install tokzoo[bench]`.

  Args:
    op: only one of them: the search, the bit packing, the training step made of them.
    spec: of codebook_search, one shape by name, also one that is slow on a CPU.
    turns: how often each program runs.
    json: print JSON instead of a table.
  """
  from tokzoo.kernels.bit_packing import bench as bit_packing
  from tokzoo.kernels.codebook_search import bench as codebook_search
  from tokzoo.quantizers import bench as vq_step

  if turns < 1:
    raise TokzooError(f"{turns} turns measure nothing: choose 1 or more.")
  names = {each.name for each in ARG_SPECS}
  if spec is not None and spec not in names:
    raise unknown("spec", spec, names)
  for peer, package in codebook_search.missing_peers().items():
    print(
      f"{peer} is left out, since {package} is not installed: "
      'pip install "tokzoo[bench]".',
      file=sys.stderr,
    )
  rows = []
  if op in ("all", "codebook_search"):
    for row in codebook_search.bench(turns, spec):
      rows.append(row)
      if row.peer == "naive jax.numpy":
        print(f"{row.op} {row.spec}: {row.seconds:.4f} s", file=sys.stderr)
  if op in ("all", "bit_packing") and spec is None:
    rows.extend(bit_packing.bench(turns))
  if op in ("all", "vq_step") and spec is None:
    rows.extend(vq_step.bench(turns))
  told = {**_here(), "rows": [dataclasses.asdict(row) for row in rows]}

  def render(console: Console) -> None:
    columns = ("op", "spec", "ours", "seconds", "peer", "its seconds", "ratio", "MiB")
    console.print(
      table(
        _title(told),
        columns,
        [
          (
            row.op,
            row.spec,
            row.implementation,
            row.seconds,
            row.peer,
            row.peer_seconds,
            row.ratio,
            _mib(row.peak_bytes),
          )
          for row in rows
        ],
      )
    )
    console.print("ratio: our time / the peer's, MiB: beyond inputs and outputs")

  emit(told, json, render)


def train(
  turns: int = 7, batch_size: int = 8, steps: int = 300, json: bool = False
) -> None:
  """Times the trainer on a tiny TiTok-like tokenizer, with the same written in PyTorch.

  The step alone is forward, backward and AdamW, float32, on one device, turn by turn with
  PyTorch, eager and compiled; a ratio below 1 says that ours is faster. Then the trainer runs
  with data, log lines and checkpoints: what it takes longer than the step is lost outside.

  Args:
    turns: how often each step is timed.
    batch_size: pictures of 64 x 64 pixels.
    steps: of the trainer's run.
    json: print JSON instead of tables.
  """
  from tokzoo.train.bench import trainer

  if turns < 1 or batch_size < 1:
    raise TokzooError(
      f"{turns} turns of batches of {batch_size} measure nothing: choose 1 or more."
    )
  report = trainer.bench(turns, batch_size, steps)
  if report.left_out:
    print(f"the peers are left out: {report.left_out}.", file=sys.stderr)
  told = {**_here(), **dataclasses.asdict(report)}

  def render(console: Console) -> None:
    millions = report.parameters / 1e6
    title = (
      f"a step of {batch_size} pictures, {millions:.1f} M parameters; {_title(told)}"
    )
    columns = ("step", "seconds", "examples/s", "ours / its", "first step (s)")
    rows = [tuple(dataclasses.asdict(row).values()) for row in report.rows]
    console.print(table(title, columns, rows))
    loop = report.loop
    shown = {
      "step in the loop": f"{loop.seconds_per_step:.4f} s",
      "step alone": f"{loop.step_seconds:.4f} s",
      "lost outside the step": f"{loop.lost:.1%}",
      "waiting for data": f"{loop.data_wait:.2%}",
      "a log line": f"{1e3 * loop.log_seconds:.1f} ms",
      "a save holds up": f"{loop.save_steps:.2f} steps, median of {loop.saves}",
      "a single step at most": f"{loop.save_longest_steps:.2f} steps",
      "and costs in all": f"{loop.save_costs_steps:.2f} steps",
      "compiling, cold": f"{report.compile_seconds['cold']:.1f} s",
      "compiling, warm": f"{report.compile_seconds['warm']:.1f} s",
    }
    console.print(facts("the trainer's loop", shown))

  emit(told, json, render)


def images(
  size: Literal["nano", "base"] | None = None,
  model: str | None = None,
  turns: int = 5,
  json: bool = False,
) -> None:
  """Times image tokenizers and generators turn by turn with the same in PyTorch (extra bench).

  Encoding, decoding, a training step, and sampling: float32, the same weights and the same
  tokens on both sides. A ratio is our time divided by PyTorch's: below 1 we are faster.

  Args:
    size: nano, or base (the published sizes; minutes on a CPU); both by default.
    model: one of TiTok, LlamaGen VQ, LlamaGen GPT, RAR, ImageBert; all by default.
    turns: how often each program runs.
    json: print JSON instead of a table.
  """
  from tokzoo.train.bench import images as cases

  if turns < 1:
    raise TokzooError(f"{turns} turns measure nothing: choose 1 or more.")
  names = {case.name for case in cases.CASES}
  if model is not None and model not in names:
    raise unknown("model", model, names)
  if importlib.util.find_spec("torch") is None:
    raise missing_extra("PyTorch", "bench", "racing it")
  rows = []
  for row in cases.bench(turns, size, model):
    rows.append(row)
    print(f"{row.op} {row.spec}: ratio {row.ratio:.2f}", file=sys.stderr)
  told = {**_here(), "rows": [dataclasses.asdict(row) for row in rows]}

  def render(console: Console) -> None:
    columns = ("op", "model", "seconds", "PyTorch's", "ratio", "MiB")
    shown = [
      (row.op, row.spec, row.seconds, row.peer_seconds, row.ratio, _mib(row.peak_bytes))
      for row in rows
    ]
    console.print(table(_title(told), columns, shown))
    console.print("ratio: our time / PyTorch's, MiB: beyond inputs and outputs")

  emit(told, json, render)


def sound(
  size: Literal["nano", "base"] | None = None,
  model: str | None = None,
  turns: int = 5,
  json: bool = False,
) -> None:
  """Times codecs of sound turn by turn with the same in transformers (extra parity).

  Encoding and decoding: float32, the same weights and the same tokens on both sides. A ratio
  is our time divided by the peer's: below 1 we are faster. The real-time factor is seconds of
  sound a second.

  Args:
    size: nano, or base (the published sizes); both by default.
    model: one of EnCodec 24 kHz, EnCodec 48 kHz, DAC 24 kHz, Mimi; all by default.
    turns: how often each program runs.
    json: print JSON instead of a table.
  """
  from tokzoo.train.bench import sound as cases

  if turns < 1:
    raise TokzooError(f"{turns} turns measure nothing: choose 1 or more.")
  names = {case.name for case in cases.CASES}
  if model is not None and model not in names:
    raise unknown("model", model, names)
  for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
      raise missing_extra(package, "parity", "racing it")
  rows = []
  for case, row in cases.bench(turns, size, model):
    rows.append({**dataclasses.asdict(row), "real_time": case.seconds / row.seconds})
    print(f"{row.op} {row.spec}: ratio {row.ratio:.2f}", file=sys.stderr)
  told = {**_here(), "rows": rows}

  def render(console: Console) -> None:
    columns = ("op", "codec", "seconds", "x real time", "peer's", "ratio", "MiB")
    names = ("op", "spec", "seconds", "real_time", "peer_seconds", "ratio")
    shown = [(*(row[name] for name in names), _mib(row["peak_bytes"])) for row in rows]
    console.print(table(_title(told), columns, shown))
    console.print("ratio: our time / transformers', MiB: beyond inputs and outputs")

  emit(told, json, render)


def scaling(json: bool = False) -> None:
  """Compiles the trainer's step for 1, 2, 4 and 8 simulated devices and counts.

  Args:
    json: print JSON instead of a table.
  """
  # Simulated devices must be asked for before jax looks for devices.
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 8)
  from tokzoo.train.bench.scaling import scaling as count

  rows = count()
  told = {**_here(), "rows": [dataclasses.asdict(row) for row in rows]}

  def render(console: Console) -> None:
    columns = ("axis", "devices", "GFLOP", "theory", "MB sent", "theory", "state MB")
    shown = [
      (
        row.axis,
        row.devices,
        f"{row.flops / 1e9:.3f}",
        f"{row.flops_theory / 1e9:.3f}",
        f"{row.sent / 1e6:.2f}",
        " to ".join(dict.fromkeys(f"{each / 1e6:.2f}" for each in row.sent_theory)),
        f"{row.state_bytes / 1e6:.2f}",
      )
      for row in rows
    ]
    console.print(table("one device, one step of 16 pictures in all", columns, shown))

  emit(told, json, render)


def _mib(size: int | None) -> float | None:
  return None if size is None else size / 2**20


def _here() -> dict[str, Any]:
  """Where and with what a number was measured."""
  return {
    "device": jax.devices()[0].device_kind,
    "machine": f"{platform.machine()}, {_cores()} cores",
    "jax": jax.__version__,
    "tokzoo": code_version(),
  }


def _title(told: dict[str, Any]) -> str:
  return f"{told['device']}, {told['machine']}, jax {told['jax']}"


def _cores() -> int:
  """The cores that this process may use."""
  affinity = getattr(os, "sched_getaffinity", None)
  return len(affinity(0)) if affinity else os.cpu_count() or 1
