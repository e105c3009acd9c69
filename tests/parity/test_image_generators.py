"""The image generators' fixtures, through the runner's own comparison."""

from pathlib import Path

import pytest

from tests.parity import llamagen_ar, maskgit, open_magvit2_ar, rar
from tests.parity.base import compare
from tokzoo.files import read_safetensors
from tokzoo.weights import write_safetensors

KINDS = {
  kind
  for module in (llamagen_ar, maskgit, open_magvit2_ar, rar)
  for kind in module.COMPARISONS
}
FIXTURES = [
  path
  for path in sorted((Path(__file__).parent / "data").glob("*.safetensors"))
  if read_safetensors(path, "fixture")[1]["kind"] in KINDS
]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture(path):
  rows = compare(path)
  assert [row for row in rows if not row.passed] == [] and len(rows) > 5


def test_the_fixtures_cover_the_kinds():
  assert {read_safetensors(path, "fixture")[1]["kind"] for path in FIXTURES} == KINDS


def test_a_changed_parameter_goes_red(tmp_path):
  path = next(path for path in FIXTURES if path.stem == "rar-tiny")
  tensors, metadata = read_safetensors(path, "fixture")
  table = tensors["param/target_aware_pos_embed"].copy()
  table[0, 3, ::2] += 0.1  # LayerNorm would not see the same step in every feature
  changed = {**tensors, "param/target_aware_pos_embed": table}
  write_safetensors(tmp_path / path.name, changed, metadata)
  assert any(not row.passed for row in compare(tmp_path / path.name))
