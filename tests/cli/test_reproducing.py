"""`tokzoo reproduce`: what a report says, and what it keeps when only some claims are measured."""

import dataclasses
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
  report = (tmp_path / "titok" / "report.md").read_text()
  assert "## 1. it is small\n\n**Not measured.** Setting: larger." in report
  assert "## 2. it is tiny\n\n**Holds for 0 of 3 seeds.**" in report


def test_a_claim_that_is_not_there(experiment, tmp_path):
  with pytest.raises(TokzooError, match="there is no claim 3"):
    _run(tmp_path, 3)


def test_a_benchmark_is_measured_with_all_claims_or_when_asked_for(
  experiment, tmp_path
):
  with pytest.raises(TokzooError, match="no benchmark: leave out --benchmark"):
    reproducing.reproduce("titok", out=tmp_path, benchmark=True)
  tables = iter(("first table", "second table"))
  experiment.benchmark = lambda folder, say: [next(tables)]

  def shown(**options) -> str:
    reproducing.reproduce("titok", out=tmp_path, **options)
    return (tmp_path / "titok" / "report.md").read_text()

  assert "first table" in shown()
  assert "first table" in shown(claims=(1,))
  assert "second table" in shown(claims=(1,), benchmark=True)
  with pytest.raises(TokzooError, match="leave out --claims"):
    shown(merge=(tmp_path,), benchmark=True)


def test_seeds_measured_apart_make_the_report_of_one_run(experiment, tmp_path):
  whole = _run(tmp_path / "whole")
  for seed in (2, 0, 1):
    out = tmp_path / f"seed-{seed}"
    reproducing.reproduce("titok", out=out, claims=(1,), seeds=(seed,))
  reproducing.reproduce("titok", out=tmp_path / "second", claims=(2,))
  measured.clear()
  parts = tuple(tmp_path / name for name in ("seed-2", "seed-0", "seed-1", "second"))
  reproducing.reproduce("titok", out=tmp_path / "merged", merge=parts)
  assert not measured
  files = [tmp_path / name / "titok" for name in ("whole", "merged")]
  merged = json.loads((files[1] / "numbers.json").read_text())
  for numbers in (whole, merged):
    for entry in numbers["claims"]:
      entry["seconds"] = 0.0
  assert merged == whole
  pictures = [(folder / "figure.png").read_bytes() for folder in files]
  assert pictures[0] == pictures[1]


def test_a_merge_renews_single_seeds_and_says_where_they_were_measured(
  experiment, tmp_path, monkeypatch
):
  before = _run(tmp_path)
  experiment.CLAIMS = (
    dataclasses.replace(
      experiment.CLAIMS[0], measure=lambda seed: {"error": 10.0 + seed}
    ),
    experiment.CLAIMS[1],
  )
  monkeypatch.setattr(reproducing, "code_version", lambda: "9.9")
  new = tmp_path / "new"
  reproducing.reproduce("titok", out=new, claims=(1,), seeds=(1,))
  reproducing.reproduce("titok", out=tmp_path, merge=(new,))
  merged = json.loads((tmp_path / "titok" / "numbers.json").read_text())
  first, second = merged["claims"]
  assert [found["error"] for found in first["seeds"].values()] == [0.5, 11.0, 2.5]
  assert first["verdict"] == "holds for 1 of 3 seeds"
  assert first["code_version"] == f"{before['code_version']}; 9.9"
  assert second == before["claims"][1]


def test_what_cannot_be_merged(experiment, tmp_path):
  with pytest.raises(TokzooError, match="no report in"):
    reproducing.reproduce("titok", out=tmp_path, merge=(tmp_path / "nowhere",))
  old = tmp_path / "old"
  _run(old)
  experiment.CLAIMS = (_claim("it is small", 2, "larger"), experiment.CLAIMS[1])
  with pytest.raises(TokzooError, match="no longer"):
    reproducing.reproduce("titok", out=tmp_path, merge=(old,))
  with pytest.raises(TokzooError, match="leave out --claims"):
    reproducing.reproduce("titok", out=tmp_path, claims=(1,), merge=(old,))
  assert not (tmp_path / "titok").exists()


def test_a_claim_whose_data_are_not_at_hand_is_left_as_it_is(
  experiment, tmp_path, capsys
):
  before = _run(tmp_path)["claims"]

  def lacks() -> None:
    raise TokzooError("fetch the data first.")

  second = dataclasses.replace(experiment.CLAIMS[1], needs=lacks)
  experiment.CLAIMS = (experiment.CLAIMS[0], second)
  measured.clear()
  assert _run(tmp_path)["claims"][1] == before[1]
  assert {sentence for sentence, _ in measured} == {"it is small"}
  assert "claim 2 of 2 is not measured: fetch the data" in capsys.readouterr().err
  assert len(_run(tmp_path / "empty")["claims"]) == 1
  with pytest.raises(TokzooError, match=r"claim 2 cannot be measured: fetch the data"):
    _run(tmp_path, 2)
