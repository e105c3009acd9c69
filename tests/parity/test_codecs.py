"""The neural codecs' fixtures through the runner's own comparisons."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity import (
  dac,
  encodec,
  mimi,
  snac,
  speechtokenizer,
  wavtokenizer,
  xcodec,
)
from tests.parity.base import compare
from tests.parity.run import main
from tokzoo.files import read_safetensors
from tokzoo.weights import write_safetensors

DATA = Path(__file__).parent / "data"
MODULES = (dac, encodec, mimi, snac, speechtokenizer, wavtokenizer, xcodec)
KINDS = set().union(*(module.COMPARISONS for module in MODULES))
FIXTURES = [
  path
  for path in sorted(DATA.glob("*.safetensors"))
  if read_safetensors(path, "fixture")[1].get("kind") in KINDS
]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture(path):
  rows = compare(path)
  assert [row for row in rows if not row.passed] == []
  tensors, _ = read_safetensors(path, "fixture")
  held = ("out", "grad", "grad_in", "after")
  wanted = {name for name in tensors if name.split("/")[0] in held}
  assert {row.name for row in rows} == wanted and len(wanted) >= 3


def test_the_fixtures_cover_the_kinds():
  assert {read_safetensors(path, "fixture")[1]["kind"] for path in FIXTURES} == KINDS


def test_a_perturbed_weight_goes_red(tmp_path, capsys):
  path = DATA / "encodec-24khz-causal.safetensors"
  tensors, metadata = read_safetensors(path, "fixture")
  key = "param/decoder.layers.6.conv.weight_v"
  weight = tensors[key].copy()
  weight.flat[0] += 0.05 * np.abs(weight).max()
  changed = tmp_path / path.name
  write_safetensors(changed, dict(tensors) | {key: weight}, metadata)
  assert main([str(changed)]) == 1
  assert "FAIL  out/audio" in capsys.readouterr().out
