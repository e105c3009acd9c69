"""The terms of KARL's objective that are its own: which tokens to halt, which errors to wish."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from tokzoo.quantizers.masks import masked_mean
from tokzoo.tokenizers.image.karl.model import ERRORS

HARDEST = 0.04
"""The largest error that is wished for in the first pass."""


def halting_losses(
  logits: Float[Array, "B T"], kept: Bool[Array, "T"], needed: Bool[Array, "T"]
) -> dict[str, Float[Array, ""]]:
  """Binary cross-entropies of the halting logits, each a mean of its own.

  Args:
    logits: high: halt.
    kept: the tokens that take part at all.
    needed: those that are to stay active; the other kept ones are to halt.

  Returns:
    `active` of the needed tokens, `halted` of the others; 0 where there are none.
  """
  logits = logits.astype(jnp.float32)

  def mean(which: Bool[Array, "T"], target: float) -> Float[Array, ""]:
    rows = jnp.broadcast_to(which[None], logits.shape)
    return masked_mean(
      optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, target)), rows
    )

  return {"active": mean(kept & needed, 0.0), "halted": mean(kept & ~needed, 1.0)}


def first_shares() -> Float[Array, "E"]:
  """How often each bin is wished for at the start: all small ones alike."""
  small = jnp.asarray([error <= HARDEST for error in ERRORS], jnp.float32)
  return small / small.sum()


def next_shares(
  shares: Float[Array, "E"], reached: Float[Array, "B"]
) -> Float[Array, "E"]:
  """Bins that the best image of the batch reached become rarer: what is wished for drifts
  towards less than can be had.

  The source takes the least error of each GPU's own batch; this is that of the whole.
  """
  decay = jnp.where(jnp.asarray(ERRORS, jnp.float32) >= reached.min(), 0.99, 1.0)
  shares = shares * decay
  return shares / shares.sum()
