"""Where tokzoo's own files and caches lie on this machine."""

import os
from pathlib import Path

from tokzoo.errors import TokzooError

_PACKAGE = Path(__file__).resolve().parent


def bundled(name: str) -> Path:
  """The folder `experiments`, `checkpoints` or `tpu`: at the top of a checkout, or in a wheel.

  Raises:
    TokzooError: the installation lacks the folder.
  """
  for folder in (_PACKAGE.parent / name, _PACKAGE / "_bundled" / name):
    if folder.is_dir():
      return folder
  raise TokzooError(
    f"this installation of tokzoo lacks its folder {name!r}: reinstall it, or run from a checkout."
  )


def cache_dir() -> Path:
  """The folder for converted weights and compiled programs ($TOKZOO_CACHE, ~/.cache/tokzoo)."""
  home = os.environ.get("TOKZOO_CACHE")
  if home:
    return Path(home).expanduser()
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return Path(base).expanduser() / "tokzoo"
