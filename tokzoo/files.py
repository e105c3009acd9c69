"""Writing a file whole or not at all, and naming what it holds by its hash."""

import hashlib
import os
import tempfile
from pathlib import Path

from tokzoo.errors import TokzooError


def write_atomic(path: str | Path, data: bytes) -> None:
  """Writes `data` beside `path`, flushes it to disk, then renames it over `path`.

  A crash or a full disk leaves the old file, or none, never a half-written one.

  Raises:
    TokzooError: the folder cannot be made or written, or the disk is full.
  """
  path = Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  except OSError as error:
    raise TokzooError(
      f"cannot write {path}: {error.strerror}; name a folder that you may write to."
    ) from error
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    # mkstemp makes private files; a result should be as readable as its neighbours.
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)
    os.replace(temporary, path)
  except OSError as error:
    Path(temporary).unlink(missing_ok=True)
    raise TokzooError(
      f"cannot write {path}: {error.strerror}; free some space or name another folder."
    ) from error


def sha256_of(path: str | Path) -> str:
  """The SHA-256 of a file, as 64 hexadecimal digits."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
