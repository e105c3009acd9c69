"""One fault endured: struck, ended, damaged, started again, compared.

python -m tests.chaos.ordeal            every fault, with its row of the table in README.md
python -m tests.chaos.ordeal stopped    those with the word in their name
"""

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tests.conftest  # noqa: F401  the compilation cache, before jax opens a device
from tests.chaos.faults import FAULTS, Damage, Fault
from tests.chaos.worker import GRACE, LATE, LOST, STEPS, WAIT, Attempt
from tests.train.test_killed import ROOT, environment, lines_of, newest

README = Path(__file__).parent / "README.md"
STATED = 45
"""Seconds after a fault in which a run has ended, whatever happened."""
SLOW_MS = 40
"""That every write to a checkpoint takes longer on a slow disk."""
FIRST_STOP = Fault("told to stop", 1, "in step 6", ending="stopped")


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What followed a fault.

  fault:      the row
  sentence:   how the first attempt ended
  told:       which process the others called lost in their own logs; "" if none
  seconds:    from the fault to the end of every process
  resumed:    the step that the second attempt continued from; None if it did not
  restarted:  what the second attempt ended in
  """

  fault: Fault
  sentence: str
  told: str
  seconds: float
  resumed: int | None
  restarted: str


class Server:
  """The process that forks attempts (worker.py)."""

  def __init__(self, **more: str):
    self._process = subprocess.Popen(
      [sys.executable, "-m", "tests.chaos.worker"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env={**environment(2), **more},
    )

  def attempt(self, attempt: Attempt) -> dict:
    """How an attempt ended."""
    assert self._process.stdin is not None and self._process.stdout is not None
    self._process.stdin.write(json.dumps(dataclasses.asdict(attempt)) + "\n")
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())

  def close(self) -> None:
    """Ends it; no attempt is under way."""
    assert self._process.stdin is not None
    self._process.stdin.close()
    self._process.wait()


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[bool, Server]]:
  """An ordinary server, and under True one whose disk can be slow, where gcc is at hand."""
  with contextlib.ExitStack() as stack:
    found = {False: stack.enter_context(contextlib.closing(Server()))}
    if shutil.which("gcc"):
      library = folder / "slow_disk.so"
      source = Path(__file__).with_name("slow_disk.c")
      subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True
      )
      slow = Server(LD_PRELOAD=str(library), SLOW_DISK_PROCESS_MS=str(SLOW_MS))
      found[True] = stack.enter_context(contextlib.closing(slow))
    yield found


def endure(fault: Fault, server: Server, reference: Path, out: Path) -> Outcome:
  """Strikes a run with a fault and sees what follows.

  Args:
    fault: the row of the table.
    server: of `servers`; one with a slow disk for that fault.
    reference: the run directory of an undisturbed run.
    out: a folder that is not there yet.

  Raises:
    AssertionError: something else followed than the table says.
  """
  ended = strike(fault, server, out)
  seconds = ended["end"] - float((out / "struck").read_text())
  told = what_they_told(out)
  assert seconds < STATED, ended
  if fault.ending == "lost":
    assert ended["code"] != 0 and ended["blame"] == fault.process, (ended, told)
    assert ended["hung"] == (fault.deed == "stopped"), ended
  else:
    assert ended["code"] == 0, (ended, told)
    assert newest(out) == STEPS or fault.ending == "stopped"
  if fault.damage is not None:
    spoil(fault.damage, out)
  resumed, restarted = None, "needs none"
  if fault.ending != "done":
    resumed, restarted = restart(fault, server, out)
  if fault.restart == "same bits":
    same_bits(out, reference)
    restarted = "same bits without one" if fault.ending == "done" else "same bits"
  elif fault.restart == "fewer devices":
    same_curve(out, reference)
  return Outcome(fault, ended["sentence"], told, seconds, resumed, restarted)


def strike(fault: Fault, server: Server, out: Path) -> dict:
  """The first attempt, and how it ended. What differs only in the damage is struck once."""
  bare = dataclasses.replace(fault, damage=None, restart="same bits")
  kept = out.parent / bare.name.replace(" ", "-")
  if fault.damage is None or not kept.exists():
    if fault.moment == "while restoring":
      assert server.attempt(Attempt(str(out), fault=FIRST_STOP))["code"] == 0
    ended = server.attempt(Attempt(str(out), fault=fault))
    assert (out / "struck").exists(), "the fault did not strike"
    (out / "ended.json").write_text(json.dumps(ended))
    if fault.damage is not None:
      shutil.copytree(out, kept)
  else:
    shutil.copytree(kept, out)
  return json.loads((out / "ended.json").read_text())


def restart(fault: Fault, server: Server, out: Path) -> tuple[int | None, str]:
  """The second attempt: the step it continued from, and what it ended in."""
  processes = 2 if fault.restart == "fewer devices" else 4
  before = len((out / "process-0.log").read_text())
  ended = server.attempt(Attempt(str(out), processes))
  log = (out / "process-0.log").read_text()[before:]
  if fault.restart == "refused":
    assert ended["code"] == 2 and "no checkpoint in" in log, (ended, log)
    return None, "refused: no checkpoint is whole"
  assert ended["code"] == 0, (ended, log)
  resumed = continued_from(out)
  if fault.damage in ("truncated", "byte flipped", "description lost", "manifest lost"):
    assert (out / "damaged" / "00000008").is_dir() and resumed == 4
  return resumed, "done" if processes == 4 else "4 devices: same curve"


def spoil(damage: Damage, out: Path) -> None:
  """Damages the newest checkpoint, at step 8; an older one is at step 4."""
  folder = out / "checkpoints"
  assert newest(out) == 8, sorted(folder.iterdir())
  last = folder / f"{8:08d}"
  match damage:
    case "deleted":
      shutil.rmtree(last)
    case "truncated":
      _truncate(last)
    case "all truncated":
      for step in folder.iterdir():
        _truncate(step)
    case "byte flipped":
      path = _largest(last)
      content = bytearray(path.read_bytes())
      content[len(content) // 2] ^= 0x10
      path.write_bytes(content)
    case "description lost":
      (last / "about" / "metadata").unlink()
    case "manifest lost":
      (last / "state" / "manifest.ocdbt").unlink()
    case "half-written beside":
      # As a save that was killed leaves it.
      shutil.copytree(last, folder / f"{12:08d}.orbax-checkpoint-tmp")
      shutil.rmtree(folder / f"{12:08d}.orbax-checkpoint-tmp" / "about")


def _truncate(step: Path) -> None:
  path = _largest(step)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _largest(step: Path) -> Path:
  """The file of a checkpoint that holds most of its arrays."""
  files = [path for path in (step / "state").rglob("*") if path.parent.name == "d"]
  return max(files, key=lambda path: path.stat().st_size)


def what_they_told(out: Path) -> str:
  """What the processes that ended because of another one said of it themselves."""
  found = []
  for path in sorted(out.glob("process-*.log")):
    text = path.read_text(errors="replace")
    found += re.findall(r"stops: (.*?) was lost", text)
    found += [f"process {n}" for n in re.findall(r"heartbeats\):\n(\d+)\n", text)]
    if "Failed to send RPC to coordination service" in text or (
      "Deadline Exceeded" in text and "CoordinationService/Heartbeat" in text
    ):
      found.append("process 0")
    if "CoordinationService/RegisterTask" in text:
      found.append("not all came")
  return ", ".join(sorted({name.split(" (")[0] for name in found}))


def continued_from(out: Path) -> int | None:
  """The step after which the last attempt went on; None if it began anew."""
  words = "continues after step "
  steps = [
    int(line.split(words)[1].split()[0].strip(".,"))
    for line in (out / "process-0.log").read_text().splitlines()
    if words in line
  ]
  return steps[-1] if steps else None


def same_bits(out: Path, reference: Path) -> None:
  """Asserts that two runs ended in the same state, and wrote the same log."""
  from tests.train.test_checkpoint import arrays_of, assert_same_bits

  found, about = arrays_of(out)
  expected, about_expected = arrays_of(reference)
  assert_same_bits(found, expected)
  for part in ("step", "recipe", "data", "arrays"):
    assert about[part] == about_expected[part]
  assert lines_of(out) == lines_of(reference)


def same_curve(out: Path, reference: Path) -> None:
  """Asserts that two runs on different meshes logged nearly the same numbers."""
  for mine, theirs in zip(lines_of(out), lines_of(reference), strict=True):
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
      if key != "split":
        np.testing.assert_allclose(value, theirs[key], 1e-3)


def main(words: list[str]) -> None:
  """Every fault that has all of the words in its name."""
  chosen = [fault for fault in FAULTS if all(word in fault.name for word in words)]
  rows = []
  with tempfile.TemporaryDirectory() as place:
    folder = Path(place)
    with servers(folder) as found:
      reference = folder / "reference"
      assert found[False].attempt(Attempt(str(reference)))["code"] == 0
      for number, fault in enumerate(chosen):
        server = found[fault.deed == "slow disk"]
        try:
          outcome = endure(fault, server, reference, folder / str(number))
        except AssertionError as error:
          print(f"| {fault.name} | NOT AS STATED: {error} |", flush=True)
          continue
        rows.append(row(outcome))
        print(rows[-1], flush=True)
  write_table(rows)


def row(outcome: Outcome) -> str:
  """One line of the table."""
  again = outcome.restarted
  if outcome.resumed is not None:
    again += f", from step {outcome.resumed}"
  elif again == "same bits":
    again += ", from the beginning"
  cells = (
    outcome.fault.name,
    outcome.sentence,
    outcome.told or "-",
    f"{outcome.seconds:.0f} s",
    again,
  )
  return f"| {' | '.join(cells)} |"


def write_table(rows: list[str]) -> None:
  """Puts rows into the table of README.md; those of other faults stay."""
  start, end = "<!-- table: begin -->", "<!-- table: end -->"
  text = README.read_text()
  before, rest = text.split(start)
  table, after = rest.split(end)
  known = {line.split(" | ")[0]: line for line in [*table.splitlines(), *rows]}
  rows = [known[f"| {f.name}"] for f in FAULTS if f"| {f.name}" in known]
  head = (
    "| fault | how the attempt ended | lost, the others say | ended after | restart |\n"
    "|---|---|---|---|---|"
  )
  README.write_text("\n".join([before + start, head, *rows, end]) + after)


assert LOST + GRACE + max(WAIT, LATE) < STATED

if __name__ == "__main__":
  main(sys.argv[1:])
