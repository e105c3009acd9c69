"""Prefixes of tokens: how many are kept in a training step, and what then sees what.

A model that is trained on random prefixes of its own tokens orders them by importance, so
that any prefix decodes. What differs between papers is the law of the length n, of K tokens:

  uniform       n in {1, ..., K}, all alike (tail token drop: One-D-Piece, arXiv 2501.10064;
                nested dropout: Rippel et al., arXiv 1402.0915)
  pow2          n in {1, 2, 4, ..., <= K}, all alike (FlexTok, arXiv 2502.13967)
  uniform_pow2  uniform, then up to the next power of two: long prefixes are the likely ones

and what becomes of the others: cut off (`attention_mask`: nobody attends to them, which
equals a shorter sequence but keeps shapes static under jit), or replaced (`replace_tail`).
Lengths are one number for the batch, or one per row (adaptive lengths); everything here is
a pure function of them.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.errors import TokzooError

Law = Literal["uniform", "pow2", "uniform_pow2"]


def draw_length(
  rng: PRNGKeyArray, num_tokens: int, law: Law = "uniform", shape: tuple[int, ...] = ()
) -> Int[Array, "*shape"]:
  """Lengths of prefixes, int32 in [1, num_tokens].

  Args:
    rng: of the draw.
    num_tokens: K, the longest prefix.
    law: see the head of this file. Rounded up to a power of two, a length may pass K where K
      is none itself; it is then K.
    shape: (): one length for the whole batch; (B,): one per row.
  """
  if law == "pow2":
    powers = num_tokens.bit_length()
    return 2 ** jax.random.randint(rng, shape, 0, powers, jnp.int32)
  length = jax.random.randint(rng, shape, 1, num_tokens + 1, jnp.int32)
  if law == "uniform":
    return length
  powers = 2 ** jnp.arange((num_tokens - 1).bit_length() + 1, dtype=jnp.int32)
  return jnp.minimum(powers[jnp.searchsorted(powers, length)], num_tokens)


def prefix_mask(length: Int[Array, "*B"] | int, num_tokens: int) -> Bool[Array, "*B L"]:
  """True for the first `length` of `num_tokens` places."""
  length = jnp.asarray(length, jnp.int32)
  places = jax.lax.broadcasted_iota(jnp.int32, (*length.shape, num_tokens), length.ndim)
  return places < jnp.expand_dims(length, -1)


def attention_mask(
  kept: Bool[Array, "*B L"], before: int = 0, after: int = 0
) -> Bool[Array, "#B 1 1 S"]:
  """For `attend`: nobody sees a token that is not kept; S = before + L + after.

  Kept tokens compute what they would without the others. What a cut token itself computes
  means nothing and must not be read.

  Args:
    kept: bool[L], or bool[B, L].
    before: places before the tokens in the sequence that everybody sees.
    after: such places after them.
  """
  rows = kept.reshape(-1, kept.shape[-1])
  rows = jnp.pad(rows, ((0, 0), (before, after)), constant_values=True)
  return rows[:, None, None, :]


def replace_tail(
  tokens: Float[Array, "B L D"],
  kept: Bool[Array, "*B L"],
  filler: Float[Array, "D"],
) -> Float[Array, "B L D"]:
  """Tokens, with `filler` where they are not kept (nested dropout with a mask token)."""
  wide = jnp.broadcast_to(kept.reshape(-1, kept.shape[-1])[..., None], tokens.shape)
  return jnp.where(
    wide, tokens, jnp.broadcast_to(filler.astype(tokens.dtype), tokens.shape)
  )


def check_num_tokens(num_tokens: int | None, most: int) -> int:
  """How many tokens to keep: `num_tokens`, or all where it is None.

  Raises:
    TokzooError: below 1, or more than the model has.
  """
  if num_tokens is None:
    return most
  if not 1 <= num_tokens <= most:
    raise TokzooError(
      f"{num_tokens} tokens were asked for, but this tokenizer makes 1 to {most}: "
      "choose a number of these."
    )
  return num_tokens
