"""Writing token records: in shards, by several hosts, killed and continued.

  encoding.json                       the header: what is encoded, by which tokenizer; there
                                      from the first shard on, until the manifest is
  tokens-00003-of-00013.arrayrecord   views 3 n .. 4 n - 1 of one pass over the data
  tokens-00003-of-00013.json          its receipt: records, bytes, SHA-256, layout
  manifest.json                       header, layout and all receipts; written last

Which views a shard holds follows from its number alone, so any number of hosts makes the same
files. Shard i is made by host i mod (number of hosts), under a hidden name, and is renamed
when it is flushed; then its receipt is written. A shard without a receipt is made again, one
with a receipt never: a run that was killed, continued by any number of hosts, has neither
holes nor duplicates. Whoever sees the last receipt writes the manifest; nobody has to wait
for the others while encoding. Remote folders get whole objects instead of renamed files.
"""

import contextlib
import dataclasses
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import save as to_blob

from tokzoo.data.config import DataConfig
from tokzoo.data.sources.tokens import FORMAT, MANIFEST, VERSION, read_manifest
from tokzoo.errors import TokzooError
from tokzoo.files import sha256_of, write_atomic
from tokzoo.remote import Located, is_remote, located, put_file, size_of
from tokzoo.tokens import Origin, Tokens

HEADER = "encoding.json"
RECORDS_PER_SHARD = 16_384
_IDENTITY = ("origin", "data", "codebooks", "flat", "records", "records_per_shard")
"""What must agree for an encoding to be continued."""

Rows = Mapping[str, np.ndarray]
"""Arrays by name, one record a row: `packed`, `ids` or `values`, `label`, ..."""


@dataclasses.dataclass(frozen=True)
class Header:
  """What is encoded.

  origin:             which tokenizer makes the tokens
  tokenizer:          its name, for people
  data:               the pictures, their crops and views
  classes:            class names in the order of the labels; empty: no labels
  records:            views in all
  records_per_shard:  the last shard may have fewer
  made_by:            the version of tokzoo
  codebooks:          of a codec of sound, how many are kept; None: all
  is_flat:            its frames of codes are one row of ids
  """

  origin: Origin
  tokenizer: str
  data: DataConfig
  classes: tuple[str, ...]
  records: int
  records_per_shard: int
  made_by: str
  codebooks: int | None = None
  is_flat: bool = False

  @property
  def num_shards(self) -> int:
    return -(-self.records // self.records_per_shard)

  def as_json(self) -> dict[str, Any]:
    """The fields as JSON holds them."""
    return {
      "format": FORMAT,
      "format_version": VERSION,
      "origin": {"system": self.origin.system, "weights": self.origin.weights},
      "tokenizer": self.tokenizer,
      "data": what_was_encoded(self.data),
      "classes": list(self.classes),
      "records": self.records,
      "records_per_shard": self.records_per_shard,
      "made_by": self.made_by,
      **({} if self.codebooks is None else {"codebooks": self.codebooks}),
      **({"flat": True} if self.is_flat else {}),
    }


class TokenShards:
  """The shards of one data set, begun or continued.

  shards = TokenShards(folder, header)
  for shard in shards.missing(process, num_processes):
    shards.write(shard, rows_and_tokens_of(shards.views(shard)))
  shards.finish()

  Args:
    folder: of this machine, of storage that all hosts share, or remote.
    header: what is encoded.

  Raises:
    TokzooError: the folder holds tokens of another tokenizer or of other data, other files, or
      cannot be written.
  """

  def __init__(self, folder: str | os.PathLike[str], header: Header):
    self.folder = located(folder)
    self.header = header
    self._is_begun()

  @property
  def is_whole(self) -> bool:
    """Whether the manifest is there."""
    return (self.folder / MANIFEST).exists()

  def views(self, shard: int) -> range:
    """The views that a shard holds."""
    each = self.header.records_per_shard
    return range(self.header.records)[shard * each : (shard + 1) * each]

  def missing(self, process: int = 0, num_processes: int = 1) -> list[int]:
    """The shards that a host has to make: of its own, those without a receipt."""
    if self.is_whole:
      return []
    mine = range(process, self.header.num_shards, num_processes)
    return [shard for shard in mine if self._receipt(shard) is None]

  def write(self, shard: int, batches: Iterable[tuple[Rows, Tokens]]) -> None:
    """Makes one shard, whole or not at all.

    Args:
      shard: its number.
      batches: of its views, in order; the tokens tell the layout.

    Raises:
      TokzooError: it cannot be written, or holds fewer or more views than it must.
    """
    name, count = self._name(shard), 0
    layout: dict[str, Any] = {}
    with self._making(f"{name}.arrayrecord") as file:
      writer = ArrayRecordWriter(str(file), "group_size:1")
      try:
        for rows, tokens in batches:
          layout = layout_of(rows, tokens)
          number = len(next(iter(rows.values())))
          for index in range(number):
            record = {key: np.array(rows[key][index], order="C") for key in rows}
            writer.write(to_blob(record))
          count += number
      finally:
        writer.close()
      wanted = len(self.views(shard))
      if count != wanted:
        raise TokzooError(
          f"shard {shard} of {self.folder} got {count} records instead of {wanted}: the "
          "data changed while it was encoded; encode it again."
        )
      receipt = {
        "name": f"{name}.arrayrecord",
        "records": count,
        "bytes": file.stat().st_size,
        "sha256": sha256_of(file),
        "layout": layout,
      }
    if not self._is_begun():
      _write_json(self._path(HEADER), self.header.as_json())
    _write_json(self._path(f"{name}.json"), receipt)

  def finish(self) -> bool:
    """Writes the manifest if every shard has its receipt; whether it is there now.

    Raises:
      TokzooError: it cannot be written, or the shards differ in layout.
    """
    if self.is_whole:
      return True
    if self.num_made() < self.header.num_shards:
      return False
    receipts = [self._receipt(shard) for shard in range(self.header.num_shards)]
    files = [receipt for receipt in receipts if receipt is not None]
    if len(files) < len(receipts):
      return False
    layouts = [file.pop("layout") for file in files]
    if any(layout != layouts[0] for layout in layouts):
      raise TokzooError(
        f"the shards of {self.folder} differ in layout ({layouts[0]} and others): remove the "
        "folder and encode the data again."
      )
    manifest = {**self.header.as_json(), "layout": layouts[0], "files": files}
    _write_json(self._path(MANIFEST), manifest)
    self._tidy()
    return True

  def wait(self, patience_s: float = 3600, every_s: float = 1.0) -> None:
    """Returns when the other hosts have made their shards too.

    Args:
      patience_s: how long no new shard may come.
      every_s: between two looks.

    Raises:
      TokzooError: no shard came for so long.
    """
    last, since = -1, time.monotonic()
    while not self.finish():
      made = self.num_made()
      if made > last:
        last, since = made, time.monotonic()
      if time.monotonic() - since > patience_s:
        shards = range(self.header.num_shards)
        lacking = [shard for shard in shards if self._receipt(shard) is None]
        raise TokzooError(
          f"the other hosts made no shard of {self.folder} for {patience_s:.0f} s, and "
          f"{len(lacking)} are missing (the first is {lacking[0]}): start the same command "
          "again on every host, it continues."
        )
      time.sleep(every_s)

  def num_made(self) -> int:
    """Shards that have their receipts."""
    return sum(1 for _ in self.folder.glob(f"tokens-*-of-{self._count}.json"))

  @property
  def _count(self) -> str:
    return f"{self.header.num_shards:05d}"

  def _name(self, shard: int) -> str:
    return f"tokens-{shard:05d}-of-{self._count}"

  def _path(self, name: str) -> str:
    return os.fspath(self.folder / name)

  def _receipt(self, shard: int) -> dict[str, Any] | None:
    """What was written of a shard, None unless it is there with its size."""
    receipt = _read_json(self.folder / f"{self._name(shard)}.json")
    if receipt is None:
      return None
    same = size_of(self.folder / receipt["name"]) == receipt["bytes"]
    return receipt if same else None

  @contextlib.contextmanager
  def _making(self, name: str) -> Iterator[Path]:
    """A file to write, which bears its name only when it is whole and flushed."""
    remote = is_remote(self.folder)
    place = Path(tempfile.gettempdir() if remote else os.fspath(self.folder))
    # Two processes that make the same shard by mistake must not write one file.
    whose = f"{socket.gethostname()}-{os.getpid()}"
    making = place / f".{name}.{whose}.unfinished"
    try:
      place.mkdir(parents=True, exist_ok=True)
      yield making
      with open(making, "rb") as file:
        os.fsync(file.fileno())
      if remote:
        put_file(making, self._path(name))
      else:
        os.replace(making, place / name)
    except (OSError, RuntimeError) as error:  # of the system, of the ArrayRecord writer
      raise TokzooError(
        f"cannot write {self.folder}/{name}: {error}; free some space or name another folder, "
        "then start the same command again."
      ) from error
    finally:
      # Of an encoding that fails before its first shard nothing is left.
      with contextlib.suppress(OSError):
        making.unlink(missing_ok=True)
        if not remote:
          place.rmdir()

  def _tidy(self) -> None:
    """Removes what only a run under way needs, and what killed ones left."""
    (self.folder / HEADER).unlink(missing_ok=True)
    for pattern in ("tokens-*.json", ".tokens-*.unfinished"):
      for left in list(self.folder.glob(pattern)):
        left.unlink(missing_ok=True)

  def _is_begun(self) -> bool:
    """Whether there are shards already; they must be those that would be made now."""
    # The header goes when the manifest has come, so it is looked for first.
    there = _read_json(self.folder / HEADER)
    if there is None and self.is_whole:
      there = read_manifest(self.folder)
    if there is None:
      return False
    now = self.header.as_json()
    for name in _IDENTITY:
      # How a finished folder was cut to files does not matter to anybody.
      if name == "records_per_shard" and "files" in there:
        continue
      before, after = _flat(name, there.get(name)), _flat(name, now.get(name))
      for part, value in after.items():
        if before.get(part) != value:
          raise TokzooError(
            f"{self.folder} holds token records already, whose {part} is "
            f"{before.get(part)}, not {value}: choose another folder, or remove it."
          )
    return True


def _flat(name: str, value: Any) -> dict[str, Any]:
  """A field of the header as {"data.size": 8}."""
  if isinstance(value, Mapping):
    return {f"{name}.{key}": each for key, each in value.items()}
  return {name.replace("_", " "): value}


def layout_of(rows: Rows, tokens: Tokens) -> dict[str, Any]:
  """What a record holds: the kind of tokens, and shape and dtype of every array."""
  return {
    "kind": tokens.kind,
    "vocab": tokens.vocab,
    "bits": tokens.bits,
    "grid": None if tokens.grid is None else list(tokens.grid),
    "arrays": {
      name: {"dtype": array.dtype.name, "shape": list(array.shape[1:])}
      for name, array in rows.items()
    },
  }


def what_was_encoded(data: DataConfig) -> dict[str, Any]:
  """The fields of a config that decide which pictures are encoded, as JSON holds them."""
  how_fast = ("shuffle", "threads", "prefetch")
  fields = dataclasses.asdict(data).items()
  kept = {name: value for name, value in fields if name not in how_fast}
  # Folders of before there was sound lack its fields.
  return {
    name: value
    for name, value in kept.items()
    if value is not None or name not in ("sample_rate_hz", "seconds")
  }


def _read_json(path: Located) -> dict[str, Any] | None:
  """A header or a receipt; None if there is none."""
  try:
    return json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError) as error:
    raise TokzooError(
      f"{path} is damaged ({error}): remove it and try again."
    ) from error


def _write_json(path: str, fields: Mapping[str, Any]) -> None:
  write_atomic(path, json.dumps(fields, indent=2).encode())
