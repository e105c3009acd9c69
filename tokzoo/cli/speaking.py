"""Sounds for `tokzoo generate`: a wav each, and a sheet of their spectra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tokzoo.cli.console import PICTURES, emit, facts, write_json, write_picture
from tokzoo.cli.figures import sheet
from tokzoo.data.sound import write_sound
from tokzoo.errors import TokzooError
from tokzoo.hub import PretrainedGenerator, PretrainedSpeaker
from tokzoo.tokens import save_tokens


def speak(
  speaker: PretrainedSpeaker,
  num: int,
  seed: int,
  out: Path,
  settings: dict[str, Any],
  as_json: bool,
) -> None:
  """Samples sounds of no condition and writes them.

  Args:
    speaker: the model.
    num: of sounds.
    seed: of every draw.
    out: where NNNN.wav, frames.tok, sheet.png and samples.json go; or a picture file, which is
      then the sheet alone.
    settings: of sampling.
    as_json: print JSON.

  Raises:
    TokzooError: a setting that the model does not have, or a path that cannot be written.
  """
  tokens = speaker.sample(num, seed, **settings)
  waves = speaker.decode(tokens, seed)
  rate = speaker.config.sample_rate_hz
  pictures = [
    _spectrum(row, round(len(wave) / speaker.config.hop))
    for row, wave in zip(np.asarray(tokens.values), waves, strict=True)
  ]
  is_sheet = out.suffix.lower() in PICTURES
  names = [f"{len(wave) / rate:.2f} s" for wave in waves]
  write_picture(
    out if is_sheet else out / "sheet.png", sheet([[p] for p in pictures], names)
  )
  told = {
    "out": str(out),
    "model": speaker.card.name,
    "num": num,
    "seed": seed,
    "seconds": [len(wave) / rate for wave in waves],
    "settings": {**speaker.card.sampling, **settings},
  }
  if not is_sheet:
    for index, wave in enumerate(waves):
      if len(wave):
        write_sound(out / f"{index:04d}.wav", wave, rate)
    save_tokens(out / "frames.tok", tokens)
    write_json(out / "samples.json", told)

  def render(console: Console) -> None:
    console.print(facts("generated", told))
    where = f"on the sheet {out}" if is_sheet else f"with sheet.png in {out}"
    console.print(f"{num} sounds {where}; Griffin and Lim's phases, no vocoder.")

  emit(told, as_json, render)


def speak_classes(
  generator: PretrainedGenerator,
  classes: Sequence[int],
  num: int,
  seed: int,
  out: Path,
  settings: dict[str, Any],
  as_json: bool,
) -> None:
  """Samples a codec's tokens class by class and writes their sounds.

  Args:
    generator: of a codec's tokens.
    classes: their numbers.
    num: of sounds of each.
    seed: of every draw.
    out: where class-N/NNNN.wav and samples.json go.
    settings: of sampling.
    as_json: print JSON.

  Raises:
    TokzooError: a setting that the model does not have, a picture as `out`, or a path that
      cannot be written.
  """
  if out.suffix.lower() in PICTURES:
    raise TokzooError(
      f"--out {out} is a picture, but {generator.card.name} makes sounds: name a folder."
    )
  labels = np.repeat(np.asarray(classes, np.int32), num)
  waves = np.asarray(generator.generate(labels, seed, **settings))
  rate = generator.tokenizer.config.sample_rate_hz
  for index, (label, wave) in enumerate(zip(labels, waves, strict=True)):
    write_sound(out / f"class-{label}" / f"{index % num:04d}.wav", wave, rate)
  told = {
    "out": str(out),
    "model": generator.card.name,
    "tokenizer": str(generator.tokenizer.origin),
    "classes": list(classes),
    "num": num,
    "seed": seed,
    "seconds": waves.shape[1] / rate,
    "settings": {**generator.card.sampling, **settings},
  }
  write_json(out / "samples.json", told)

  def render(console: Console) -> None:
    console.print(facts("generated", told))
    console.print(f"{len(waves)} sounds are in {out}.")

  emit(told, as_json, render)


def _spectrum(frames: np.ndarray, spoken: int) -> np.ndarray:
  """Normalised log mel frames [L, m] as uint8[m, L, 1], high notes at the top; white after the
  end."""
  grey = np.clip((frames + 2) / 4, 0, 1)
  grey[spoken:] = 1
  return np.rint(255 * grey.T[::-1, :, None]).astype(np.uint8)
