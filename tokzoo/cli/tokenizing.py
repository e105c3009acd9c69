"""A data set as tokens: made once by all devices of all hosts, read ever after."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from tokzoo.cli.console import note
from tokzoo.data import DataConfig, OnePass
from tokzoo.data.sources.tokens import MANIFEST, TokenSource
from tokzoo.data.token_shards import (
  RECORDS_PER_SHARD,
  Header,
  Rows,
  TokenShards,
  what_was_encoded,
)
from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.hub import PretrainedCodec, PretrainedTokenizer
from tokzoo.tokenizers.audio.waves import flat
from tokzoo.tokens import Origin, Tokens
from tokzoo.train import Recipe
from tokzoo.version import code_version

BATCH = {"image": 256, "audio": 16}
"""Pictures or sounds that are encoded at a time."""


@dataclasses.dataclass(frozen=True)
class Encoded:
  """What `encode_dataset` did.

  records:    in the whole folder
  shards:     likewise
  made:       records that this process encoded now; the others were there, or are of others
  seconds:    that it took for them, from the first batch on
  """

  records: int
  shards: int
  made: int
  seconds: float


def encode_dataset(
  data: DataConfig,
  tokenizer: PretrainedTokenizer | PretrainedCodec,
  out: str | Path,
  batch_size: int | None = None,
  records_per_shard: int = RECORDS_PER_SHARD,
  progress: Callable[[int, int], None] | None = None,
  codebooks: int | None = None,
  is_flat: bool = False,
) -> Encoded:
  """Writes the tokens (and labels) of a data set, `data.repeat` views of each record.

  Ids of a codec of sound are [L, Q], or [L] of a single codebook, which every generator of ids
  reads.

  Every process of a job makes shards of its own, on its own devices; all return when the
  folder is whole. Started again after a kill, with as many processes as there are then, it
  makes what is missing.

  Args:
    data: what to encode, one split.
    tokenizer: what makes the tokens.
    out: a folder of its own for each split, which all processes see; it may be remote.
    batch_size: pictures or sounds at a time, of one process; None: `BATCH`.
    records_per_shard: of each file.
    progress: called with the records that this process has made and those that it has to.
    codebooks: of a codec of sound, how many to keep; None: all.
    is_flat: write the frames of several codebooks as one row of ids (`waves.flat`).

  Raises:
    TokzooError: data that cannot be read or does not fit, a folder that is not writable or
      holds something else, or hosts that do not do their part.
  """
  views = OnePass(data)
  header = Header(
    origin=tokenizer.origin,
    tokenizer=tokenizer.card.name,
    data=data,
    classes=views.info.classes,
    records=len(views),
    records_per_shard=records_per_shard,
    made_by=code_version(),
    codebooks=codebooks,
    is_flat=is_flat,
  )
  shards = TokenShards(out, header)
  missing = shards.missing(jax.process_index(), jax.process_count())
  total = sum(len(shards.views(shard)) for shard in missing)
  spread = tokenizer.spread(jax.local_devices())
  medium = "audio" if isinstance(tokenizer, PretrainedCodec) else "image"
  encode = functools.partial(_encode, spread, medium, codebooks, is_flat)
  batch_size = batch_size or BATCH[medium]
  made, begin = 0, time.monotonic()

  def batches(shard: int) -> Iterator[tuple[Rows, Tokens]]:
    nonlocal made
    for rows, tokens in _encoded(views, shards.views(shard), encode, batch_size):
      yield rows, tokens
      made += len(next(iter(rows.values())))
      if progress:
        progress(made, total)

  for shard in missing:
    shards.write(shard, batches(shard))
  seconds = time.monotonic() - begin
  shards.wait()
  return Encoded(header.records, header.num_shards, made, seconds)


def _encode(
  tokenizer: PretrainedTokenizer | PretrainedCodec,
  medium: str,
  codebooks: int | None,
  is_flat: bool,
  batch: Mapping[str, np.ndarray],
) -> Tokens:
  """The tokens of a batch.

  Raises:
    TokzooError: the data is of another medium.
  """
  if medium not in batch:
    takes = {"image": "pictures", "audio": "sound"}[medium]
    raise TokzooError(
      f"{tokenizer.card.name} takes {takes}, but the data has {', '.join(sorted(batch))}: name "
      f"data of {takes}, or another tokenizer."
    )
  if isinstance(tokenizer, PretrainedTokenizer):
    return tokenizer.encode(batch[medium])
  tokens = tokenizer.encode(batch[medium], codebooks)
  ids, vocab = tokens.ids, tokens.vocab
  if ids is None or vocab is None or ids.ndim == 2:
    return tokens
  if ids.shape[2] == 1:
    return tokens.replace(ids=ids[..., 0])
  if not is_flat:
    return tokens
  levels, row = ids.shape[2], flat(ids, vocab)
  return tokens.replace(ids=row, vocab=levels * vocab, grid=(row.shape[1],))


def _encoded(
  views: OnePass,
  part: range,
  encode: Callable[[Mapping[str, np.ndarray]], Tokens],
  batch_size: int,
) -> Iterator[tuple[Rows, Tokens]]:
  """The rows of some views. A batch is fetched when the next one has been sent."""
  flying: tuple[Tokens, dict[str, np.ndarray]] | None = None
  reading = views.batches(part, batch_size)
  try:
    for batch in reading:
      sent = (encode(batch), batch)
      if flying:
        yield _rows(*flying)
      flying = sent
  finally:
    reading.close()
  if flying:
    yield _rows(*flying)


def _rows(tokens: Tokens, batch: dict[str, np.ndarray]) -> tuple[Rows, Tokens]:
  valid = batch["valid"]
  rows = {tokens.kind: np.asarray(tokens.array)}
  if tokens.mask is not None:
    rows["mask"] = np.asarray(tokens.mask)
  if tokens.scale is not None:
    rows["scale"] = np.asarray(tokens.scale)
  if "label" in batch:
    rows["label"] = batch["label"]
  return {name: value[valid] for name, value in rows.items()}, tokens


def with_tokens(
  recipe: Recipe, tokenizer: PretrainedTokenizer | PretrainedCodec, out: Path
) -> Recipe:
  """The recipe with its data turned into tokens, kept under `out` and made only once.

  Raises:
    TokzooError: data that cannot be encoded, or tokens that are there already and are of
      another tokenizer or other data.
  """
  made: dict[Path, DataConfig] = {}

  def encoded(data: DataConfig) -> DataConfig:
    if data.source.startswith("tokens:"):
      if origin_of(data) != tokenizer.origin:
        raise TokzooError(
          f"{data.source} holds the tokens of {origin_of(data)}, not of "
          f"{tokenizer.origin}: name their tokenizer, or encode the data again."
        )
      return data
    name = f"{data.source}-{data.split}".replace("/", "_").replace(":", "_")
    place = out / "tokens" / name
    if place not in made:
      made_before = (place / MANIFEST).is_file()
      count = encode_dataset(data, tokenizer, place).records
      if not made_before:
        note(f"encoded {data.source} {data.split}: {count} records in {place}")
      made[place] = data
    elif what_was_encoded(data) != what_was_encoded(made[place]):
      raise TokzooError(
        f"the recipe reads the split {data.split!r} of {data.source} in two ways: a "
        "generator's training data and evaluators share one way of reading a split."
      )
    return DataConfig(
      source=f"tokens:{place}",
      split=data.split,
      shuffle=data.shuffle,
      threads=data.threads,
      prefetch=data.prefetch,
    )

  evaluators = {
    name: dataclasses.replace(evaluator, data=encoded(evaluator.data))
    for name, evaluator in recipe.evaluators.items()
  }
  return dataclasses.replace(recipe, data=encoded(recipe.data), evaluators=evaluators)


def remember_origin(data: DataConfig, out: Path, restart: bool = False) -> None:
  """Notes in a run whose tokens it learns (tokenizer.txt); the loader refuses others.

  Raises:
    TokzooError: the run that is there, and is not begun anew, learns those of another one.
  """
  path, now = out / "tokenizer.txt", str(origin_of(data))
  before = path.read_text().strip() if path.is_file() else now
  if before != now and not restart:
    raise TokzooError(
      f"{out} holds a run on the tokens of {before}, but {data.source} holds those of {now}: "
      "name data of the same tokenizer, choose another --out, or pass --restart."
    )
  write_atomic(path, f"{now}\n".encode())


def origin_of(data: DataConfig) -> Origin:
  """Whose tokens a `tokens:` source holds.

  Raises:
    TokzooError: it cannot be opened.
  """
  return TokenSource(data.source.removeprefix("tokens:"), data.split).origin
