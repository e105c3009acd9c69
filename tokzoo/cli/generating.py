"""`tokzoo generate`: new pictures from a generator, class by class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console

from tokzoo.cli.console import emit, facts, parse, to_uint8, write_json, write_picture
from tokzoo.cli.figures import sheet
from tokzoo.errors import TokzooError
from tokzoo.hub import PretrainedGenerator, load

DEFAULT_MODEL = "instella-digits-ar-nano"
_SHOWN = 16
"""Samples of each class on the sheet."""


def run_generate(arguments: Sequence[str]) -> None:
  parse(generate, "generate", arguments)


def generate(
  model: Annotated[str, tyro.conf.Positional] = DEFAULT_MODEL,
  /,
  classes: tuple[str, ...] = ("all",),
  num: int = 8,
  seed: int = 0,
  out: Path = Path("samples"),
  guidance: float | None = None,
  temperature: float | None = None,
  steps: int | None = None,
  tokenizer: str | None = None,
  json: bool = False,
) -> None:
  """Samples pictures: a PNG each, a sheet with a row for every class, and what was asked.

  Args:
    model: generator: checkpoint name, run directory, file or repository.
    classes: class numbers, or all.
    num: pictures of each class.
    seed: of every draw; the same line gives the same pictures.
    out: where class-N/NNNN.png, sheet.png and samples.json go.
    guidance: strength of the class; 0: none. The model's own setting by default.
    temperature: of every draw; the model's own setting by default.
    steps: network calls of a diffusion model; the model's own setting by default.
    tokenizer: whose tokens the generator makes, if its own record does not say.
    json: print JSON instead of a table.
  """
  generator = load_generator(model, tokenizer)
  chosen = class_numbers(classes, generator)
  if num < 1:
    raise TokzooError(f"--num {num} came: at least 1 picture of each class is made.")
  asked = {"guidance": guidance, "temperature": temperature, "steps": steps}
  settings = {name: value for name, value in asked.items() if value is not None}
  labels = np.repeat(np.asarray(chosen, np.int32), num)
  pictures = to_uint8(generator.generate(labels, seed, **settings))
  by_class = list(pictures.reshape(len(chosen), num, *pictures.shape[1:]))
  for label, made in zip(chosen, by_class, strict=True):
    for index, picture in enumerate(made):
      write_picture(out / f"class-{label}" / f"{index:04d}.png", picture)
  rows = [f"class {label}" for label in chosen]
  shown = sheet([list(made[:_SHOWN]) for made in by_class], rows)
  write_picture(out / "sheet.png", shown)
  told = {
    "out": str(out),
    "model": generator.card.name,
    "tokenizer": str(generator.tokenizer.origin),
    "classes": chosen,
    "num": num,
    "seed": seed,
    "settings": {**generator.card.sampling, **settings},
  }
  write_json(out / "samples.json", told)

  def render(console: Console) -> None:
    console.print(facts("generated", told))
    console.print(f"{len(labels)} pictures and sheet.png are in {out}.")

  emit(told, json, render)


def load_generator(model: str, tokenizer: str | None = None) -> PretrainedGenerator:
  """A generator by name.

  Raises:
    TokzooError: nothing of that name, or a tokenizer.
  """
  loaded = load(model, tokenizer=tokenizer)
  if not isinstance(loaded, PretrainedGenerator):
    raise TokzooError(
      f"{model} is a tokenizer; a generator was expected: tokzoo list names those there are."
    )
  return loaded


def class_numbers(classes: Sequence[str], generator: PretrainedGenerator) -> list[int]:
  """The class numbers of `--classes`.

  Raises:
    TokzooError: not a number, out of range, or a generator without classes.
  """
  count = generator.config.num_classes
  if count is None:
    raise TokzooError(
      f"{generator.card.name} is conditioned on text, not on classes: give it TextFeatures "
      "from Python (tokzoo.load(...).generate)."
    )
  if list(classes) == ["all"]:
    return list(range(count))
  for word in classes:
    if not word.isdecimal() or int(word) >= count:
      raise TokzooError(
        f"--classes {word} came: classes are the numbers 0 to {count - 1}, or the word all."
      )
  if not classes:
    raise TokzooError(f"--classes is empty: name some of 0 to {count - 1}, or all.")
  return [int(word) for word in classes]
