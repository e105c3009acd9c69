"""The command: train, measure, report."""

import dataclasses
import json as json_module
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from tokzoo.cli.console import emit, parse, table, write_picture
from tokzoo.cli.experiments import find_recipe, load_experiment
from tokzoo.cli.figures import Series, plot, sheet
from tokzoo.cli.quickstart import budget, digits, photos
from tokzoo.cli.quickstart.page import Page
from tokzoo.cli.training import run_recipe
from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.hub import load
from tokzoo.train.writers import read_log
from tokzoo.version import code_version

BARS = {
  "held_out_psnr_db": (">=", 23.0),
  "bits_per_pixel": ("<=", 1.0),
  "classifier_agreement": (">=", 0.85),
  "classifier_agreement_real": (">=", 0.93),
}
"""What a run of the default length should reach."""

_PARTS = (
  ("photos", "nano", "photo tokenizer"),
  ("digits", "nano-digits", "digits tokenizer"),
  ("generator", "nano-ar", "digits generator"),
)


def run_quickstart(arguments: Sequence[str]) -> int:
  return parse(quickstart, "quickstart", arguments)


def quickstart(
  out: Path = Path("quickstart"),
  minutes: float = 4.0,
  restart: bool = False,
  json: bool = False,
) -> int:
  """Trains a binary image tokenizer and a generator on packaged data, and shows the result.

  Photographs: crops of some train the tokenizer; others are encoded tile by tile, decoded, and
  set beside JPEG and WebP. Digits: a second tokenizer, and a generator that draws every class.

  Args:
    out: where report.html, numbers.json, pictures and runs go.
    minutes: for everything on 2 CPU cores; more minutes, better numbers.
    restart: start anew where `out` holds a quickstart of the same length.
    json: print numbers.json instead of the table.
  """
  if not 0.5 <= minutes <= 600:
    raise TokzooError(f"--minutes {minutes} came; it lies between 0.5 and 600.")
  console = Console(stderr=json)
  plan = _open(out, minutes, restart, console)
  runs = {}
  for part, name, title in _PARTS:
    started = time.perf_counter()
    console.rule(f"[bold]{title}[/bold]", align="left")
    recipe = find_recipe(load_experiment("instella-t2i"), name)
    steps = plan["steps"][part]
    optimizer = recipe.optimizers["model"]
    warmup = min(optimizer.warmup_steps, steps // 10)
    recipe = dataclasses.replace(
      recipe,
      steps=steps,
      optimizers={"model": dataclasses.replace(optimizer, warmup_steps=warmup)},
      log_every=max(steps // 40, 1),
      # Minutes long: only its end is worth a checkpoint (a stop saves as well).
      save_every=steps,
      tokenizer=str(out / "digits") if part == "generator" else None,
    )
    result = run_recipe(recipe, out / part)
    if result.stopped_by is not None:
      console.print(f"Stopped by {result.stopped_by}; the same command continues.")
      return 130
    runs[part] = result
    _add_seconds(out, plan, part, time.perf_counter() - started)
  started = time.perf_counter()
  console.rule("[bold]measuring[/bold]", align="left")
  photo_result = photos.measure(load(out / "photos"))
  digit_result = digits.measure(load(out / "generator"))
  _write_pictures(out, photo_result, digit_result)
  _add_seconds(out, plan, "measuring", time.perf_counter() - started)
  numbers = _numbers(plan, photo_result, digit_result)
  write_atomic(
    out / "numbers.json", (json_module.dumps(numbers, indent=2) + "\n").encode()
  )
  write_atomic(out / "report.html", _report(out, numbers, photo_result))
  rows = _rows(numbers)

  def render(to: Console) -> None:
    to.print(table("Quickstart", ("", "measured", "bar", "reached"), rows))
    to.print(f"Open {out / 'report.html'}; numbers and pictures lie beside it.")

  emit(numbers, json, render)
  return 0


def _open(out: Path, minutes: float, restart: bool, console: Console) -> dict[str, Any]:
  """The plan in `out` if it is of this length, else a new one; says which."""
  path = out / "quickstart.json"
  if path.is_file() and not restart:
    try:
      plan = json_module.loads(path.read_text())
      if plan["minutes"] == minutes:
        console.print(
          f"Continuing the quickstart in {out}: finished parts stay; --restart starts anew."
        )
        return plan
      console.print(
        f"{out} holds a quickstart of {plan['minutes']:g} min: starting anew."
      )
    except (ValueError, KeyError, TypeError):
      console.print(f"{path} cannot be read: starting anew.")
  else:
    console.print(f"Starting a quickstart of about {minutes:g} min in {out}.")
  for part, _, _ in _PARTS:
    shutil.rmtree(out / part, ignore_errors=True)
  gflops = budget.measure_gflops()
  plan = {
    "minutes": minutes,
    "gflops": gflops,
    "steps": dataclasses.asdict(budget.steps_for(minutes, gflops)),
    "seconds": {},
  }
  write_atomic(path, json_module.dumps(plan, indent=2).encode())
  return plan


def _add_seconds(out: Path, plan: dict[str, Any], part: str, seconds: float) -> None:
  """Keeps the time of a part over reruns: a finished part costs nothing the second time."""
  plan["seconds"][part] = max(seconds, plan["seconds"].get(part, 0.0))
  write_atomic(out / "quickstart.json", json_module.dumps(plan, indent=2).encode())


def _numbers(
  plan: dict[str, Any],
  photo_result: photos.PhotoResult,
  digit_result: digits.DigitResult,
) -> dict[str, Any]:
  return {
    "held_out_psnr_db": photo_result.mean("psnr_db"),
    "bits_per_pixel": photo_result.mean("bits_per_pixel"),
    "jpeg_psnr_db": photo_result.mean("jpeg_psnr_db"),
    "webp_psnr_db": photo_result.mean("webp_psnr_db"),
    "mean_tile_psnr_db": photo_result.mean("mean_tile_psnr_db"),
    "bit_entropy": photo_result.bit_entropy,
    "bits_in_use": photo_result.bits_in_use,
    "classifier_agreement": digit_result.agreement,
    "classifier_agreement_real": digit_result.agreement_real,
    "classifier_accuracy": digit_result.classifier_accuracy,
    "digits_psnr_db": digit_result.psnr_db,
    "samples": digit_result.samples.shape[0] * digit_result.samples.shape[1],
    "photos": {
      photo.name: {
        name: getattr(photo, name)
        for name in ("psnr_db", "bits_per_pixel", "jpeg_psnr_db", "webp_psnr_db")
      }
      for photo in photo_result.photos
    },
    "wall_seconds": sum(plan["seconds"].values()),
    "seconds": plan["seconds"],
    "minutes": plan["minutes"],
    "steps": plan["steps"],
    "gflops": plan["gflops"],
    "seed": 0,
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "code_version": code_version(),
  }


def _rows(numbers: dict[str, Any]) -> list[tuple[Any, ...]]:
  names = {
    "held_out_psnr_db": "held-out photographs, PSNR (dB)",
    "bits_per_pixel": "bits per pixel, whole tiles counted",
    "jpeg_psnr_db": "JPEG at the same bytes (dB)",
    "webp_psnr_db": "WebP at the same bytes (dB)",
    "mean_tile_psnr_db": "mean colour of each tile (dB)",
    "bit_entropy": "entropy per bit (bits)",
    "classifier_agreement": "samples read as the class asked for",
    "classifier_agreement_real": "held-out digits read right after the tokenizer",
    "wall_seconds": "seconds in all",
  }
  rows = []
  for name, title in names.items():
    value = numbers[name]
    sign, bar = BARS.get(name, ("", None))
    reached = None if bar is None else (value >= bar if sign == ">=" else value <= bar)
    rows.append(
      (
        title,
        f"{value:.4g}",
        "" if bar is None else f"{sign} {bar:g}",
        "" if reached is None else ("yes" if reached else "no"),
      )
    )
  return rows


def _write_pictures(
  out: Path, photo_result: photos.PhotoResult, digit_result: digits.DigitResult
) -> None:
  rows = [
    [photo.image, photo.made, photos.error_picture(photo.image, photo.made)]
    for photo in photo_result.photos
  ]
  columns = ("original", "reconstruction", "error x 4")
  write_picture(out / "photos.png", sheet(rows, columns=columns, side=320))
  for photo in photo_result.photos:
    write_picture(out / f"photo-{Path(photo.name).stem}.png", photo.made)
  samples = [list(digit_result.samples[c, :20]) for c in range(10)]
  write_picture(
    out / "samples.png", sheet(samples, rows=[str(c) for c in range(10)], side=40)
  )
  real = [list(digit_result.originals[:20]), list(digit_result.made[:20])]
  write_picture(
    out / "digits.png", sheet(real, rows=("original", "tokenizer"), side=40)
  )
  write_picture(out / "losses.png", _loss_figure(out))
  write_picture(out / "rate-distortion.png", _rate_figure(photo_result))


def _loss_figure(out: Path) -> np.ndarray:
  series = []
  for part, _, title in _PARTS:
    lines = [
      line for line in read_log(out / part / "log.jsonl") if line["split"] == "train"
    ]
    last = max((line["step"] for line in lines), default=1)
    series.append(
      Series(
        title, [100 * li["step"] / last for li in lines], [li["loss"] for li in lines]
      )
    )
  y_label = "squared error, or nats per bit"
  return plot(series, "Training loss", "training (%)", y_label, log_y=True)


def _rate_figure(photo_result: photos.PhotoResult) -> np.ndarray:
  images = [photo.image for photo in photo_result.photos]
  ours = [photo_result.mean("bits_per_pixel")], [photo_result.mean("psnr_db")]
  series = [
    Series("tokzoo", *ours, line=False, dots=True),
    Series("JPEG", *photos.rate_curve(images, "JPEG"), dots=True),
    Series("WebP", *photos.rate_curve(images, "WEBP"), dots=True),
  ]
  return plot(series, "Held-out photographs", "bits per pixel", "PSNR (dB)")


def _report(
  out: Path, numbers: dict[str, Any], photo_result: photos.PhotoResult
) -> bytes:
  from PIL import Image

  def saved(name: str) -> np.ndarray:
    return np.asarray(Image.open(out / name))

  page = Page("tokzoo quickstart")
  page.text(
    "Instella-T2I's binary tokenizer and autoregressive generator (arXiv 2506.21022) at nano "
    "scale, trained just now on photographs and digits packaged with scikit-image and "
    "scikit-learn."
  )
  page.table(("", "measured", "bar", "reached"), _rows(numbers))
  page.heading("Held-out photographs")
  page.text(
    "Photographs that training never saw, cut to tiles of 8 x 8 pixels, each encoded to one "
    "token of 62 bits. JPEG and WebP are the best files of no more bytes."
  )
  page.picture(saved("photos.png"), "original, reconstruction and error", 960)
  page.table(
    (
      "photograph",
      "PSNR (dB)",
      "bits per pixel",
      "JPEG (dB)",
      "WebP (dB)",
      "tiles (dB)",
    ),
    [
      (
        photo.name,
        photo.psnr_db,
        photo.bits_per_pixel,
        photo.jpeg_psnr_db,
        photo.webp_psnr_db,
        photo.mean_tile_psnr_db,
      )
      for photo in photo_result.photos
    ],
  )
  page.picture(saved("rate-distortion.png"), "rate-distortion points", 560)
  page.heading("Sampled digits")
  page.text(
    f"Each row is one class, as asked for. Of {numbers['samples']} samples, "
    f"{numbers['classifier_agreement']:.1%} read as that class by a support vector machine "
    f"trained on the real digits (which reads {numbers['classifier_accuracy']:.1%} of the "
    f"held-out digits right, and {numbers['classifier_agreement_real']:.1%} of them after the "
    "tokenizer)."
  )
  page.picture(saved("samples.png"), "samples by class", 880)
  page.text("Held-out digits, and what the tokenizer makes of them:")
  page.picture(saved("digits.png"), "digits and reconstructions", 900)
  page.heading("Training")
  page.picture(saved("losses.png"), "loss curves", 560)
  steps = ", ".join(f"{name} {count:,}" for name, count in numbers["steps"].items())
  page.text(
    f"Steps: {steps}. {numbers['wall_seconds']:.0f} seconds on {numbers['device']} "
    f"({numbers['gflops']:.0f} GFLOP/s measured). Seed {numbers['seed']}, tokzoo "
    f"{numbers['code_version']}.",
    small=True,
  )
  return page.to_html()
