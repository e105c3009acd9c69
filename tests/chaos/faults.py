"""The table of faults: what happens to which process, when, and what must follow.

A fault strikes the first attempt; the second one is undisturbed and must end in the same
bits as a run that no fault ever struck.
"""

import dataclasses
from typing import Literal

Moment = Literal[
  "before meeting",
  "before the first step",
  "in step 6",
  "while step 4 is written",
  "while step 8 is written",
  "when step 8 is written",
  "while restoring",
  "while evaluating",
  "after the last step",
]
Deed = Literal[
  "killed",
  "stopped",
  "paused",
  "told to stop",
  "late",
  "absent",
  "failing",
  "without data",
  "disk full",
  "slow disk",
]
Damage = Literal[
  "deleted",
  "truncated",
  "byte flipped",
  "description lost",
  "manifest lost",
  "half-written beside",
  "all truncated",
]


@dataclasses.dataclass(frozen=True)
class Fault:
  """One row of the table.

  deed, process, moment:  what happens to which process when
  damage:                 what happens to the newest checkpoint before the restart
  ending:                 of the first attempt: "lost" (ends badly, a process is named),
                          "stopped" (all save and stop), "done" (goes on to its end)
  restart:                of the second: "same bits", "fewer devices", or "refused"
  """

  deed: Deed
  process: int
  moment: Moment
  damage: Damage | None = None
  ending: Literal["lost", "stopped", "done"] = "lost"
  restart: Literal["same bits", "fewer devices", "refused"] = "same bits"

  @property
  def name(self) -> str:
    """As the table calls it."""
    words = f"process {self.process} {self.deed}, {self.moment}"
    words += f"; newest checkpoint {self.damage}" if self.damage else ""
    return words + ("; 4 devices go on" if self.restart == "fewer devices" else "")


FAULTS = (
  Fault("killed", 3, "before meeting"),
  Fault("killed", 0, "before the first step"),
  Fault("killed", 2, "before the first step"),
  Fault("killed", 0, "in step 6"),
  Fault("killed", 1, "in step 6"),
  Fault("killed", 2, "in step 6"),
  Fault("killed", 3, "in step 6"),
  Fault("killed", 1, "while step 4 is written"),
  Fault("killed", 0, "while step 8 is written"),
  Fault("killed", 2, "while step 8 is written"),
  Fault("killed", 3, "when step 8 is written"),
  Fault("killed", 1, "while restoring"),
  Fault("killed", 2, "while evaluating"),
  Fault("killed", 3, "after the last step"),
  Fault("stopped", 3, "before meeting"),
  Fault("stopped", 0, "in step 6"),
  Fault("stopped", 2, "in step 6"),
  Fault("stopped", 1, "while step 8 is written"),
  Fault("stopped", 3, "after the last step"),
  Fault("paused", 2, "in step 6", ending="done"),
  Fault("told to stop", 1, "in step 6", ending="stopped"),
  Fault("late", 0, "before meeting", ending="done"),
  Fault("late", 3, "before meeting", ending="done"),
  Fault("absent", 3, "before meeting"),
  Fault("failing", 1, "in step 6"),
  Fault("without data", 2, "in step 6"),
  Fault("disk full", 1, "while step 4 is written"),
  Fault("slow disk", 1, "while step 8 is written", ending="done"),
  Fault("killed", 2, "when step 8 is written", "deleted"),
  Fault("killed", 2, "when step 8 is written", "truncated"),
  Fault("killed", 2, "when step 8 is written", "byte flipped"),
  Fault("killed", 2, "when step 8 is written", "description lost"),
  Fault("killed", 2, "when step 8 is written", "manifest lost"),
  Fault("killed", 2, "when step 8 is written", "half-written beside"),
  Fault("killed", 2, "when step 8 is written", "all truncated", restart="refused"),
  Fault("killed", 2, "in step 6", restart="fewer devices"),
)
