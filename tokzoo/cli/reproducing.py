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
from tokzoo.train.claims import Verdict, judge
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
    claims: numbers of the claims to measure, from 1; all by default.
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
  chosen = [claim for n, claim in enumerate(every, 1) if not claims or n in claims]
  verdicts, seconds = [], []
  for number, claim in enumerate(chosen, 1):
    note(f"claim {number} of {len(chosen)}: {claim.sentence}.")
    started = time.perf_counter()
    if seeds:
      claim = dataclasses.replace(claim, seeds=seeds)
    verdicts.append(judge(claim, lambda text: note(f"  {text}")))
    seconds.append(time.perf_counter() - started)
  numbers = _numbers(slug, verdicts, seconds)
  folder = out / slug
  write_atomic(
    folder / "numbers.json", (json_module.dumps(numbers, indent=2) + "\n").encode()
  )
  panels = [panel for verdict in _distinct(verdicts) for panel in _panels(verdict)]
  write_picture(folder / "figure.png", stack(panels))
  tables = getattr(experiment, "TABLES", ())
  write_atomic(folder / "report.md", _report(title, numbers, tables).encode())

  def render(console: Console) -> None:
    rows = [(v.claim.sentence, v.sentence) for v in verdicts]
    console.print(table(title, ("claim", "verdict"), rows))
    console.print(f"The report is {folder / 'report.md'}.")

  emit(numbers, json, render)


def _numbers(
  slug: str, verdicts: Sequence[Verdict], seconds: Sequence[float]
) -> dict[str, Any]:
  return {
    "system": slug,
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "code_version": code_version(),
    "claims": [
      {
        "claim": verdict.claim.sentence,
        "source": verdict.claim.source,
        "setting": verdict.claim.setting,
        "verdict": verdict.sentence,
        "holds": verdict.holds,
        "means": verdict.means(),
        "seeds": {str(seed): found for seed, found in verdict.numbers.items()},
        "held": {str(seed): held for seed, held in verdict.held.items()},
        "seconds": round(spent, 1),
      }
      for verdict, spent in zip(verdicts, seconds, strict=True)
    ],
  }


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


def _report(title: str, numbers: dict[str, Any], tables: Sequence[dict]) -> str:
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
      f"Setting: {claim['setting']}. {claim['seconds']:.0f} s.",
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
  lines += ["![numbers by claim](figure.png)", ""]
  if tables:
    lines += ["## Published", "", "| what | published | source |", "|---|---|---|"]
    lines += [f"| {t['what']} | {t['published']} | {t['source']} |" for t in tables]
    lines.append("")
  return "\n".join(lines)
