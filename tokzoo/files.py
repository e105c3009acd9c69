"""Files: written whole or not at all, named by their hash, and safetensors read safely.

Paths may be remote (`tokzoo/remote.py`): gs://bucket/model.safetensors.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tokzoo.errors import TokzooError
from tokzoo.remote import is_remote, located, on_disk, put


def write_atomic(path: str | Path, data: bytes) -> None:
  """Writes `data` beside `path`, flushes it to disk, then renames it over `path`.

  A crash or a full disk leaves the old file, or none, never a half-written one.

  Raises:
    TokzooError: the folder cannot be made or written, or the disk is full.
  """
  if is_remote(path):
    put(path, data)  # an object is whole or not there
    return
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


def digest(header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
  """SHA-256 over a file's header (but its entry "digest") and its arrays with their layout.

  The same in every version of a format, so that it can be checked before anything is read.

  Returns:
    64 hexadecimal digits.
  """
  told = {key: value for key, value in header.items() if key != "digest"}
  state = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
  for name in sorted(arrays):
    array = np.asarray(arrays[name])
    state.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
    state.update(array.tobytes())
  return state.hexdigest()


def to_safetensors(
  arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> bytes:
  """Arrays and metadata as the bytes of a safetensors file: the same ones every time.

  The library writes metadata in the order of a randomly seeded table; sorted, equal content
  is an equal file, whose hash can be compared.
  """
  plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
  data = save(plain, dict(metadata))
  size = int.from_bytes(data[:8], "little")
  header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True).encode()
  # The arrays begin at a multiple of 8 bytes.
  header += b" " * (-len(header) % 8)
  return len(header).to_bytes(8, "little") + header + data[8 + size :]


def read_safetensors(
  path: str | Path, kind: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The arrays and the metadata of a safetensors file.

  Args:
    path: the file.
    kind: what it should be, as a noun for the error: "weight file", "token file".

  Raises:
    TokzooError: no such file, or not a whole safetensors file (a pickle is named as such).
  """
  if not located(path).is_file():
    raise TokzooError(f"no {kind} at {path}: check the path.")
  with on_disk(path) as local, _opened(local, path, kind) as file:
    arrays = {name: file.get_tensor(name) for name in file.keys()}
    return arrays, file.metadata() or {}


def read_safetensors_metadata(path: str | Path, kind: str) -> dict[str, str]:
  """As `read_safetensors`, the metadata alone: the arrays are not read."""
  if not located(path).is_file():
    raise TokzooError(f"no {kind} at {path}: check the path.")
  with on_disk(path) as local, _opened(local, path, kind) as file:
    return file.metadata() or {}


@contextlib.contextmanager
def _opened(local: Path, path: str | Path, kind: str) -> Iterator[Any]:
  """An open file of this machine; `path` is what the user called it."""
  try:
    with safe_open(local, "np") as file:
      yield file
  except (SafetensorError, OSError, ValueError, TypeError) as error:
    if _is_pickle(local):
      raise TokzooError(
        f"{path} is a pickle, not a safetensors {kind}: it is not opened. If it is a torch "
        "file that you trust, give it its ending (.pt) and install tokzoo[torch]."
      ) from error
    raise TokzooError(
      f"{path} is not a whole {kind} ({error}): it was cut short, changed, or is something "
      "else; fetch or write it again."
    ) from error


def _is_pickle(path: Path) -> bool:
  """Whether a file begins like a torch archive (a zip) or a bare pickle."""
  with open(path, "rb") as file:
    start = file.read(4)
  return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] <= b"\x05")
