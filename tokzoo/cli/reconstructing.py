"""`tokzoo reconstruct`: pictures through tokenizers, beside JPEG and WebP of the same bytes, and
sound through codecs (`cli/sounding.py`)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from tokzoo.cli import codecs, sounding
from tokzoo.cli.codecs import psnr_db
from tokzoo.cli.coding import DEFAULT_MODEL, as_tokenizer
from tokzoo.cli.console import (
  emit,
  find_pictures,
  note,
  parse,
  read_picture,
  table,
  to_uint8,
  write_json,
  write_picture,
)
from tokzoo.cli.evaluating import find_network, moments_of
from tokzoo.cli.figures import sheet
from tokzoo.data.transforms import to_float
from tokzoo.errors import TokzooError
from tokzoo.hub import PretrainedCodec, PretrainedTokenizer, load
from tokzoo.metrics import Moments, frechet_distance, ssim
from tokzoo.metrics.features import FeatureNetwork
from tokzoo.metrics.images import SSIM_WINDOW

_SHOWN = 12
"""Pictures on the sheet."""
_HEADS = {
  "model": "model",
  "picture": "picture",
  "psnr_db": "PSNR (dB)",
  "jpeg_psnr_db": "JPEG",
  "webp_psnr_db": "WebP",
  "ssim": "SSIM",
  "bits_per_pixel": "bits per pixel",
  "bytes": "bytes",
  "jpeg_bytes": "of JPEG",
  "webp_bytes": "of WebP",
  "FD-EfficientNet-Lite0": "FD-EfficientNet-Lite0",
}
"""Numbers that the tables show, and how they call them; numbers.json has all."""


def run_reconstruct(arguments: Sequence[str]) -> None:
  parse(reconstruct, "reconstruct", arguments)


def reconstruct(
  pictures: Annotated[Path, tyro.conf.Positional],
  /,
  out: Path = Path("reconstructions"),
  model: str = DEFAULT_MODEL,
  tokens: int | None = None,
  kbps: float | None = None,
  size: int | None = None,
  preset: str | None = None,
  json: bool = False,
) -> None:
  """Pictures through tokenizers: reconstructions, a sheet beside the originals, numbers.

  Each tokenizer is set beside the best JPEG and WebP files of no more bytes (whole files; where
  even the worst quality takes more, its bytes say so). With two pictures or more, and the extra
  `features`, FD-EfficientNet-Lite0 between originals and reconstructions is measured, which
  means something from some hundred pictures on.

  Codecs take sound files: their table has bit rate, SI-SDR, mel distance, STOI, PESQ and DNSMOS (extra
  `audio-eval`) and the real-time factor.

  Args:
    pictures: a picture or sound file, or a folder of them.
    out: where reconstructions (of several models in a folder each), sheet.png and numbers.json
      go.
    model: checkpoint name, run directory, file or repository; several by commas.
    tokens: how many of each picture's tokens to keep, for tokenizers whose first tokens are an
      encoding already; all by default.
    kbps: bit rate of codecs of sound; the highest of each by default.
    size: pictures are resized and cut to a square of this side first; by default they go in as
      they are.
    preset: the published config of a file in its authors' layout.
    json: print JSON instead of a table.
  """
  names = [name for name in model.split(",") if name]
  if not names:
    raise TokzooError("--model is empty: name a tokenizer, or several by commas.")
  models = {name: load(name, preset=preset) for name in names}
  if all(isinstance(loaded, PretrainedCodec) for loaded in models.values()):
    if tokens is not None or size is not None:
      raise TokzooError(
        "--tokens and --size are of pictures, and these models take sound: leave them out."
      )
    sounding.reconstruct_files(models, pictures, out, kbps, json)
    return
  if kbps is not None:
    raise TokzooError(
      "--kbps is of codecs of sound, and these take pictures: leave it out."
    )
  tokenizers = {name: as_tokenizer(loaded, name) for name, loaded in models.items()}
  channels = {tokenizer.config.channels for tokenizer in tokenizers.values()}
  if len(channels) > 1:
    raise TokzooError(
      "these models take pictures of different numbers of channels "
      f"({', '.join(map(str, sorted(channels)))}): compare them one by one."
    )
  paths = find_pictures(pictures)
  images = [read_picture(path, min(channels), size) for path in paths]
  network = find_network(None) if len(paths) > 1 else None
  real = None if network is None else _moments(network, images)
  rows, means, columns = [], [], [images]
  for name, tokenizer in tokenizers.items():
    found = [_through(tokenizer, image, tokens) for image in images]
    told = [
      {"model": name, "picture": path.name, **numbers}
      for path, (_, numbers) in zip(paths, found, strict=True)
    ]
    made = [shown for shown, _ in found]
    summary = _mean(name, told)
    if network is not None and real is not None:
      summary |= _distances(network, real, made)
    rows, means = rows + told, [*means, summary]
    columns += [[shown[kind] for shown in made] for kind in made[0]]
    folder = out / name.replace("/", "-") if len(names) > 1 else out
    for path, shown in zip(paths, made, strict=True):
      write_picture(folder / f"{path.stem}.png", shown["ours"])
  heads = ["original", *(h for name in names for h in (name, "JPEG", "WebP"))]
  shown = [list(row) for row in zip(*columns, strict=True)][:_SHOWN]
  write_picture(out / "sheet.png", sheet(shown, columns=heads, side=192))
  numbers = {"models": means, "pictures": rows}
  write_json(out / "numbers.json", numbers)
  if network is None:
    why = (
      "one picture has no distance"
      if len(paths) < 2
      else "extra `features` is not here"
    )
    note(f"no FD-EfficientNet-Lite0: {why}.")

  def render(console: Console) -> None:
    for title, lines in (("pictures", rows), (f"means of {len(paths)}", means)):
      chosen = {key: head for key, head in _HEADS.items() if key in lines[0]}
      cells = [[line[key] for key in chosen] for line in lines]
      if len(lines) <= 40:
        console.print(table(title, list(chosen.values()), cells))
    console.print(f"Pictures and sheet.png are in {out}.")

  emit(numbers, json, render)


def _through(
  tokenizer: PretrainedTokenizer, image: np.ndarray, num_tokens: int | None
) -> tuple[dict[str, np.ndarray], dict[str, float | None]]:
  """A picture as the tokenizer, JPEG and WebP show it, and the numbers of all three."""
  tokens = tokenizer.encode(image, num_tokens)
  height, width = image.shape[:2]
  shown = {"ours": to_uint8(tokenizer.decode(tokens, (height, width))[0])}
  budget = math.ceil(tokens.total_bits / 8)
  numbers: dict[str, float | None] = {
    "psnr_db": psnr_db(image, shown["ours"]),
    "ssim": _ssim(image, shown["ours"]),
    "bits_per_pixel": tokens.total_bits / (height * width),
    "bytes": budget,
  }
  for kind in codecs.KINDS:
    coded = codecs.at_most(image, budget, kind)
    name, shown[kind] = kind.lower(), coded.picture
    numbers[f"{name}_psnr_db"] = psnr_db(image, coded.picture)
    numbers[f"{name}_ssim"] = _ssim(image, coded.picture)
    numbers[f"{name}_bytes"] = coded.bytes
  return shown, numbers


def _ssim(image: np.ndarray, other: np.ndarray) -> float | None:
  """None where the picture is smaller than SSIM's window."""
  if min(image.shape[:2]) < SSIM_WINDOW:
    return None
  pair = (jnp.asarray(to_float(each))[None] for each in (image, other))
  return float(ssim(*pair)[0])


def _mean(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Means of every number over the pictures that have it."""
  means: dict[str, Any] = {"model": name}
  for key in rows[0]:
    values = [row[key] for row in rows if row[key] is not None]
    if key not in ("model", "picture"):
      means[key] = float(np.mean(values)) if values else None
  return means


def _distances(
  network: FeatureNetwork, real: Moments, made: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, float]:
  """Frechet distance of the originals to each of the three."""
  found = {}
  for kind in made[0]:
    prefix = "" if kind == "ours" else f"{kind.lower()}_"
    seen = _moments(network, [shown[kind] for shown in made])
    found[f"{prefix}{network.distance}"] = frechet_distance(real, seen)
  return found


def _moments(network: FeatureNetwork, images: Sequence[np.ndarray]) -> Moments:
  """Moments of the features of pictures, which need not be of one size."""
  total = None
  for image in images:
    state = moments_of(network, to_float(image)[None])
    total = state if total is None else total.merge(state)
  assert total is not None  # there is at least one picture
  return total
