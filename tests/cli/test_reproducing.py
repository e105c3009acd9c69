"""`tokzoo reproduce`: what a report says, and what it keeps when only some claims are measured."""

import json
from types import SimpleNamespace

import pytest

from tokzoo.cli import reproducing
from tokzoo.errors import TokzooError
from tokzoo.train.claims import Claim

measured: list[tuple[str, int]] = []


def _claim(sentence: str, limit: float, setting: str = "none") -> Claim:
  def measure(seed: int) -> dict[str, float]:
    measured.append((sentence, seed))
    return {"error": seed + 0.5}

  return Claim(sentence, "here", measure, lambda n: n["error"] < limit, setting)


@pytest.fixture
def experiment(monkeypatch):
  measured.clear()
  found = SimpleNamespace(CLAIMS=(_claim("it is small", 2), _claim("it is tiny", 0.1)))
  monkeypatch.setattr(reproducing, "load_experiment", lambda slug: found)
  return found


def _run(folder, *claims: int) -> dict:
  reproducing.reproduce("titok", out=folder, claims=claims)
  return json.loads((folder / "titok" / "numbers.json").read_text())


def test_a_report_counts_the_seeds_that_hold(experiment, tmp_path):
  first, second = _run(tmp_path)["claims"]
  assert first["verdict"] == "holds for 2 of 3 seeds" and not first["holds"]
  assert second["verdict"] == "holds for 0 of 3 seeds"
  assert first["seeds"]["2"] == {"error": 2.5} and first["means"] == {"error": 1.5}
  report = (tmp_path / "titok" / "report.md").read_text()
  assert "**Holds for 2 of 3 seeds.**" in report
  assert (tmp_path / "titok" / "figure.png").stat().st_size > 1000


def test_one_claim_is_measured_and_the_others_are_kept(
  experiment, tmp_path, monkeypatch
):
  before = _run(tmp_path)["claims"][0]
  measured.clear()
  monkeypatch.setattr(reproducing, "code_version", lambda: "9.9")
  first, second = _run(tmp_path, 2)["claims"]
  assert {sentence for sentence, _ in measured} == {"it is tiny"}
  assert first == before and second["code_version"] == "9.9"
  kept, new = (tmp_path / "titok" / "report.md").read_text().split("## ")[1:3]
  assert f"tokzoo {before['code_version']}" in kept and "tokzoo" not in new


def test_a_claim_of_another_setting_is_not_kept(experiment, tmp_path):
  _run(tmp_path)
  experiment.CLAIMS = (_claim("it is small", 2, "larger"), experiment.CLAIMS[1])
  assert [entry["claim"] for entry in _run(tmp_path, 2)["claims"]] == ["it is tiny"]


def test_a_claim_that_is_not_there(experiment, tmp_path):
  with pytest.raises(TokzooError, match="there is no claim 3"):
    _run(tmp_path, 3)
