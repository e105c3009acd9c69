"""`tokzoo COMMAND ...`: one line a command; each lives in a module of its own."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

COMMANDS = {
  "quickstart": (
    "quickstart",
    "Photographs to tokens and back, and new digits, in minutes.",
  ),
  "list": ("zoo", "The systems, their recipes and checkpoints."),
  "show": ("zoo", "One system, recipe or checkpoint in full."),
  "train": ("training", "Train a recipe, or continue its run."),
  "launch": ("launching", "Train on a pod, GPU nodes, or several processes here."),
  "export": ("exporting", "Turn a run into one checkpoint file, and back."),
  "encode": ("coding", "Pictures, sound, or a whole data set, to tokens."),
  "tokenize-dataset": (
    "tokenize_dataset",
    "A data set to token records, on all devices of all hosts.",
  ),
  "decode": ("coding", "Tokens to a picture or sound."),
  "stream": ("streaming", "PCM on stdin to tokens on stdout, and back, as it comes."),
  "reconstruct": (
    "reconstructing",
    "Pictures or sound through tokenizers: a sheet or table, and numbers.",
  ),
  "generate": ("generating", "Sample pictures from a generator."),
  "evaluate": ("evaluating", "Measure a tokenizer or a generator on a data set."),
  "reproduce": ("reproducing", "Measure a system's claims and write the report."),
  "verify-checkpoint": ("verifying", "Whether every checkpoint of a run is whole."),
  "convert": ("converting", "Published weights to ours, and back."),
  "plan": (
    "planning",
    "Whether a recipe fits a machine that is not here, how fast, at what cost.",
  ),
  "bench": ("benching", "Time the kernels and the trainer beside named peers."),
  "data": ("data", "Check, prepare or time a data set."),
}
"""Command -> (module of tokzoo.cli, what it does)."""


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one command. A user's mistake ends in one sentence and exit code 2."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  if not arguments or arguments[0] in ("-h", "--help", "help"):
    _help()
    return 0
  if arguments[0] in ("-V", "--version"):
    from importlib.metadata import version

    print(f"tokzoo {version('tokzoo')}")
    return 0
  _quiet_start()
  from tokzoo.errors import TokzooError, unknown

  name, *rest = arguments
  try:
    if name not in COMMANDS:
      raise unknown("command", name, COMMANDS)
    module = importlib.import_module(f"tokzoo.cli.{COMMANDS[name][0]}")
    return int(getattr(module, f"run_{name.replace('-', '_')}")(rest) or 0)
  except TokzooError as error:
    print(f"tokzoo: {error}", file=sys.stderr)
    return 2
  except BrokenPipeError:
    # The reader of a pipe (`tokzoo list | head`) has gone; that is no error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except KeyboardInterrupt:
    print("tokzoo: stopped.", file=sys.stderr)
    return 130


def _help() -> None:
  from rich.console import Console
  from rich.table import Table

  console = Console()
  console.print("[bold]tokzoo[/bold]: one zoo, one contract, every token.\n")
  table = Table.grid(padding=(0, 3))
  for name, (_, about) in COMMANDS.items():
    table.add_row(f"  tokzoo [bold]{name}[/bold]", about)
  console.print(table)
  console.print("\n  tokzoo COMMAND --help says more.")


def _quiet_start() -> None:
  """Settings that must stand before jax is imported."""
  # Absl and XLA greet on stderr; a user's one sentence should stand alone there.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "2")
  if _on_cpus():
    from tokzoo.machines.allocator import keep_freed_memory

    if os.environ.get("TOKZOO_KEEP_MEMORY") != "0":
      keep_freed_memory()
    _hide_compilers()
  import jax

  from tokzoo.places import cache_dir

  # A second start of the same command compiles nothing.
  jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "jax"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _on_cpus() -> bool:
  """Whether jax will run on CPUs: it was told so, or there is nothing else."""
  import glob

  devices = ("/dev/nvidia*", "/dev/dxg", "/dev/accel*", "/dev/vfio/*", "/dev/kfd")
  asked = os.environ.get("JAX_PLATFORMS")
  return asked == "cpu" or (asked is None and not any(map(glob.glob, devices)))


def _hide_compilers() -> None:
  """Imports jax, without the accelerators whose compilers the extra `plan` brought and which
  are not here: jax would look for each, slowly, and say at length that there is no driver."""
  from importlib.util import find_spec

  if find_spec("libtpu") is None and find_spec("jax_plugins") is None:
    return
  # None makes an import fail: CUDA's libraries tell of a missing driver while they load, the
  # extensions with jax and the plugin itself with jax's first computation.
  extensions = {f"jax_cuda{version}_plugin": None for version in (12, 13)}
  plugins = {f"jax_plugins.xla_cuda{version}": None for version in (12, 13)}
  hidden: dict[str, Any] = extensions | plugins
  sys.modules.update(hidden)
  import jax

  for extension in extensions:
    del sys.modules[extension]
  jax.config.update("jax_platforms", "cpu")
  logging.getLogger("jax._src.xla_bridge").addFilter(
    lambda record: "Plugin module" not in record.getMessage()
  )


if __name__ == "__main__":
  sys.exit(main())
