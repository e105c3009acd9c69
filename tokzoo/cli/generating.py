"""`tokzoo generate`: new pictures from a generator, class by class, or new sounds."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console

from tokzoo.cli.console import (
  PICTURES,
  emit,
  facts,
  parse,
  to_uint8,
  write_json,
  write_picture,
)
from tokzoo.cli.figures import sheet
from tokzoo.cli.speaking import speak, speak_classes
from tokzoo.data import imagenet
from tokzoo.errors import TokzooError
from tokzoo.hub import PretrainedCodec, PretrainedGenerator, PretrainedSpeaker, load
from tokzoo.hub.pretrained import Pretrained

DEFAULT_MODEL = "instella-digits-ar-nano"
_SHOWN = 16
"""Samples of each class on the sheet."""


def run_generate(arguments: Sequence[str]) -> None:
  # The model may stand first without its option.
  if arguments and not arguments[0].startswith("-"):
    arguments = ["--model", *arguments]
  parse(generate, "generate", arguments)


def generate(
  model: str = DEFAULT_MODEL,
  label: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--classes",))] = ("all",),
  num: int = 8,
  seed: int = 0,
  out: Path = Path("samples"),
  guidance: float | None = None,
  temperature: float | None = None,
  steps: int | None = None,
  tokens: int | None = None,
  tokenizer: str | None = None,
  json: bool = False,
) -> None:
  """Samples pictures: a PNG each, a sheet with a row for every class, and what was asked.

  A generator of sound, or of a codec's tokens, makes a wav each; Flow-Omni a sheet of their
  spectra besides.

  Args:
    model: generator: checkpoint name, run directory, file or repository.
    label: classes, by number or (ImageNet's) by name, or all.
    num: pictures of each class, or sounds.
    seed: of every draw; the same line gives the same pictures.
    out: where class-N/NNNN.png (or NNNN.wav), sheet.png and samples.json go; or a picture file,
      which is then the sheet alone.
    guidance: strength of the class; 0: none. The model's own setting by default.
    temperature: of every draw; the model's own setting by default.
    steps: network calls of a diffusion or masked model; the model's own setting by default.
    tokens: how many tokens to make, for generators of prefixes, all by default; or frames of
      sound at most.
    tokenizer: whose tokens the generator makes, if its own record does not say.
    json: print JSON instead of a table.
  """
  loaded = load(model, tokenizer=tokenizer)
  if num < 1:
    raise TokzooError(f"--num {num} came: at least 1 is made (of each class).")
  if isinstance(loaded, PretrainedSpeaker):
    for name, given in (("label", label != ("all",)), ("temperature", temperature)):
      if given:
        raise TokzooError(f"--{name} came with {model}, which has none: leave it out.")
    asked = {"guidance": guidance, "steps": steps, "frames": tokens}
    settings = {name: value for name, value in asked.items() if value is not None}
    speak(loaded, num, seed, out, settings, json)
    return
  generator = as_generator(loaded, model)
  chosen = class_numbers(label, generator)
  asked = {
    "guidance": guidance,
    "temperature": temperature,
    "steps": steps,
    "num_tokens": tokens,
  }
  settings = {name: value for name, value in asked.items() if value is not None}
  if isinstance(generator.tokenizer, PretrainedCodec):
    speak_classes(generator, chosen, num, seed, out, settings, json)
    return
  labels = np.repeat(np.asarray(chosen, np.int32), num)
  pictures = to_uint8(generator.generate(labels, seed, **settings))
  by_class = list(pictures.reshape(len(chosen), num, *pictures.shape[1:]))
  is_sheet = out.suffix.lower() in PICTURES
  rows = [f"class {number}" for number in chosen]
  shown = [list(made) for made in by_class]
  if len(shown) == 1:
    # One class is a grid; several are a row each.
    rows, shown = [], _in_rows(shown[0])
  else:
    shown = [row[:_SHOWN] for row in shown]
  side = 64 if len(chosen) > 1 else min(256, max(64, pictures.shape[1]))
  write_picture(out if is_sheet else out / "sheet.png", sheet(shown, rows, side=side))
  told = {
    "out": str(out),
    "model": generator.card.name,
    "tokenizer": str(generator.tokenizer.origin),
    "classes": chosen,
    "num": num,
    "seed": seed,
    "settings": {**generator.card.sampling, **settings},
  }
  if not is_sheet:
    for number, made in zip(chosen, by_class, strict=True):
      for index, picture in enumerate(made):
        write_picture(out / f"class-{number}" / f"{index:04d}.png", picture)
    write_json(out / "samples.json", told)

  def render(console: Console) -> None:
    console.print(facts("generated", told))
    where = f"on the sheet {out}" if is_sheet else f"and sheet.png are in {out}"
    console.print(f"{len(labels)} pictures {where}.")

  emit(told, json, render)


def load_generator(model: str, tokenizer: str | None = None) -> PretrainedGenerator:
  """A generator by name.

  Raises:
    TokzooError: nothing of that name, or a tokenizer.
  """
  return as_generator(load(model, tokenizer=tokenizer), model)


def as_generator(loaded: Pretrained, model: str) -> PretrainedGenerator:
  """What was loaded, if it is a generator of another model's tokens.

  Raises:
    TokzooError: it is not.
  """
  if isinstance(loaded, PretrainedSpeaker):
    raise TokzooError(
      f"{model} makes sound, not another model's tokens: a generator of pictures was expected."
    )
  if not isinstance(loaded, PretrainedGenerator):
    raise TokzooError(
      f"{model} is a tokenizer; a generator was expected: tokzoo list names those there are."
    )
  return loaded


def class_numbers(labels: Sequence[str], generator: PretrainedGenerator) -> list[int]:
  """The class numbers of `--label`.

  Raises:
    TokzooError: no such class, or a generator without classes.
  """
  count = generator.config.num_classes
  if count is None:
    raise TokzooError(
      f"{generator.card.name} is conditioned on text, not on classes: give it TextFeatures "
      "from Python (tokzoo.load(...).generate)."
    )
  if list(labels) == ["all"]:
    return list(range(count))
  if not labels:
    raise TokzooError(f"--label is empty: name some of 0 to {count - 1}, or all.")
  return [_class_number(word, count) for word in labels]


def _class_number(word: str, count: int) -> int:
  """The class of a number or, of ImageNet's thousand, of a name."""
  if word.isdecimal() and int(word) < count:
    return int(word)
  if count != imagenet.NUM_CLASSES or word.isdecimal():
    raise TokzooError(
      f"--label {word} came: classes are the numbers 0 to {count - 1}, or the word all."
    )
  return imagenet.class_of(word)


def _in_rows(pictures: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
  """Pictures in rows of about as many as there are rows."""
  columns = math.ceil(len(pictures) ** 0.5)
  return [list(pictures[i : i + columns]) for i in range(0, len(pictures), columns)]
