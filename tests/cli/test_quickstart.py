"""The quickstart from end to end with a handful of steps, and its parts on known input."""

import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tokzoo.cli.figures import Series, dot_plot, plot, sheet
from tokzoo.cli.quickstart import budget, photos
from tokzoo.cli.quickstart import command as quickstart


@pytest.mark.slow  # .ci/run does the same by the command
def test_quickstart_runs_and_continues(command, tmp_path, monkeypatch):
  few = budget.Steps(photos=10, digits=10, generator=10)
  monkeypatch.setattr(budget, "steps_for", lambda minutes, gflops: few)
  out = tmp_path / "quick"
  words = ("quickstart", "--out", out, "--minutes", "0.5", "--json")
  first = command(*words)
  assert first.code == 0, first.err
  numbers = json.loads(first.out)
  for name in (
    "held_out_psnr_db",
    "bits_per_pixel",
    "jpeg_psnr_db",
    "webp_psnr_db",
    "mean_tile_psnr_db",
    "classifier_agreement",
    "classifier_agreement_real",
    "bit_entropy",
    "wall_seconds",
  ):
    assert np.isfinite(numbers[name]), name
  assert numbers["bits_per_pixel"] <= 1.0 and numbers["samples"] == 500
  assert json.loads((out / "numbers.json").read_text()) == numbers
  page = (out / "report.html").read_text()
  assert page.count("data:image/png;base64,") == 5 and "http" not in page
  for name in ("photos", "samples", "digits", "losses", "rate-distortion"):
    assert min(Image.open(out / f"{name}.png").size) > 50
  assert "Starting a quickstart" in first.err

  again = command(*words)
  assert "Continuing the quickstart" in again.err
  same = json.loads(again.out)
  # Finished parts stay: the same weights, so the same pictures and numbers.
  for name in ("held_out_psnr_db", "classifier_agreement", "bit_entropy"):
    assert same[name] == numbers[name]
  assert len((out / "photos" / "log.jsonl").read_text().splitlines()) <= 12


def test_another_length_starts_anew(tmp_path, capsys):
  console = Console()
  plan = quickstart._open(tmp_path, 1.0, False, console)
  for part in ("photos", "digits", "generator"):
    (tmp_path / part).mkdir()
  assert quickstart._open(tmp_path, 1.0, False, console) == plan
  assert (tmp_path / "photos").is_dir()
  assert quickstart._open(tmp_path, 2.0, False, console)["minutes"] == 2.0
  assert not (tmp_path / "photos").exists()
  (tmp_path / "quickstart.json").write_text("{")
  quickstart._open(tmp_path, 2.0, False, console)
  said = capsys.readouterr().out
  for words in ("about 1 min", "Continuing", "starting anew", "cannot be read"):
    assert words in said


@pytest.mark.parametrize("minutes", ["0.1", "-1", "1000", "nan"])
def test_minutes_out_of_range_are_refused(command, tmp_path, minutes):
  outcome = command("quickstart", "--out", tmp_path / "q", "--minutes", minutes)
  assert outcome.code == 2 and outcome.err.count("\n") == 1
  assert not (tmp_path / "q").exists()


def test_slower_machines_and_fewer_minutes_take_fewer_steps():
  usual = budget.steps_for(4, budget.REFERENCE_GFLOPS)
  assert budget.steps_for(4, budget.REFERENCE_GFLOPS / 2).photos < usual.photos
  assert budget.steps_for(2, budget.REFERENCE_GFLOPS).photos < usual.photos
  assert budget.steps_for(8, budget.REFERENCE_GFLOPS).photos > usual.photos
  # A faster machine makes the same run, sooner.
  assert budget.steps_for(4, 10 * budget.REFERENCE_GFLOPS) == usual


def test_files_of_at_most_so_many_bytes():
  image = np.asarray(
    Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 50).convert("RGB")
  )
  for kind in ("JPEG", "WEBP"):
    sizes = [len(photos.encoded(image, kind, quality)) for quality in range(101)]
    limit = sizes[40]
    best = max(q for q in range(101) if sizes[q] <= limit)
    chosen = photos.at_most(image, limit, kind)
    assert chosen.picture.shape == image.shape and chosen.bytes <= limit
    error = photos.psnr_db(image, chosen.picture)
    # As good as the best quality whose file fits, but for sizes that do not rise with it.
    reached = [
      photos.psnr_db(image, photos.at_most(image, sizes[q], kind).picture)
      for q in (40, best)
    ]
    assert error >= min(reached) - 1e-9


def test_mean_tiles_of_a_flat_picture_is_the_picture():
  image = np.full((20, 30, 3), (10, 200, 90), np.uint8)
  np.testing.assert_array_equal(photos.mean_tiles(image, 8), image)
  stripes = np.zeros((8, 16, 3), np.uint8)
  stripes[:, ::2] = 100
  assert (photos.mean_tiles(stripes, 8) == 50).all()


def test_figures_show_what_they_are_given():
  dark = plot([Series("a", [0, 1], [1, 10])], "title", "x", "y", log_y=True)
  assert dark.dtype == np.uint8 and dark.shape == (720, 1120, 3)
  blue = np.array([31, 95, 168])
  assert (np.abs(dark.astype(int) - blue).sum(-1) < 10).sum() > 500
  empty = plot([Series("a", [], [])], "title", "x", "y")
  assert (np.abs(empty.astype(int) - blue).sum(-1) < 10).sum() < 500  # its legend
  dots = dot_plot("t", ["one", "two"], [[0.1, 0.2], [0.3, 0.3]])
  assert dots.shape[2] == 3 and dots.min() < 60
  grid = sheet([[np.zeros((8, 8, 1), np.uint8)] * 3] * 2, rows=("a", "b"), side=16)
  assert (grid == 0).all(-1).sum() >= 6 * 16 * 16
