"""`tokzoo encode`, `decode`: pictures and sound to tokens and back."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tokzoo.cli import sounding
from tokzoo.cli.console import (
  PICTURES,
  emit,
  facts,
  note,
  parse,
  read_picture,
  write_picture,
)
from tokzoo.cli.tokenizing import encode_dataset
from tokzoo.data import DataConfig, guess_source
from tokzoo.data.sources.opening import KINDS
from tokzoo.errors import TokzooError
from tokzoo.hub import (
  PretrainedCodec,
  PretrainedGenerator,
  PretrainedSpeaker,
  PretrainedTokenizer,
  load,
)
from tokzoo.hub.pretrained import Pretrained
from tokzoo.tokens import load_tokens, save_tokens

DEFAULT_MODEL = "instella-photos-nano"


def run_encode(arguments: Sequence[str]) -> None:
  parse(encode, "encode", arguments)


def run_decode(arguments: Sequence[str]) -> None:
  parse(decode, "decode", arguments)


def encode(
  source: Annotated[str, tyro.conf.Positional],
  /,
  out: Path,
  model: str = DEFAULT_MODEL,
  split: str = "train",
  repeat: int = 1,
  size: int | None = None,
  tokens: int | None = None,
  kbps: float | None = None,
  preset: str | None = None,
  json: bool = False,
) -> None:
  """A picture or sound to a token file, or a data set to a folder of token records.

  Args:
    source: a picture or sound file; or a data set as in recipes: digits, photos, folder:PATH, ...
    out: the token file (*.tok), or the folder.
    model: checkpoint name, run directory, file or repository.
    split: of a data set.
    repeat: views of each record of a data set (random crops differ).
    size: a picture is resized and cut to a square of this side first (by default it goes in
      as it is); of a data set the side of the random crop, the model's own size by default.
    tokens: how many of a picture's tokens to keep, for tokenizers whose first tokens are an
      encoding already; all by default.
    kbps: bit rate of a codec of sound; the highest by default.
    preset: the published config of a file in its authors' layout.
    json: print JSON.
  """
  loaded = load(model, preset=preset)
  if isinstance(loaded, PretrainedCodec):
    require_none(model, "sound", size=size, tokens=tokens)
    told = sounding.encode_file(loaded, source, out, kbps)
    emit(told, json, lambda console: console.print(facts("encoded", told)))
    return
  if sounding.is_sound(source):
    raise TokzooError(
      f"{source} is sound, and {model} takes pictures: name a codec, --model encodec-24khz."
    )
  require_none(model, "pictures", kbps=kbps)
  tokenizer = as_tokenizer(loaded, model)
  if _is_picture(source):
    image = read_picture(source, tokenizer.config.channels, size)
    made = tokenizer.encode(image, tokens)
    height, width = image.shape[:2]
    save_tokens(out, made, {"height": str(height), "width": str(width)})
    told = {
      "out": str(out),
      "tokens": round(made.total_bits / made.bits_per_token),
      "bits_per_token": made.bits_per_token,
      "bits_per_pixel": made.total_bits / (height * width),
      "bytes": math.ceil(made.total_bits / 8),
      "model": str(made.origin),
    }
  elif tokens is not None:
    raise TokzooError(
      f"--tokens {tokens} came with a data set: it holds for one picture; token records keep "
      "all tokens, and training draws their number."
    )
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
  """A token file to a picture or sound.

  Args:
    tokens: what tokzoo encode wrote.
    out: the picture file (*.png, ...) or sound file (*.wav, ...).
    model: the model that made the tokens; another is refused.
    preset: the published config of a file in its authors' layout.
  """
  model_loaded = load(model, preset=preset)
  if isinstance(model_loaded, PretrainedCodec):
    sounding.decode_file(model_loaded, tokens, out)
    return
  tokenizer = as_tokenizer(model_loaded, model)
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


def load_encoder(
  model: str, preset: str | None = None
) -> PretrainedTokenizer | PretrainedCodec:
  """A tokenizer of pictures or a codec of sound by name.

  Raises:
    TokzooError: nothing of that name, or a generator.
  """
  loaded = load(model, preset=preset)
  is_codec = isinstance(loaded, PretrainedCodec)
  return loaded if is_codec else as_tokenizer(loaded, model)


def load_tokenizer(model: str, preset: str | None = None) -> PretrainedTokenizer:
  """A tokenizer by name.

  Raises:
    TokzooError: nothing of that name, a generator, or a codec of sound.
  """
  return as_tokenizer(load(model, preset=preset), model)


def as_tokenizer(loaded: Pretrained, model: str) -> PretrainedTokenizer:
  """What was loaded, if it is a tokenizer of pictures.

  Raises:
    TokzooError: it is not.
  """
  if isinstance(loaded, PretrainedGenerator):
    raise TokzooError(
      f"{model} is a generator; a tokenizer was expected: use {loaded.tokenizer.card.name}."
    )
  if isinstance(loaded, PretrainedSpeaker):
    raise TokzooError(
      f"{model} makes sound of its own, and encodes none; a tokenizer was expected: name one."
    )
  if not isinstance(loaded, PretrainedTokenizer):
    raise TokzooError(
      f"{model} is a codec of sound; a tokenizer of pictures was expected: name one."
    )
  return loaded


def require_none(model: str, takes: str, **options: object) -> None:
  """Raises if an option was given that does not go with what the model takes."""
  given = [name for name, value in options.items() if value is not None]
  if given:
    raise TokzooError(
      f"--{given[0]} came with {model}, which takes {takes}: leave it out."
    )


def _is_picture(source: str) -> bool:
  """Whether a source of `encode` is one picture rather than a data set."""
  if source.partition(":")[0] in KINDS:
    return False
  return Path(source).suffix.lower() in PICTURES or Path(source).is_file()
