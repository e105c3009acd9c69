"""Errors that a user can mend, and how they are worded.

Every mistake that comes from outside (a file, an option, an array, a name) is raised as a
`TokzooError` whose text is one sentence: what came, what was expected, what to do. The
command line prints that sentence and exits with code 2; nothing else is shown without a
traceback, so a bug in tokzoo itself still looks like one.
"""

import difflib
from collections.abc import Iterable


class TokzooError(Exception):
  """A mistake that the user can mend. The text says what came, what was expected, what to do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> TokzooError:
  """The error for a name that is not in a table, with the nearest known name.

  Args:
    kind: what the name stands for, as a noun: "recipe", "checkpoint".
    name: what was asked for.
    known: the names there are.
  """
  known = sorted(known)
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
  hint = f"did you mean {near[0]!r}? " if near else ""
  listed = ", ".join(known) if known else "none"
  return TokzooError(f"unknown {kind} {name!r}: {hint}known: {listed}.")


def missing_extra(package: str, extra: str, purpose: str) -> TokzooError:
  """The error for an optional dependency that is not installed."""
  return TokzooError(
    f"{purpose} needs the package {package!r}, which is not installed: "
    f'run  pip install "tokzoo[{extra}]".'
  )
