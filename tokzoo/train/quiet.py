"""Keeps Orbax and TensorStore from telling a second time, with tracebacks, what they raise.

A failed save or read comes back as an exception, from which checkpoint.py makes one
sentence. Their threads also log it, and leave futures behind that Python then complains
about. Only such records are dropped; everything else is shown as before.

In a run of several processes Orbax raises what failed in one of them only after the others
have come to a barrier, which they never do. There its log is the only one to tell in time.
"""

import functools
import logging
import sys
import traceback

_CLOSED = "Event loop is closed"
_MARKS = ("/orbax/", "tensorstore_spec")
"""In what asyncio tells of a future that Orbax or TensorStore left behind."""


class OrbaxLog(logging.Filter):
  """Drops what Orbax logs, and keeps what made a save in the background fail."""

  def __init__(self) -> None:
    super().__init__()
    self._failure: BaseException | None = None

  def filter(self, record: logging.LogRecord) -> bool:
    """False for a record of Orbax."""
    if "orbax" not in record.pathname:
      return True
    if record.levelno >= logging.ERROR and record.exc_info:
      self._failure = record.exc_info[1]
    return False

  def take_failure(self) -> BaseException | None:
    """The last failure, once; None if there was none."""
    failure, self._failure = self._failure, None
    return failure


@functools.cache
def quieten() -> OrbaxLog:
  """Installs the filters, once in a process; returns the one that hears Orbax."""
  heard = OrbaxLog()
  logging.getLogger("absl").addFilter(heard)
  logging.getLogger("asyncio").addFilter(lambda record: not _is_theirs(record))
  shown = sys.unraisablehook

  def hook(unraisable: "sys.UnraisableHookArgs") -> None:
    # TensorStore answers a read whose event loop has gone with the first failed one.
    if unraisable.object is not None or str(unraisable.exc_value) != _CLOSED:
      shown(unraisable)

  sys.unraisablehook = hook
  return heard


def _is_theirs(record: logging.LogRecord) -> bool:
  """Whether a record tells of such a future: its message may be cut short, its exception
  is whole."""
  text = record.getMessage()
  if record.exc_info:
    text += "".join(traceback.format_exception(*record.exc_info))
  return any(mark in text for mark in _MARKS)
