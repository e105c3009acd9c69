"""`tokzoo bench kernels`: how fast the kernels are, beside named peers."""

import dataclasses
import os
import platform
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import tyro
from rich.console import Console

from tokzoo.cli.console import emit, parse, table
from tokzoo.errors import TokzooError, unknown
from tokzoo.kernels.codebook_search.arg_specs import ARG_SPECS
from tokzoo.version import code_version


def run_bench(arguments: Sequence[str]) -> int:
  return int(parse(bench, "bench", arguments) or 0)


def bench(
  what: Annotated[Literal["kernels"], tyro.conf.Positional],
  /,
  op: Literal["all", "codebook_search", "bit_packing", "vq_step"] = "all",
  spec: str | None = None,
  turns: int = 5,
  json: bool = False,
) -> None:
  """Times what the project's speed stands on, turn by turn with named peers.

  A ratio is our time divided by the peer's, both medians of the same turns: below 1 we are
  faster. Peers that are not installed are left out with a word: `pip install tokzoo[bench]`.

  Args:
    what: `kernels`, the search, the bit packing, and the training step made of them.
    op: only one of them.
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
  told = {
    "device": jax.devices()[0].device_kind,
    "machine": f"{platform.machine()}, {_cores()} cores",
    "jax": jax.__version__,
    "tokzoo": code_version(),
    "rows": [dataclasses.asdict(row) for row in rows],
  }

  def render(console: Console) -> None:
    columns = ("op", "spec", "ours", "seconds", "peer", "its seconds", "ratio", "MiB")
    console.print(
      table(
        f"{told['device']}, {told['machine']}, jax {told['jax']}",
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
            None if row.peak_bytes is None else row.peak_bytes / 2**20,
          )
          for row in rows
        ],
      )
    )
    console.print("ratio: our time / the peer's, MiB: beyond inputs and outputs")

  emit(told, json, render)


def _cores() -> int:
  """The cores that this process may use."""
  affinity = getattr(os, "sched_getaffinity", None)
  return len(affinity(0)) if affinity else os.cpu_count() or 1
