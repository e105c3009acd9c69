"""The catalog: every checkpoint that `tokzoo.load(NAME)` knows, read from catalog.toml."""

import dataclasses
import functools
import tomllib
from typing import Any

from tokzoo.errors import TokzooError, unknown
from tokzoo.places import bundled


@dataclasses.dataclass(frozen=True)
class Entry:
  """One checkpoint of the catalog (the fields are explained in catalog.toml)."""

  name: str
  system: str
  part: str
  code_licence: str
  weights_licence: str
  file: str | None = None
  hub: str | None = None
  path: str | None = None
  url: str | None = None
  revision: str | None = None
  under: str | None = None
  preset: str | None = None
  averaged: bool = True
  sha256: str | None = None
  tokenizer: str | None = None
  tile: bool = False
  recipe: str | None = None
  sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
  metrics: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def packaged(self) -> bool:
    """Whether the weights come with the installation."""
    return self.file is not None


@functools.cache
def catalog() -> dict[str, Entry]:
  """All entries by name.

  Raises:
    TokzooError: the catalog is not sound (a field that is not known, a name twice).
  """
  path = bundled("checkpoints") / "catalog.toml"
  entries: dict[str, Entry] = {}
  for fields in tomllib.loads(path.read_text())["checkpoint"]:
    try:
      entry = Entry(**fields)
    except TypeError as error:
      raise TokzooError(
        f"{path} has an entry that is not sound ({error}): {fields}."
      ) from error
    if entry.name in entries:
      raise TokzooError(f"{path} names {entry.name!r} twice: names are unique.")
    if sum(place is not None for place in (entry.file, entry.hub, entry.url)) != 1:
      raise TokzooError(f"{path}: {entry.name!r} needs one of `file`, `hub` and `url`.")
    entries[entry.name] = entry
  return entries


def find_entry(name: str) -> Entry:
  """The entry of that name.

  Raises:
    TokzooError: no such name; the nearest is suggested.
  """
  if name not in catalog():
    raise unknown("checkpoint", name, catalog())
  return catalog()[name]
