"""Fetching published files, from a hub repository or a plain address, checked by hash."""

import functools
import hashlib
import os
import shutil
import urllib.parse
import urllib.request
from pathlib import Path

from rich.progress import wrap_file

from tokzoo.errors import TokzooError, missing_extra
from tokzoo.files import sha256_of
from tokzoo.hub.catalog import Entry
from tokzoo.places import cache_dir


def is_at_hand(entry: Entry) -> bool:
  """Whether the weights of a catalog's entry are on this machine: packaged, or fetched before."""
  if entry.packaged:
    return True
  if entry.url is not None:
    return _kept_at(entry.url).is_file()
  try:
    from huggingface_hub import try_to_load_from_cache
  except ImportError:
    return False
  assert entry.hub is not None and entry.path is not None
  found = try_to_load_from_cache(entry.hub, entry.path, revision=entry.revision)
  return isinstance(found, str)


def download(
  repo: str, path: str, revision: str | None = None, sha256: str | None = None
) -> Path:
  """The local path of a file of a hub repository, from the cache or freshly fetched.

  The cache and `HF_HUB_OFFLINE`, `HF_HOME`, `HF_ENDPOINT` are huggingface_hub's own.

  Args:
    repo: "owner/name".
    path: the file in it.
    revision: branch, tag or commit; a commit pins the file for good.
    sha256: what the file must hash to, where it has been recorded.

  Raises:
    TokzooError: huggingface_hub is not installed, the file is not to be had (no network,
      no such repository, access not granted), or its hash differs.
  """
  try:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
      EntryNotFoundError,
      GatedRepoError,
      LocalEntryNotFoundError,
      RepositoryNotFoundError,
      RevisionNotFoundError,
    )
  except ImportError as error:
    raise missing_extra("huggingface-hub", "hub", f"fetching {repo}") from error
  fetch = functools.partial(hf_hub_download, repo, path, revision=revision)
  try:
    local = Path(fetch())
  except GatedRepoError as error:
    raise TokzooError(
      f"{repo} asks you to accept its terms first: open its page on the hub, accept, and run "
      "hf auth login."
    ) from error
  except RevisionNotFoundError as error:
    raise TokzooError(
      f"{repo} has no revision {revision!r}: choose another."
    ) from error
  except RepositoryNotFoundError as error:
    raise TokzooError(
      f"there is no hub repository {repo!r} that you may read: check the name, or run "
      "hf auth login."
    ) from error
  except LocalEntryNotFoundError as error:
    raise TokzooError(
      f"{repo}/{path} is not in the cache and the hub cannot be reached: connect to the "
      "network (and unset HF_HUB_OFFLINE), or fetch the file elsewhere and pass its path with "
      "its preset."
    ) from error
  except EntryNotFoundError as error:
    raise TokzooError(f"{repo} holds no file {path!r}: check the path.") from error
  except OSError as error:
    raise TokzooError(
      f"{repo}/{path} could not be fetched ({str(error).splitlines()[0]}): check the network "
      "and the disk, then try again."
    ) from error
  _check_hash(local, sha256)
  return local


def download_url(url: str, sha256: str | None = None) -> Path:
  """The local path of a file that no hub holds, from tokzoo's cache or freshly fetched.

  `HF_HUB_OFFLINE` is honoured here, too.

  Args:
    url: of the file itself.
    sha256: what the file must hash to, where it has been recorded.

  Raises:
    TokzooError: the file is not to be had, a page comes in its place, the disk is full, or
      its hash differs.
  """
  local = _kept_at(url)
  name = local.name
  if not local.is_file():
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
      raise TokzooError(
        f"{name} is not in the cache and HF_HUB_OFFLINE is set: unset it, or fetch {url} "
        "elsewhere and pass the file's path with its preset."
      )
    try:
      _fetch(url, local)
    except OSError as error:
      raise TokzooError(
        f"{url} could not be fetched ({str(error).splitlines()[0]}): check the network and the "
        "disk, then try again, or fetch it elsewhere and pass its path with its preset."
      ) from error
  _check_hash(local, sha256)
  return local


def _kept_at(url: str) -> Path:
  """Where a file of that address is kept in the cache: under its name, or the one after a `#`
  where the address has none."""
  parts = urllib.parse.urlparse(url)
  name = Path(parts.fragment or parts.path).name
  key = hashlib.sha256(url.encode()).hexdigest()[:16]
  return cache_dir() / "downloads" / key / name


def _fetch(url: str, local: Path) -> None:
  """Writes the file whole or not at all."""
  local.parent.mkdir(parents=True, exist_ok=True)
  part = local.with_name(f"{local.name}.{os.getpid()}.part")
  try:
    with urllib.request.urlopen(url, timeout=60) as response, open(part, "wb") as file:
      if response.headers.get_content_type() == "text/html":
        raise TokzooError(
          f"{url} gives a page, not a file: its authors may have moved it; fetch it by hand "
          "and pass its path with its preset."
        )
      total = int(response.headers.get("Content-Length") or 0)
      with wrap_file(response, total, description=local.name, transient=True) as source:
        shutil.copyfileobj(source, file, 2**20)
      if total and file.tell() != total:
        raise OSError(f"{file.tell()} of {total} bytes came")
    os.replace(part, local)
  finally:
    part.unlink(missing_ok=True)


def _check_hash(local: Path, sha256: str | None) -> None:
  if sha256 is not None and sha256_of(local) != sha256:
    raise TokzooError(
      f"{local} has SHA-256 {sha256_of(local)[:12]}…, expected {sha256[:12]}…: the file was "
      "changed or cut short; delete it and fetch it again."
    )
