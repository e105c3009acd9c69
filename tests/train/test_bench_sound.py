"""The benchmark of codecs: both sides compute the same, and the command says what it needs."""

import json

import jax
import numpy as np
import pytest

from tokzoo.cli.main import main
from tokzoo.train.bench import sound


@pytest.mark.torch
@pytest.mark.parametrize(
  "case", [c for c in sound.CASES if c.size == "nano"], ids=lambda case: case.name
)
def test_the_peers_of_sound_compute_the_same(case):
  pytest.importorskip("transformers")
  for op, (ours, arguments), peer in sound.programs(case):
    found, wanted = jax.jit(ours)(*arguments), peer().numpy()
    if op == "encode":
      codes = np.concatenate(list(wanted), -1) if wanted.ndim == 4 else wanted
      np.testing.assert_array_equal(found.ids, codes.transpose(0, 2, 1))
      assert found.ids.shape[2] == case.codebooks
    else:
      wanted = wanted.reshape(1, -1, wanted.shape[-1]).transpose(0, 2, 1)
      np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.torch
def test_the_command_prints_rows(capsys):
  pytest.importorskip("transformers")
  assert (
    main(
      ["bench", "sound", "--size", "nano", "--model", "Mimi", "--turns", "1", "--json"]
    )
    == 0
  )
  rows = json.loads(capsys.readouterr().out)["rows"]
  assert [row["op"] for row in rows] == ["encode", "decode"]
  assert all(row["real_time"] > 0 and row["ratio"] > 0 for row in rows)


def test_what_cannot_be_timed_is_one_sentence(capsys):
  assert main(["bench", "sound", "--turns", "0"]) == 2
  assert "0 turns measure nothing" in capsys.readouterr().err
  assert main(["bench", "sound", "--model", "Mini"]) == 2
  assert "did you mean 'Mimi'" in capsys.readouterr().err
