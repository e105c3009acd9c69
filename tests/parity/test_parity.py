"""Instella-T2I's fixtures through the runner's own comparison, and the runner itself."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity.base import Comparison, Ids, _row, compare, comparisons
from tests.parity.instella_t2i import COMPARISONS
from tests.parity.run import main
from tokzoo.files import read_safetensors
from tokzoo.weights import write_safetensors

DATA = Path(__file__).parent / "data"
FIXTURES = sorted(DATA.glob("instella-t2i-*.safetensors"))
SMALLEST = min(FIXTURES, key=lambda path: path.stat().st_size)


def changed(path: Path, folder: Path, **metadata: str) -> tuple[Path, dict, dict]:
  """Where a changed copy of a fixture goes, its tensors and its metadata."""
  tensors, told = read_safetensors(path, "fixture")
  return folder / path.name, dict(tensors), {**told, **metadata}


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture(path):
  rows = compare(path)
  assert [row for row in rows if not row.passed] == []
  tensors, _ = read_safetensors(path, "fixture")
  wanted = {name for name in tensors if name.split("/")[0] in ("out", "grad", "after")}
  assert {row.name for row in rows} == wanted and len(wanted) > 3


def test_the_fixtures_cover_the_kinds():
  kinds = {read_safetensors(path, "fixture")[1]["kind"] for path in FIXTURES}
  assert kinds == set(COMPARISONS) <= set(comparisons())


def test_the_runner_says_that_all_pass(capsys):
  assert main([str(SMALLEST)]) == 0
  assert capsys.readouterr().out.rstrip().endswith("all pass")


def test_a_perturbed_parameter_goes_red(tmp_path, capsys):
  path, tensors, metadata = changed(SMALLEST, tmp_path)
  key = next(name for name in tensors if name.endswith("attn.o_proj.weight"))
  # A hundredth of its size, in one entry.
  weight = tensors[key].copy()
  weight.flat[0] += 0.01 * np.abs(weight).max()
  write_safetensors(path, tensors | {key: weight}, metadata)
  assert main([str(SMALLEST), str(path)]) == 1
  assert "FAIL  out/" in capsys.readouterr().out


def test_a_parameter_left_out_or_left_over_goes_red(tmp_path, capsys):
  path, tensors, metadata = changed(SMALLEST, tmp_path)
  key = next(name for name in tensors if name.startswith("param/"))
  without = {name: array for name, array in tensors.items() if name != key}
  write_safetensors(path, without, metadata)
  assert main([str(path)]) == 1
  assert f"lack {key.removeprefix('param/')!r}" in capsys.readouterr().out
  write_safetensors(path, tensors | {"param/extra": tensors[key]}, metadata)
  assert main([str(path)]) == 1
  assert "hold 'extra'" in capsys.readouterr().out


def test_what_is_not_computed_goes_red(tmp_path, capsys):
  path, tensors, metadata = changed(SMALLEST, tmp_path)
  more = tensors | {"out/new": np.zeros(2, np.float32)}
  write_safetensors(path, more, metadata)
  assert main([str(path)]) == 1
  assert "not computed" in capsys.readouterr().out


def test_a_fixture_of_no_known_kind_goes_red(tmp_path, capsys):
  path, tensors, metadata = changed(SMALLEST, tmp_path, kind="instella-t2i-aar")
  write_safetensors(path, tensors, metadata)
  assert main([str(path)]) == 1
  assert "did you mean 'instella-t2i-ar'" in capsys.readouterr().out
  assert main([str(tmp_path / "missing.safetensors")]) == 1


def test_ids_agree_to_the_letter_except_at_ties():
  expected = np.array([0, 1, 2])
  near = np.array([0, 1, 3])
  comparison = Comparison(lambda *_: {})
  assert _row("out/ids", expected, Ids(expected), comparison).passed
  assert not _row("out/ids", expected, Ids(near), comparison).passed
  tied = np.array([False, False, True])
  assert _row("out/ids", expected, Ids(near, tied), comparison).passed
  assert not _row("out/ids", expected, Ids(near, ~tied), comparison).passed
