"""`tokzoo encode`, `decode`, `reconstruct`: pictures and tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from tokzoo.cli.console import (
  PICTURES,
  emit,
  facts,
  find_pictures,
  note,
  parse,
  read_picture,
  table,
  to_uint8,
  write_json,
  write_picture,
)
from tokzoo.cli.figures import sheet
from tokzoo.cli.tokenizing import encode_dataset
from tokzoo.data import DataConfig, guess_source
from tokzoo.data.sources.opening import KINDS
from tokzoo.errors import TokzooError
from tokzoo.hub import PretrainedTokenizer, load
from tokzoo.tokens import load_tokens, save_tokens

DEFAULT_MODEL = "instella-photos-nano"


def run_encode(arguments: Sequence[str]) -> None:
  parse(encode, "encode", arguments)


def run_decode(arguments: Sequence[str]) -> None:
  parse(decode, "decode", arguments)


def run_reconstruct(arguments: Sequence[str]) -> None:
  parse(reconstruct, "reconstruct", arguments)


def encode(
  source: Annotated[str, tyro.conf.Positional],
  /,
  out: Path,
  model: str = DEFAULT_MODEL,
  split: str = "train",
  repeat: int = 1,
  size: int | None = None,
  preset: str | None = None,
  json: bool = False,
) -> None:
  """A picture to a token file, or a data set to a folder of token records.

  Args:
    source: a picture file; or a data set as in recipes: digits, photos, folder:PATH, ...
    out: the token file (*.tok), or the folder.
    model: checkpoint name, run directory, file or repository.
    split: of a data set.
    repeat: views of each record of a data set (random crops differ).
    size: side of the random square crop of a data set; the model's own size by default.
    preset: the published config of a file in its authors' layout.
    json: print JSON.
  """
  tokenizer = load_tokenizer(model, preset)
  if _is_picture(source):
    image = read_picture(source, tokenizer.config.channels)
    tokens = tokenizer.encode(image)
    save_tokens(
      out, tokens, {"height": str(image.shape[0]), "width": str(image.shape[1])}
    )
    bits = tokens.batch * tokens.length * tokens.bits_per_token
    told = {
      "out": str(out),
      "tokens": tokens.batch * tokens.length,
      "bits_per_token": tokens.bits_per_token,
      "bits_per_pixel": bits / (image.shape[0] * image.shape[1]),
      "model": str(tokens.origin),
    }
  else:
    side = size or tokenizer.config.image_size
    data = DataConfig(
      source=guess_source(source),
      split=split,
      channels=tokenizer.config.channels,
      crop="random",
      size=side,
      repeat=repeat,
    )
    count = encode_dataset(data, tokenizer, out).records
    told = {"out": str(out), "records": count, "model": str(tokenizer.origin)}
  emit(told, json, lambda console: console.print(facts("encoded", told)))


def decode(
  tokens: Annotated[Path, tyro.conf.Positional],
  /,
  out: Path,
  model: str = DEFAULT_MODEL,
  preset: str | None = None,
) -> None:
  """A token file to a picture.

  Args:
    tokens: what tokzoo encode wrote.
    out: the picture file (*.png, ...).
    model: the model that made the tokens; another is refused.
    preset: the published config of a file in its authors' layout.
  """
  tokenizer = load_tokenizer(model, preset)
  loaded, extra = load_tokens(tokens, tokenizer.origin)
  try:
    height, width = int(extra["height"]), int(extra["width"])
  except (KeyError, ValueError) as error:
    raise TokzooError(
      f"{tokens} does not say how large its picture is: it was not written by tokzoo encode "
      "from a picture."
    ) from error
  write_picture(out, tokenizer.decode(loaded, (height, width))[0])
  note(f"wrote {out}: {width} x {height} pixels.")


def reconstruct(
  pictures: Annotated[Path, tyro.conf.Positional],
  /,
  out: Path = Path("reconstructions"),
  model: str = DEFAULT_MODEL,
  preset: str | None = None,
  json: bool = False,
) -> None:
  """Pictures through a tokenizer: reconstructions, a sheet beside the originals, numbers.

  Args:
    pictures: a picture file, or a folder of them.
    out: where reconstructions, sheet.png and numbers.json go.
    model: checkpoint name, run directory, file or repository.
    preset: the published config of a file in its authors' layout.
    json: print JSON instead of a table.
  """
  tokenizer = load_tokenizer(model, preset)
  rows: list[dict[str, Any]] = []
  shown = []
  for path in find_pictures(pictures):
    image = read_picture(path, tokenizer.config.channels)
    tokens = tokenizer.encode(image)
    made = tokenizer.decode(tokens, (image.shape[0], image.shape[1]))[0]
    bits = tokens.batch * tokens.length * tokens.bits_per_token
    rows.append(
      {
        "picture": path.name,
        "psnr_db": psnr_db(image, to_uint8(made)),
        "bits_per_pixel": bits / (image.shape[0] * image.shape[1]),
        "bytes": int(np.ceil(bits / 8)),
      }
    )
    write_picture(out / f"{path.stem}.png", made)
    shown.append((image, to_uint8(made)))
  write_picture(
    out / "sheet.png", sheet(shown, columns=("original", "reconstruction"), side=256)
  )
  write_json(out / "numbers.json", rows)

  def render(console: Console) -> None:
    columns = ("picture", "PSNR (dB)", "bits per pixel", "bytes")
    console.print(
      table(tokenizer.card.name, columns, [tuple(r.values()) for r in rows])
    )
    console.print(f"Pictures and sheet.png are in {out}.")

  emit(rows, json, render)


def load_tokenizer(model: str, preset: str | None = None) -> PretrainedTokenizer:
  """A tokenizer by name.

  Raises:
    TokzooError: nothing of that name, or a generator.
  """
  loaded = load(model, preset=preset)
  if not isinstance(loaded, PretrainedTokenizer):
    raise TokzooError(
      f"{model} is a generator; a tokenizer was expected: use {loaded.tokenizer.card.name}."
    )
  return loaded


def _is_picture(source: str) -> bool:
  """Whether a source of `encode` is one picture rather than a data set."""
  if source.partition(":")[0] in KINDS:
    return False
  return Path(source).suffix.lower() in PICTURES or Path(source).is_file()


def psnr_db(image: np.ndarray, other: np.ndarray) -> float:
  """PSNR in dB of two uint8 pictures, peak 255."""
  error = np.mean((image.astype(np.float64) - other.astype(np.float64)) ** 2)
  return float(10 * np.log10(255**2 / max(error, 1e-10)))
