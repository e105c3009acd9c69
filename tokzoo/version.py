"""The version of the package, and the commit where it runs from a checkout."""

import subprocess
from pathlib import Path

__version__ = "0.1.0"


def code_version() -> str:
  """Version of tokzoo, with the commit where it runs from a checkout: "0.1.0+94622ce"."""
  root = Path(__file__).parent.parent
  if not (root / ".git").exists():
    return __version__
  try:
    told = subprocess.run(
      ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"],
      capture_output=True,
      text=True,
      timeout=10,
      check=True,
    )
  except (OSError, subprocess.SubprocessError):
    return __version__
  return f"{__version__}+{told.stdout.strip()}"
