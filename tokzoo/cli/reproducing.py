"""`tokzoo reproduce`: a system's claims, measured, with a report."""

import collections
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
  together: bool = False,
  merge: tuple[Path, ...] = (),
  benchmark: bool = False,
  json: bool = False,
) -> None:
  """Measures the claims of a system and writes report.md, numbers.json and figure.png.

  Claims and seeds are independent: where there are several machines, each measures some of
  them into a folder of its own (--claims, --seeds, --out), and --merge makes one report.

  Args:
    slug: the system; tokzoo list shows them.
    out: the report goes to OUT/SLUG.
    claims: numbers of the claims to measure, from 1; by default all whose data are at hand. Of
      the others the report keeps what it says already, where sentence and setting are still the
      same.
    seeds: instead of the claims' own seeds.
    together: train the models of a claim's seeds in one program, each seed in a thread: nearly as
      fast as one seed where small models leave an accelerator idle.
    merge: measure nothing; take the numbers under DIR/SLUG of earlier runs, seed by seed, into
      the report in OUT/SLUG. Of a seed that several have, the last one's count.
    benchmark: measure what the system has beside its claims (discrete-audio-tokens: the table of
      codecs) though --claims names some of them; with all claims it is measured anyway.
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
  if benchmark and not hasattr(experiment, "benchmark"):
    raise TokzooError(f"{slug} has claims alone, no benchmark: leave out --benchmark.")
  if merge:
    if claims or seeds or benchmark:
      raise TokzooError(
        "--merge takes all that the folders hold: leave out --claims, --seeds and --benchmark."
      )
    pairs = _merged(every, folder, [each / slug for each in merge])
    entries = [entry for _, entry in pairs]
    numbers = {"system": slug, **_commonest(entries), "claims": entries}
    _write(experiment, folder, title, numbers, [v for v, _ in pairs], False, json)
    return
  here = _here()  # before measuring, for what is loaded is what measures
  entries: list[dict[str, Any]] = []
  verdicts: list[Verdict] = []
  lacking = {number: _lacks(claim) for number, claim in enumerate(every, 1)}
  for number in claims:
    if lacking[number]:
      raise TokzooError(f"claim {number} cannot be measured: {lacking[number]}")
  for number, claim in enumerate(every, 1):
    if not claims and lacking[number]:
      note(f"claim {number} of {len(every)} is not measured: {lacking[number]}")
    if lacking[number] or (claims and number not in claims):
      entry = _measured_before(folder, claim)
      if entry is not None:
        entries.append(entry)
        verdicts.append(_verdict(claim, entry))
      continue
    note(f"claim {number} of {len(every)}: {claim.sentence}.")
    started = time.perf_counter()
    if seeds:
      claim = dataclasses.replace(claim, seeds=seeds)
    verdicts.append(judge(claim, lambda text: note(f"  {text}"), together))
    seconds = time.perf_counter() - started
    entries.append(_entry(verdicts[-1], seconds) | here)
  numbers = {"system": slug, **here, "claims": entries}
  is_whole = benchmark or not claims
  _write(experiment, folder, title, numbers, verdicts, is_whole, json)


def _write(
  experiment: Any,
  folder: Path,
  title: str,
  numbers: dict[str, Any],
  verdicts: Sequence[Verdict],
  is_whole: bool,
  json: bool,
) -> None:
  """The three files of a report, and what is printed of it; a further benchmark of the
  experiment is measured where the report `is_whole`."""
  write_atomic(
    folder / "numbers.json", (json_module.dumps(numbers, indent=2) + "\n").encode()
  )
  panels = [panel for verdict in _distinct(verdicts) for panel in _panels(verdict)]
  write_picture(folder / "figure.png", stack(panels))
  tables = getattr(experiment, "TABLES", ())
  more = _benchmark(experiment, folder, only_claims=not is_whole)
  claims = getattr(experiment, "CLAIMS", ())
  report = _report(title, numbers, claims, tables, more)
  write_atomic(folder / "report.md", report.encode())

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


def _lacks(claim: Claim) -> str | None:
  """Why a claim cannot be measured here, None where it can."""
  try:
    claim.needs()
  except TokzooError as error:
    return str(error)
  return None


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


def _entries(folder: Path) -> list[dict[str, Any]]:
  """The entries of the report in a folder; none where there is no report."""
  path = folder / "numbers.json"
  if not path.is_file():
    return []
  former = json_module.loads(path.read_text())
  # Reports once had one device and one version for all claims.
  once = {name: former[name] for name in ("device", "code_version")}
  return [once | entry for entry in former["claims"]]


def _is_of(entry: dict[str, Any], claim: Claim) -> bool:
  return (entry["claim"], entry["setting"]) == (claim.sentence, claim.setting)


def _measured_before(folder: Path, claim: Claim) -> dict[str, Any] | None:
  """The entry of a claim in the report that is there; None where it says nothing of it."""
  return next((entry for entry in _entries(folder) if _is_of(entry, claim)), None)


def _merged(
  claims: Sequence[Claim], folder: Path, parts: Sequence[Path]
) -> list[tuple[Verdict, dict[str, Any]]]:
  """Verdicts and entries of all claims that the report in `folder` or one of the parts knows.

  Raises:
    TokzooError: a part without a report, or with a claim of another sentence or setting, whose
      numbers would stand for what they are not.
  """
  found = [entry for entry in _entries(folder) if any(_is_of(entry, c) for c in claims)]
  for part in parts:
    entries = _entries(part)
    if not entries:
      raise TokzooError(
        f"there is no report in {part} to merge: name the folder that was --out of a run."
      )
    for entry in entries:
      if not any(_is_of(entry, claim) for claim in claims):
        raise TokzooError(
          f"{part} has numbers of a claim that is not, or no longer, so measured "
          f'("{entry["claim"][:60]}", {entry["setting"][:60]}): measure it again.'
        )
    found += entries
  pairs = []
  for claim in claims:
    own = [entry for entry in found if _is_of(entry, claim)]
    if not own:
      continue
    numbers: dict[int, dict[str, float]] = {}
    held: dict[int, bool] = {}
    last: dict[int, dict[str, Any]] = {}
    for entry in own:
      verdict = _verdict(claim, entry)
      numbers |= verdict.numbers
      held |= verdict.held
      last |= dict.fromkeys(verdict.numbers, entry)
    order = sorted(numbers)
    verdict = Verdict(
      dataclasses.replace(claim, seeds=tuple(order)),
      {seed: numbers[seed] for seed in order},
      {seed: held[seed] for seed in order},
    )
    # Each entry that still stands for a seed, once.
    used = list({id(last[seed]): last[seed] for seed in order}.values())
    by = {
      name: "; ".join(dict.fromkeys(entry[name] for entry in used))
      for name in ("device", "code_version")
    }
    seconds = sum(entry["seconds"] for entry in used)
    pairs.append((verdict, _entry(verdict, seconds) | by))
  return pairs


def _commonest(entries: Sequence[dict[str, Any]]) -> dict[str, str]:
  """What most claims of a merged report were measured on and with."""
  count = collections.Counter((e["device"], e["code_version"]) for e in entries)
  device, version = count.most_common(1)[0][0]
  return {"device": device, "code_version": version}


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
  claims: Sequence[Claim],
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
  for index, each in enumerate(claims, 1):
    lines += [f"## {index}. {each.sentence}", ""]
    claim = next((found for found in numbers["claims"] if _is_of(found, each)), None)
    if claim is None:
      lines += [f"**Not measured.** Setting: {each.setting}.", ""]
      continue
    seeds = list(claim["seeds"])
    lines += [
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
