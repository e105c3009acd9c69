"""Any source as ArrayRecord files with a manifest (`sources/arrayrecord.py` has the format)."""

import collections
import dataclasses
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

from tokzoo.data.config import DataConfig
from tokzoo.data.sources import Source, guess_source, open_source
from tokzoo.data.sources.arrayrecord import FORMAT, MANIFEST, VERSION, pack
from tokzoo.data.sources.base import decoded
from tokzoo.data.sources.speech_prompts import fetch_package, kept_at
from tokzoo.errors import TokzooError
from tokzoo.files import sha256_of, write_atomic
from tokzoo.remote import is_remote

# One record to a chunk: a random read decompresses and checks nothing but what it wants.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_RECORDS_PER_FILE = 16_384


@dataclasses.dataclass(frozen=True)
class PrepareReport:
  """What `prepare` wrote: the folder and its manifest."""

  folder: str
  manifest: dict[str, Any]

  def rows(self) -> list[tuple[str, str]]:
    """Name and value of each line of a table."""
    rows = [("folder", self.folder)]
    rows += [
      (name.replace("_", " "), str(self.manifest[name]))
      for name in ("source", "source_version", "licence")
    ]
    for split, part in self.manifest["splits"].items():
      size_mb = sum(file["bytes"] for file in part["files"]) / 1e6
      rows.append(
        (
          split,
          f"{part['records']:,} records in {len(part['class_counts']) or 'no'} classes, "
          f"{len(part['files'])} files, {size_mb:.1f} MB",
        )
      )
    return rows

  def as_dict(self) -> dict[str, Any]:
    """The fields as JSON can hold them."""
    return dataclasses.asdict(self)


def prepare(
  name: str,
  out: str | Path | None = None,
  splits: Sequence[str] | None = None,
  skip_bad: bool = False,
  progress: Callable[[int, int], None] | None = None,
) -> PrepareReport:
  """Copies a source into a folder of ArrayRecord files, whole or not at all.

  Files are copied as they are, without loss, after decoding each of them once. The
  files grow in a hidden folder beside `out`, which is renamed when it is complete: a run that
  was killed leaves `.NAME.*.incomplete`, which nothing reads and anybody may delete.

  Args:
    name: a source, or a path alone (see `guess_source`). `speech-prompts` is downloaded with
      apt.
    out: the folder to make; it must not exist, or be empty. None: for `speech-prompts` alone,
      where recipes look for them.
    splits: the parts to copy; None: all.
    skip_bad: leave out records that cannot be decoded, with a warning that names them.
    progress: called with the records done and those of all splits.

  Returns:
    The report, with the manifest.

  Raises:
    TokzooError: the source cannot be opened, a record cannot be decoded, `out` holds files
      or cannot be written.
  """
  if name.partition(":")[0] == "speech-prompts":
    out = kept_at() if out is None else out
  if name == "speech-prompts":
    with tempfile.TemporaryDirectory() as folder:
      package = fetch_package(Path(folder))
      return prepare(f"{name}:{package}", out, splits, skip_bad, progress)
  if out is None:
    raise TokzooError(f"{name} has no place of its own: name a folder with --out.")
  name = guess_source(name)
  if is_remote(out):
    raise TokzooError(
      f"{out} is remote, but data is prepared on this machine: name a folder here, and copy it "
      "there when it is whole."
    )
  out = Path(out).expanduser()
  if out.is_file() or (out.is_dir() and any(out.iterdir())):
    raise TokzooError(f"{out} exists already: name a new folder, or remove it.")
  if splits is None:
    splits = _all_splits(name)
  sources = {
    split: open_source(DataConfig(source=name, split=split, skip_bad=skip_bad))
    for split in splits
  }
  total = sum(map(len, sources.values()))
  done = 0

  def step() -> None:
    nonlocal done
    done += 1
    if progress:
      progress(done, total)

  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(
      tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".incomplete")
    )
  except OSError as error:
    raise TokzooError(
      f"cannot write {out}: {error.strerror}; name a folder that you may write to."
    ) from error
  try:
    parts = {
      split: _write_split(source, split, folder, step)
      for split, source in sources.items()
    }
    manifest = _manifest(sources, parts)
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=2).encode())
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)  # mkdtemp makes private folders
    folder.rename(out)
  except (OSError, RuntimeError) as error:  # of the system, of the ArrayRecord writer
    raise TokzooError(
      f"cannot write {out}: {error}; free some space or name another folder."
    ) from error
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  return PrepareReport(str(out), manifest)


def _all_splits(name: str) -> tuple[str, ...]:
  return open_source(DataConfig(source=name)).info.splits


def _write_split(
  source: Source, split: str, folder: Path, step: Callable[[], None]
) -> dict[str, Any]:
  """Writes the files of one split; returns its part of the manifest."""
  num_files = -(-len(source) // _RECORDS_PER_FILE)
  counts: collections.Counter[str] = collections.Counter()
  files = []
  for number in range(num_files):
    indices = range(len(source))[number * _RECORDS_PER_FILE :][:_RECORDS_PER_FILE]
    path = folder / f"{split}-{number:05d}-of-{num_files:05d}.arrayrecord"
    writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    try:
      for index in indices:
        item = source.encoded(index)
        decoded(item)  # a bad picture or sound must not get in
        writer.write(pack(item))
        if item.label is not None:
          counts[source.info.classes[item.label]] += 1
        step()
    finally:
      writer.close()
    with open(path, "rb") as file:
      os.fsync(file.fileno())
    files.append(
      {
        "name": path.name,
        "records": len(indices),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
      }
    )
  return {"records": len(source), "class_counts": dict(counts), "files": files}


def _manifest(
  sources: dict[str, Source], parts: dict[str, dict[str, Any]]
) -> dict[str, Any]:
  """What the folder is, where it came from and what it holds."""
  # Where classes are numbers, a small split may lack the last ones.
  info = max((source.info for source in sources.values()), key=lambda i: len(i.classes))
  return {
    "format": FORMAT,
    "format_version": VERSION,
    "source": info.name,
    "source_version": info.version,
    "description": info.description,
    "licence": info.licence,
    "made_by": f"tokzoo {importlib.metadata.version('tokzoo')}",
    "classes": list(info.classes),
    "media": info.media,
    "splits": parts,
  }
