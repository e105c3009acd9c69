"""Fetching published files from a hub repository, checked by hash."""

import functools
from pathlib import Path

from tokzoo.errors import TokzooError, missing_extra
from tokzoo.files import sha256_of


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
  if sha256 is not None and sha256_of(local) != sha256:
    raise TokzooError(
      f"{local} has SHA-256 {sha256_of(local)[:12]}…, expected {sha256[:12]}…: the file was "
      "changed or cut short; delete it and fetch it again."
    )
  return local
