"""Paths in object stores: gs://, s3:// and az://, beside those of this machine.

An object is put whole or not at all, so nothing is written beside and renamed there. Readers
that need a file of this machine (ArrayRecord, safetensors) get a copy: of large files whose
SHA-256 is known one that is kept in tokzoo's cache under that name, of others one that lasts
as long as it is read.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import fsspec
from etils import epath

from tokzoo.errors import TokzooError, missing_extra, unknown
from tokzoo.places import cache_dir

Located: TypeAlias = Path | epath.Path
"""What `located` returns: both have exists, is_dir, is_file, iterdir, glob, read_bytes,
read_text, parent, name and `/`."""

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
"""Scheme -> the package that fsspec reads it with."""


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether a path has a scheme: `gs://bucket/folder`."""
  return "://" in os.fspath(path)


def located(path: str | os.PathLike[str]) -> Located:
  """A path of this machine as `pathlib.Path`, with ~ expanded, any other as `epath.Path`.

  Raises:
    TokzooError: a scheme that is not known, or whose package is not installed.
  """
  text = os.fspath(path)
  if not is_remote(text):
    return Path(text).expanduser()
  scheme = text.partition("://")[0]
  if scheme not in _PACKAGES:
    raise unknown("kind of remote path", f"{scheme}://", [f"{s}://" for s in _PACKAGES])
  try:
    fsspec.get_filesystem_class(scheme)
  except ImportError as error:
    raise missing_extra(_PACKAGES[scheme], "remote", f"reading {text}") from error
  return epath.Path(text)


def size_of(path: Located) -> int | None:
  """The size of a file in bytes, None if there is no such file."""
  try:
    return path.stat().st_size if isinstance(path, Path) else path.stat().length
  except (FileNotFoundError, NotADirectoryError):
    return None


def put(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes an object.

  Raises:
    TokzooError: it cannot be written.
  """
  place = located(path)
  try:
    place.write_bytes(data)
  except Exception as error:  # every store has errors of its own
    raise _unwritable(path, error) from error


def put_file(file: Path, path: str | os.PathLike[str]) -> None:
  """Copies a file of this machine to an object.

  Raises:
    TokzooError: it cannot be written.
  """
  located(path)  # a scheme without its package is a sentence
  try:
    store, place = fsspec.core.url_to_fs(os.fspath(path))
    store.put_file(str(file), place)
  except Exception as error:  # every store has errors of its own
    raise _unwritable(path, error) from error


@contextlib.contextmanager
def on_disk(path: str | os.PathLike[str]) -> Iterator[Path]:
  """A file as one of this machine, while the context lasts.

  Raises:
    FileNotFoundError: there is no such object.
    TokzooError: it cannot be read.
  """
  if not is_remote(path):
    yield Path(path)
    return
  with tempfile.TemporaryDirectory(prefix="tokzoo-") as folder:
    copy = Path(folder) / os.fspath(path).rsplit("/", 1)[-1]
    _get(path, copy)
    yield copy


def kept_copy(path: str | os.PathLike[str], sha256: str) -> Path:
  """A file as one of this machine: of a remote one, a copy in the cache that is made once.

  Args:
    path: the file.
    sha256: of its content, 64 hexadecimal digits; the copy is compared with it.

  Raises:
    FileNotFoundError: there is no such object.
    TokzooError: it cannot be read, is not what its digest says, or the cache is full.
  """
  if not is_remote(path):
    return Path(path)
  copy = cache_dir() / "remote" / f"{sha256}{Path(os.fspath(path)).suffix}"
  if copy.is_file():
    return copy
  try:
    copy.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=copy.parent, prefix="."))
  except OSError as error:
    raise TokzooError(
      f"cannot keep a copy of {path} in {copy.parent}: {error.strerror}; set $TOKZOO_CACHE "
      "to a folder that you may write to."
    ) from error
  try:
    _get(path, making / "copy")
    with open(making / "copy", "rb") as file:
      if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
        raise TokzooError(
          f"{path} is not what its manifest says (its SHA-256 differs): copy or make it again."
        )
    os.replace(making / "copy", copy)
  finally:
    shutil.rmtree(making, ignore_errors=True)
  return copy


def files_under(root: epath.Path) -> list[str]:
  """The paths of all objects below a remote folder, relative to it, sorted."""
  store, place = fsspec.core.url_to_fs(os.fspath(root))
  place = place.rstrip("/") + "/"
  return sorted(found.removeprefix(place) for found in store.find(place))


def _get(path: str | os.PathLike[str], copy: Path) -> None:
  located(path)  # a scheme without its package is a sentence
  try:
    store, place = fsspec.core.url_to_fs(os.fspath(path))
    store.get_file(place, str(copy))
  except FileNotFoundError:
    raise
  except Exception as error:  # every store has errors of its own
    raise TokzooError(
      f"cannot read {path} ({error}): check the path, and that you may read it."
    ) from error


def _unwritable(path: str | os.PathLike[str], error: Exception) -> TokzooError:
  return TokzooError(
    f"cannot write {path} ({error}): check the path, and that you may write there."
  )
