"""What a simple reader can tell from codes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

_STEPS, _RATE = 200, 0.05


def probed(
  ids: Int[np.ndarray, "N L Q"], labels: Int[np.ndarray, "N L"], heard: int
) -> Float[np.ndarray, "n"]:
  """Accuracy of a linear probe on each of the rows that it did not learn from, the last n.

  A table of learnt embeddings for each codebook, added in every frame, as in DASB (arXiv
  2406.14294); with logits for features it is the probe itself, logistic regression on the codes.

  Args:
    ids: codes of each row's frames, 0 or more.
    labels: what is to be told of each frame, 0 or more.
    heard: rows that it learns from.
  """
  books, count = ids.shape[-1], int(labels.max()) + 1
  first = jnp.zeros((books, int(ids.max()) + 1, count))
  optimizer = optax.adam(_RATE)

  def logits(tables: Array, ids: Array) -> Array:
    each = [tables[q][ids[..., q]] for q in range(books)]
    return sum(each[1:], each[0])

  @jax.jit
  def fitted(tables: Array, ids: Array, labels: Array) -> Array:
    def loss(tables: Array) -> Array:
      found = logits(tables, ids)
      return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

    def step(carry: Any, _: None) -> tuple[Any, None]:
      tables, state = carry
      change, state = optimizer.update(jax.grad(loss)(tables), state)
      return (tables + change, state), None

    start = tables, optimizer.init(tables)
    return jax.lax.scan(step, start, None, length=_STEPS)[0][0]

  # Optax multiplies integer counts by floats, which a session may forbid elsewhere.
  with jax.numpy_dtype_promotion("standard"):
    tables = fitted(first, jnp.asarray(ids[:heard]), jnp.asarray(labels[:heard]))
  guess = np.asarray(logits(tables, jnp.asarray(ids[heard:])).argmax(-1))
  return (guess == labels[heard:]).mean(-1)
