"""The quantizers' fixtures, through the runner's own comparison."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity._survey import KIND
from tests.parity.base import compare, comparisons
from tokzoo.files import read_safetensors

FIXTURES = sorted(
  (Path(__file__).parent / "data").glob("discrete-tokenization-survey-*.safetensors")
)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture(path):
  rows = compare(path)
  assert rows
  failed = [row for row in rows if not row.passed]
  assert not failed, failed


def test_the_fixtures_cover_the_kinds():
  kinds = {read_safetensors(path, "fixture")[1]["kind"] for path in FIXTURES}
  assert kinds == {kind for kind in comparisons() if kind.startswith(KIND)}


def test_a_changed_fixture_fails(tmp_path):
  from safetensors.numpy import save_file

  tensors, metadata = read_safetensors(FIXTURES[-1], "fixture")
  name = "out/train_quantized"
  tensors = dict(tensors) | {name: tensors[name] + np.float32(1e-3)}
  save_file(tensors, tmp_path / "changed.safetensors", metadata)
  verdicts = {row.name: row.passed for row in compare(tmp_path / "changed.safetensors")}
  assert [name for name, passed in verdicts.items() if not passed] == [name]
