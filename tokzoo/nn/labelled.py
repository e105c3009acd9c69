"""What generators of discrete tokens share at their door: labels, ids, dropped classes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, PRNGKeyArray

from tokzoo.contract import Batch
from tokzoo.errors import TokzooError
from tokzoo.tokens import Tokens


class LabelledIds:
  """Methods of a config whose generator makes `num_tokens` ids below `vocab` for a label.

  The config's fields or properties: `num_tokens`, `vocab`, `num_classes`.
  """

  num_tokens: Any
  vocab: Any
  num_classes: Any

  def example(self) -> tuple[Tokens, Array, PRNGKeyArray]:
    """Inputs of `loss` of the right shapes, batch of one: what initialisation needs."""
    ids = jnp.zeros((1, self.num_tokens), jnp.int32)
    labels = jnp.zeros(1, jnp.int32)
    return Tokens.from_ids(ids, self.vocab), labels, jax.random.key(0)

  def example_batch(self) -> Batch:
    """One row of training data as the trainer gets it, zeros."""
    ids = jnp.zeros((1, self.num_tokens), jnp.int32)
    return {"ids": ids, "label": jnp.zeros(1, jnp.int32)}

  def condition(self, batch: Batch) -> Array:
    """The labels of a batch.

    Raises:
      TokzooError: the batch has none.
    """
    if "label" not in batch:
      raise TokzooError(
        f"the generator is conditioned on label, but the data has only "
        f"{', '.join(sorted(batch))}: use data with labels."
      )
    return batch["label"]


def require_labels(
  labels: Any, num_classes: int, has_null: bool = True
) -> Int[Array, "B"]:
  """The labels, if they are integers `[B]` in [0, num_classes); with `has_null` also
  num_classes, which is "no class".

  Inside jit only shape and dtype can be looked at.

  Raises:
    TokzooError: other shapes, dtypes or values.
  """
  if jnp.ndim(labels) != 1 or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
    raise TokzooError(
      f"class labels are integers of shape [B]; these are {jnp.result_type(labels)}"
      f"{list(jnp.shape(labels))}: pass int32[B]."
    )
  if not isinstance(labels, Tracer):
    found = np.asarray(labels)
    if found.size and (found.min() < 0 or found.max() >= num_classes + has_null):
      wrong = int(found.min() if found.min() < 0 else found.max())
      raise TokzooError(
        f"class label {wrong} is out of range: this generator has the classes 0 to "
        f"{num_classes - 1}."
      )
  return jnp.asarray(labels, jnp.int32)


def require_ids(tokens: Tokens, num_tokens: int, vocab: int) -> Int[Array, "B L"]:
  """The ids of tokens that a generator was made for.

  Raises:
    TokzooError: another kind, number or vocabulary of tokens; outside jit also ids that are
      out of range.
  """
  ids = tokens.ids
  if ids is None or ids.ndim != 2 or ids.shape[1] != num_tokens:
    raise TokzooError(
      f"this generator models {num_tokens} ids an image; these tokens are {tokens.kind} of "
      f"shape {list(tokens.array.shape)}: encode with the tokenizer it was made for."
    )
  if tokens.vocab is not None and tokens.vocab != vocab:
    raise TokzooError(
      f"this generator models ids below {vocab}; these tokens have ids below "
      f"{tokens.vocab}: encode with the tokenizer it was made for."
    )
  if not isinstance(ids, Tracer):
    found = np.asarray(ids)
    if found.size and (found.min() < 0 or found.max() >= vocab):
      wrong = int(found.min() if found.min() < 0 else found.max())
      raise TokzooError(
        f"id {wrong} is out of range: this generator has the ids 0 to {vocab - 1}."
      )
  return ids


def drop_labels(
  rng: PRNGKeyArray, labels: Int[Array, "B"], rate: float, null: int
) -> Int[Array, "B"]:
  """Puts `null` in place of a label with probability `rate`."""
  return jnp.where(jax.random.bernoulli(rng, rate, labels.shape), null, labels)


def with_null(labels: Int[Array, "B"], null: int, guided: bool) -> Int[Array, "..."]:
  """The labels, followed by as many "no class" if guidance needs them."""
  if not guided:
    return labels
  return jnp.concatenate([labels, jnp.full_like(labels, null)])
