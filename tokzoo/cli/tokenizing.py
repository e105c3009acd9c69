"""A data set as tokens: made once, read by generators ever after."""

import dataclasses
from pathlib import Path

import numpy as np

from tokzoo.cli.console import note
from tokzoo.data import DataConfig, evaluation_batches
from tokzoo.data.sources.tokens import TokenWriter, kept_origin
from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.hub import PretrainedTokenizer
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
  with TokenWriter(out, tokenizer.origin) as writer:
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

  The run remembers whose tokens it learnt (tokenizer.txt); the loader refuses others.
  """
  folder = out / "tokens"
  made: dict[str, str] = {}

  def encoded(data: DataConfig) -> DataConfig:
    if data.source.startswith("tokens:"):
      return data
    place = folder / f"{data.source.replace('/', '_').replace(':', '_')}-{data.split}"
    if str(place) not in made:
      if kept_origin(place) is None:
        count = encode_dataset(data, tokenizer, place)
        note(f"encoded {data.source} {data.split}: {count} records in {place}")
      elif kept_origin(place) != tokenizer.origin:
        raise TokzooError(
          f"{place} holds the tokens of {kept_origin(place)}, not of {tokenizer.origin}: "
          "choose another --out, or remove the folder."
        )
      made[str(place)] = f"tokens:{place}"
    return DataConfig(
      source=made[str(place)],
      split=data.split,
      shuffle=data.shuffle,
      threads=data.threads,
      prefetch=data.prefetch,
    )

  evaluators = {
    name: dataclasses.replace(evaluator, data=encoded(evaluator.data))
    for name, evaluator in recipe.evaluators.items()
  }
  data = encoded(recipe.data)
  write_atomic(out / "tokenizer.txt", f"{tokenizer.origin}\n".encode())
  return dataclasses.replace(recipe, data=data, evaluators=evaluators)
