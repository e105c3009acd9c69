"""`tokzoo reproduce`: a system's claims, measured, with a report."""

import dataclasses
import json as json_module
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Console

from tokzoo.cli.console import emit, note, parse, shown, table, write_picture
from tokzoo.cli.experiments import load_experiment
from tokzoo.cli.figures import dot_plot, stack
from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.systems import find_system
from tokzoo.train.claims import Claim, Verdict, judge
from tokzoo.version import code_version


def run_reproduce(arguments: Sequence[str]) -> None:
  parse(reproduce, "reproduce", arguments)


def reproduce(
  slug: Annotated[str, tyro.conf.Positional],
  /,
  out: Path = Path("experiments/results"),
  claims: tuple[int, ...] = (),
  seeds: tuple[int, ...] = (),
  json: bool = False,
) -> None:
  """Measures the claims of a system and writes report.md, numbers.json and figure.png.

  Args:
    slug: the system; tokzoo list shows them.
    out: the report goes to OUT/SLUG.
    claims: numbers of the claims to measure, from 1; all by default. Of the others the report
      keeps what it says already, where sentence and setting are still the same.
    seeds: instead of the claims' own seeds.
    json: print numbers.json instead of the table.
  """
  title = find_system(slug).title
  experiment = load_experiment(slug)
  every = getattr(experiment, "CLAIMS", ())
  wrong = [number for number in claims if not 1 <= number <= len(every)]
  if wrong:
    raise TokzooError(
      f"{slug} has the claims 1 to {len(every)}, there is no claim {wrong[0]}."
    )
  folder = out / slug
  here = _here()  # before measuring, for what is loaded is what measures
  entries: list[dict[str, Any]] = []
  verdicts: list[Verdict] = []
  for number, claim in enumerate(every, 1):
    if claims and number not in claims:
      entry = _measured_before(folder, claim)
      if entry is not None:
        entries.append(entry)
        verdicts.append(_verdict(claim, entry))
      continue
    note(f"claim {number} of {len(every)}: {claim.sentence}.")
    started = time.perf_counter()
    if seeds:
      claim = dataclasses.replace(claim, seeds=seeds)
    verdicts.append(judge(claim, lambda text: note(f"  {text}")))
    seconds = time.perf_counter() - started
    entries.append(_entry(verdicts[-1], seconds) | here)
  numbers = {"system": slug, **here, "claims": entries}
  write_atomic(
    folder / "numbers.json", (json_module.dumps(numbers, indent=2) + "\n").encode()
  )
  panels = [panel for verdict in _distinct(verdicts) for panel in _panels(verdict)]
  write_picture(folder / "figure.png", stack(panels))
  tables = getattr(experiment, "TABLES", ())
  more = _benchmark(experiment, folder, only_claims=bool(claims))
  write_atomic(folder / "report.md", _report(title, numbers, tables, more).encode())

  def render(console: Console) -> None:
    rows = [(v.claim.sentence, v.sentence) for v in verdicts]
    console.print(table(title, ("claim", "verdict"), rows))
    console.print(f"The report is {folder / 'report.md'}.")

  emit(numbers, json, render)


def _benchmark(experiment: Any, folder: Path, only_claims: bool) -> list[str]:
  """Further lines of the report, of an experiment that has a `benchmark`; those that are there
  where only some claims were asked for."""
  measure = getattr(experiment, "benchmark", None)
  if measure is None:
    return []
  kept = folder / "benchmark.md"
  if only_claims:
    return kept.read_text().splitlines() if kept.is_file() else []
  lines = measure(folder, note)
  write_atomic(kept, ("\n".join(lines) + "\n").encode())
  return lines


def _here() -> dict[str, str]:
  """What numbers are measured on and with."""
  device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
  return {"device": device, "code_version": code_version()}


def _entry(verdict: Verdict, seconds: float) -> dict[str, Any]:
  """What numbers.json says of a claim that has just been measured."""
  return {
    "claim": verdict.claim.sentence,
    "source": verdict.claim.source,
    "setting": verdict.claim.setting,
    "verdict": verdict.sentence,
    "holds": verdict.holds,
    "means": verdict.means(),
    "seeds": {str(seed): found for seed, found in verdict.numbers.items()},
    "held": {str(seed): held for seed, held in verdict.held.items()},
    "seconds": round(seconds, 1),
  }


def _measured_before(folder: Path, claim: Claim) -> dict[str, Any] | None:
  """The entry of a claim in the report that is there; None where it says nothing of it."""
  path = folder / "numbers.json"
  if not path.is_file():
    return None
  former = json_module.loads(path.read_text())
  for entry in former["claims"]:
    if (entry["claim"], entry["setting"]) == (claim.sentence, claim.setting):
      # Reports once had one device and one version for all claims.
      return {name: former[name] for name in ("device", "code_version")} | entry
  return None


def _verdict(claim: Claim, entry: dict[str, Any]) -> Verdict:
  """The verdict that an entry was made of."""
  seeds = {int(seed): found for seed, found in entry["seeds"].items()}
  held = {int(seed): found for seed, found in entry["held"].items()}
  return Verdict(dataclasses.replace(claim, seeds=tuple(seeds)), seeds, held)


def _distinct(verdicts: Sequence[Verdict]) -> list[Verdict]:
  """Those whose numbers no earlier one has: several claims may rest on one measurement."""
  distinct: list[Verdict] = []
  for verdict in verdicts:
    if all(verdict.numbers != earlier.numbers for earlier in distinct):
      distinct.append(verdict)
  return distinct


def _panels(verdict: Verdict) -> list[np.ndarray]:
  """Numbers of one unit a panel ("unit: name", where they have several); seeds are dots."""
  by_unit: dict[str, list[str]] = {}
  for name in verdict.means():
    by_unit.setdefault(name.partition(": ")[0] if ": " in name else "", []).append(name)
  short = verdict.claim.sentence.split(" (")[0]
  panels = []
  for unit, names in by_unit.items():
    title = f"{unit}: {short}" if unit else short
    panels.append(
      dot_plot(
        title if len(title) < 80 else title[:77] + "...",
        [name.removeprefix(f"{unit}: ") for name in names],
        [[found[name] for found in verdict.numbers.values()] for name in names],
      )
    )
  return panels


def _elsewhere(claim: dict[str, Any], numbers: dict[str, Any]) -> str:
  """Where a claim was measured, unless it is what the report's first lines say."""
  by = f"{claim['device']}, tokzoo {claim['code_version']}"
  is_same = by == f"{numbers['device']}, tokzoo {numbers['code_version']}"
  return "" if is_same else f" on {by}"


def _report(
  title: str,
  numbers: dict[str, Any],
  tables: Sequence[dict],
  more: Sequence[str] = (),
) -> str:
  lines = [
    f"# {title}",
    "",
    f"Measured by `tokzoo reproduce {numbers['system']}` on {numbers['device']}, tokzoo "
    f"{numbers['code_version']}. Numbers of these small models on packaged data say whether "
    "a claim shows at this scale; they are not comparable with the paper's.",
    "",
  ]
  shown_before: list[tuple[int, dict]] = []
  for index, claim in enumerate(numbers["claims"], 1):
    seeds = list(claim["seeds"])
    lines += [
      f"## {index}. {claim['claim']}",
      "",
      f"**{claim['verdict'][0].upper()}{claim['verdict'][1:]}.** Source: {claim['source']}. "
      f"Setting: {claim['setting']}. {claim['seconds']:.0f} s{_elsewhere(claim, numbers)}.",
      "",
    ]
    same = [n for n, found in shown_before if found == claim["seeds"]]
    if same:
      lines += [f"The numbers are those of claim {same[0]}.", ""]
      continue
    shown_before.append((index, claim["seeds"]))
    lines += [
      f"| measured | mean | {' | '.join(f'seed {seed}' for seed in seeds)} |",
      f"|---|{'---|' * (len(seeds) + 1)}",
    ]
    for name, mean in claim["means"].items():
      row = [shown(claim["seeds"][seed][name]) for seed in seeds]
      lines.append(f"| {name} | {shown(mean)} | {' | '.join(row)} |")
    lines.append("")
  lines += ["![numbers by claim](figure.png)", "", *more]
  if tables:
    lines += ["## Published", "", "| what | published | source |", "|---|---|---|"]
    lines += [f"| {t['what']} | {t['published']} | {t['source']} |" for t in tables]
    lines.append("")
  return "\n".join(lines)
