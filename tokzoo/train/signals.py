"""SIGTERM and Ctrl-C: finish the step, save, leave. A second Ctrl-C leaves at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class StopRequest:
  """Whether, and by which signal, the run was asked to stop: `name` is None or "SIGTERM"."""

  def __init__(self) -> None:
    self.name: str | None = None

  def __call__(self, number: int, frame: object) -> None:
    """The signal handler. It only takes a note: the loop reads it between steps."""
    if number == signal.SIGINT and self.name is not None:
      raise KeyboardInterrupt
    self.name = signal.Signals(number).name


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
  """Listens to SIGTERM and SIGINT while the context lasts.

  Outside of the main thread Python hands out no signals: the request then never comes.
  """
  request = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield request
    return
  watched = (signal.SIGTERM, signal.SIGINT)
  before = {number: signal.signal(number, request) for number in watched}
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
