"""Keeps Orbax and TensorStore from telling a second time, with tracebacks, what they raise.

A failed save or read comes back as an exception, from which checkpoint.py makes one
sentence. Their threads also log it, and leave futures behind that Python then complains
about. Only such records are dropped; everything else is shown as before.
"""

import functools
import logging
import sys
import traceback

_CLOSED = "Event loop is closed"
_MARKS = ("/orbax/", "tensorstore_spec")
"""In what asyncio tells of a future that Orbax or TensorStore left behind."""


@functools.cache
def quieten() -> None:
  """Installs the filters, once in a process."""
  logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
  logging.getLogger("asyncio").addFilter(lambda record: not _is_theirs(record))
  shown = sys.unraisablehook

  def hook(unraisable: "sys.UnraisableHookArgs") -> None:
    # TensorStore answers a read whose event loop has gone with the first failed one.
    if unraisable.object is not None or str(unraisable.exc_value) != _CLOSED:
      shown(unraisable)

  sys.unraisablehook = hook


def _is_theirs(record: logging.LogRecord) -> bool:
  """Whether a record tells of such a future: its message may be cut short, its exception
  is whole."""
  text = record.getMessage()
  if record.exc_info:
    text += "".join(traceback.format_exception(*record.exc_info))
  return any(mark in text for mark in _MARKS)
