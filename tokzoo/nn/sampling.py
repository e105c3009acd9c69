"""Drawing tokens from logits: guidance, temperature, top-k, top-p, and the one compiled loop."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from tokzoo.errors import TokzooError

State = TypeVar("State")


def check_sampling(
  *,
  rng: PRNGKeyArray | None,
  guidance: float = 1.0,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  vocab: int | None = None,
) -> None:
  """Raises TokzooError unless a sampler's settings are in range and there is a key, if one
  is needed (temperature 0 draws nothing)."""
  if rng is None and temperature != 0:
    raise TokzooError("sampling needs a random key: pass rng=jax.random.key(seed).")
  if not guidance >= 0:
    raise TokzooError(f"guidance is at least 0; it is {guidance}: pass 0 or more.")
  if not temperature >= 0:
    raise TokzooError(
      f"the temperature is at least 0 (0: the likeliest token); it is {temperature}: pass 0 "
      "or more."
    )
  most = vocab or top_k
  if not 0 <= top_k <= most:
    raise TokzooError(
      f"top_k is 0 (off) to {most}, the number of codes; it is {top_k}: pass one of these."
    )
  if not 0 < top_p <= 1:
    raise TokzooError(
      f"top_p lies above 0 and is at most 1 (off); it is {top_p}: pass such a number."
    )


def guide(
  both: Float[Array, "2B ..."], scale: float | Float[Array, ""]
) -> Float[Array, "B ..."]:
  """Classifier-free guidance: u + s (c - u), the first half of the rows conditional."""
  conditional, unconditional = jnp.split(both, 2)
  return unconditional + scale * (conditional - unconditional)


def kept(
  logits: Float[Array, "B V"], top_k: int = 0, top_p: float = 1.0
) -> Bool[Array, "B V"]:
  """Which tokens may be drawn: the `top_k` likeliest, then the smallest set of probability
  `top_p`, the token that crosses it included. Tokens that tie with the last one stay."""
  keep = jnp.ones(logits.shape, bool)
  if 0 < top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, top_k)[0][:, -1:]
    keep = logits >= least
  if top_p < 1:
    shown = jnp.where(keep, logits, -jnp.inf)
    order = jnp.argsort(-shown, axis=-1)
    p = jax.nn.softmax(jnp.take_along_axis(shown, order, axis=-1), axis=-1)
    before = jnp.cumsum(p, axis=-1) - p
    # Ranks: where each token stands in the sorted row.
    inside = jnp.take_along_axis(before <= top_p, jnp.argsort(order, axis=-1), axis=-1)
    keep = keep & inside
  return keep


def draw(
  rng: PRNGKeyArray | None,
  logits: Float[Array, "B V"],
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> Int[Array, "B"]:
  """One token a row: temperature, then top-k, then top-p, then a draw.

  Temperature 0 takes the likeliest token (the lowest of those that tie) and needs no key.
  """
  logits = logits.astype(jnp.float32)
  if temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  assert rng is not None
  logits = logits / temperature
  if top_k or top_p < 1:
    logits = jnp.where(kept(logits, top_k, top_p), logits, -jnp.inf)
  return jax.random.categorical(rng, logits).astype(jnp.int32)


def numbered(rng: PRNGKeyArray | None, number: int | Array) -> PRNGKeyArray | None:
  """The key of draw `number`; None stays None."""
  return None if rng is None else jax.random.fold_in(rng, number)


def autoregress(
  first: PyTree,
  memory: PyTree,
  draw_token: Callable[[Any, Any], State],
  step: Callable[[State, Array, Any], tuple[Any, Any]],
  length: int,
) -> State:
  """Draws `length` tokens one after another in one `lax.scan`.

  Args:
    first: what the prefill says of token 0 (logits, or whatever `draw_token` reads).
    memory: the cache after the prefill.
    draw_token: (number i, what is said of token i) -> token i, one a row, any pytree.
    step: (token i, i, memory) -> what is said of token i + 1, and the longer memory.
    length: tokens of a sequence.

  Returns:
    The tokens, `[B, length]` for each leaf of a token.
  """
  token = draw_token(0, first)

  def body(carry, i):
    token, memory = carry
    said, memory = step(token, i - 1, memory)
    token = draw_token(i, said)
    return (token, memory), token

  _, rest = jax.lax.scan(body, (token, memory), jnp.arange(1, length))
  return jax.tree.map(
    lambda a, b: jnp.concatenate([a[:, None], b.swapaxes(0, 1)], axis=1), token, rest
  )
