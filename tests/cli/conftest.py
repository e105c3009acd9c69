"""The command line in this process, with what it changes of jax put back afterwards."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import pytest

from tokzoo.cli.main import main

_SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


class Outcome(NamedTuple):
  """What a command left: its exit code, and what it printed where."""

  code: int
  out: str
  err: str


@pytest.fixture
def command(capfd) -> Callable[..., Outcome]:
  """Runs `tokzoo WORDS...` as its script would."""
  before = {name: getattr(jax.config, name) for name in _SETTINGS}

  def run(*words: object) -> Outcome:
    capfd.readouterr()
    try:
      code = main([str(word) for word in words])
    except SystemExit as stop:  # --help
      code = stop.code
    return Outcome(code, *capfd.readouterr())

  yield run
  for name, value in before.items():
    jax.config.update(name, value)
