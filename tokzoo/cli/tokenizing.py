"""A data set as tokens: made once, read by generators ever after."""

import dataclasses
from pathlib import Path

import numpy as np

from tokzoo.cli.console import note
from tokzoo.data import DataConfig, evaluation_batches
from tokzoo.data.sources.tokens import (
  MANIFEST,
  TokenSource,
  TokenWriter,
  read_manifest,
  what_was_encoded,
)
from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.hub import PretrainedTokenizer
from tokzoo.tokens import Origin
from tokzoo.train import Recipe


def encode_dataset(
  data: DataConfig, tokenizer: PretrainedTokenizer, out: Path, batch_size: int = 256
) -> int:
  """Writes the tokens (and labels) of a data set, `data.repeat` views of each record.

  Args:
    data: what to encode, one split.
    tokenizer: what makes the tokens.
    out: a folder of its own for each split.
    batch_size: pictures at a time.

  Returns:
    How many records were written.

  Raises:
    TokzooError: data that cannot be read or does not fit, or a folder not writable.
  """
  with TokenWriter(out, tokenizer.origin, data) as writer:
    for batch in evaluation_batches(data, batch_size):
      valid = batch["valid"]
      tokens = tokenizer.encode(batch["image"])
      rows = {tokens.kind: np.asarray(tokens.array)}
      if "label" in batch:
        rows["label"] = batch["label"]
      writer.write({name: value[valid] for name, value in rows.items()}, tokens)
    return writer.count


def with_tokens(recipe: Recipe, tokenizer: PretrainedTokenizer, out: Path) -> Recipe:
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
      if (place / MANIFEST).is_file():
        _require_same(place, data, tokenizer)
      else:
        count = encode_dataset(data, tokenizer, place)
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


def remember_origin(data: DataConfig, out: Path) -> None:
  """Notes in a run whose tokens it learns (tokenizer.txt); the loader refuses others."""
  write_atomic(out / "tokenizer.txt", f"{origin_of(data)}\n".encode())


def origin_of(data: DataConfig) -> Origin:
  """Whose tokens a `tokens:` source holds.

  Raises:
    TokzooError: it cannot be opened.
  """
  return TokenSource(data.source.removeprefix("tokens:"), data.split).origin


def _require_same(
  place: Path, data: DataConfig, tokenizer: PretrainedTokenizer
) -> None:
  """Raises unless the tokens that are there are those that would be made now."""
  manifest = read_manifest(place)
  if Origin(**manifest["origin"]) != tokenizer.origin:
    raise TokzooError(
      f"{place} holds the tokens of {Origin(**manifest['origin'])}, not of "
      f"{tokenizer.origin}: choose another --out, or remove the folder."
    )
  if manifest["data"] != what_was_encoded(data):
    raise TokzooError(
      f"{place} was encoded from {manifest['data']}, not from {what_was_encoded(data)}: "
      "choose another --out, or remove the folder."
    )
