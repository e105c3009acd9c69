"""`tokzoo convert`: weights from their authors' layout to ours, and back."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from tokzoo.cli.console import emit, parse, table
from tokzoo.errors import TokzooError
from tokzoo.files import sha256_of
from tokzoo.hub import (
  abstract_variables,
  catalog,
  flax_table,
  published_config,
  table_of,
)
from tokzoo.systems import find_part, find_preset, find_system, resolve
from tokzoo.train import from_json, to_json
from tokzoo.weights import Row, read_state, write_flax, write_safetensors
from tokzoo.weights.checkpoint import read_checkpoint, write_checkpoint

_FLAX = ".msgpack"


def run_convert(arguments: Sequence[str]) -> None:
  parse(convert, "convert", arguments)


def convert(
  file: Annotated[Path, tyro.conf.Positional],
  /,
  out: Path,
  preset: str | None = None,
  system: str | None = None,
  to: Literal["tokzoo", "authors"] = "tokzoo",
  under: str | None = None,
  json: bool = False,
) -> None:
  """Weights in their authors' layout to one of tokzoo's checkpoint files, and back.

  Every key must have a place, every parameter a key, every shape agree; the report names
  them all. `tokzoo show SYSTEM` lists the presets.

  Args:
    file: .safetensors, a torch file (.pt, .pth, .bin, .ckpt, .dev; extra torch), or a Flax
      checkpoint of any name.
    out: the file to write, *.safetensors; with --to authors also *.msgpack, a Flax checkpoint.
    preset: the published config that the file was made with; not needed with --to authors.
    system: slug of the system, as a check on the preset.
    to: the layout to arrive at.
    under: entry of a torch or Flax file that holds the weights; the catalog's by default.
    json: print the report as JSON.
  """
  endings = (".safetensors", _FLAX) if to == "authors" else (".safetensors",)
  if out.suffix not in endings:
    raise TokzooError(
      f"converted weights end in {' or '.join(endings)}; --out {out} does not."
    )
  if to == "authors":
    header, rows = to_authors(file, out, system)
  elif preset is None:
    raise TokzooError(
      f"{file} says nothing of its config: name the published one it was made with (--preset)."
    )
  else:
    header, rows = from_authors(file, out, preset, system, under)
  report = {
    "out": str(out),
    "system": header["system"],
    "part": header["part"],
    "layout": to,
    "parameters": sum(math.prod(row.shape) for row in rows),
    "rows": [dataclasses.asdict(row) for row in rows],
  }

  def render(console: Console) -> None:
    columns = ("authors' key", "shape", "transform", "tokzoo's path")
    lines = [(r.key, str(list(r.shape)), r.transform, r.path) for r in rows]
    console.print(table(f"{header['system']} {header['part']}", columns, lines))
    console.print(
      f"wrote {out}: {len(rows)} arrays, {report['parameters'] / 1e6:.2f} M parameters."
    )

  emit(report, json, render)


def from_authors(
  file: Path, out: Path, preset: str, system: str | None, under: str | None
) -> tuple[dict[str, Any], list[Row]]:
  """Writes a file of the authors as a checkpoint of ours.

  Returns:
    The header of the checkpoint, and one row per key.

  Raises:
    TokzooError: an unknown preset, a file that cannot be read, a key left over, missing or
      of another shape.
  """
  slug, part, _ = find_preset(preset)
  _require_system(file, slug, system)
  config = published_config(file, preset)
  known = [entry for entry in catalog().values() if entry.preset == preset]
  # Of several files with one preset, the entry of this very one if its name says so.
  known.sort(key=lambda entry: not (entry.path or entry.url or "").endswith(file.name))
  if under is None and known:
    under = known[0].under
  state = read_state(file, under)
  weights = table_of(file, slug, part, config)
  variables, rows = weights.convert(state, abstract_variables(config))
  header = {
    "system": slug,
    "part": part,
    "config": to_json(config),
    "preset": preset,
    "source": {"file": file.name, "sha256": sha256_of(file)},
    "tile": known[0].tile if known else False,
    "sampling": known[0].sampling if known else {},
    "tokenizer": known[0].tokenizer if known else None,
    "weights_licence": known[0].weights_licence if known else "as its source's",
  }
  write_checkpoint(out, variables, header)
  return header, rows


def to_authors(
  file: Path, out: Path, system: str | None
) -> tuple[dict[str, Any], list[Row]]:
  """Writes a checkpoint of ours in its authors' names and layouts, in a Flax checkpoint's
  where `out` is one.

  Returns:
    The header of the checkpoint, and one row per key.

  Raises:
    TokzooError: not a checkpoint, or a parameter that the authors' layout has no name for.
  """
  variables, header = read_checkpoint(file)
  _require_system(file, header["system"], system)
  slug, part = header["system"], header["part"]
  if out.suffix == _FLAX:
    weights = flax_table(slug, part, from_json(header["config"]), str(out))
  else:
    weights = resolve(find_part(slug, part).weights)
  state = weights.to_authors(variables)
  # There and back: each key is read again as anybody would read it.
  rows = weights.convert(state, variables)[1]
  if out.suffix == _FLAX:
    write_flax(out, state)
  else:
    write_safetensors(out, state, {"format": "pt"})
  return header, rows


def _require_system(file: Path, found: str, asked: str | None) -> None:
  if asked is not None and find_system(asked).slug != found:
    raise TokzooError(
      f"{file} is of the system {found}, but --system {asked} was given: leave it out, or "
      "choose another preset."
    )
