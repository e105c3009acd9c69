"""How well a tokenizer uses its codes: usage, perplexity, dead codes, bit entropy, rate."""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from tokzoo.metrics.state import Additive, ratio, require_rows
from tokzoo.tokens import Tokens

BIT_IN_USE = 0.01
"""A bit is in use if its rarer value is that of at least this share of the tokens."""


@struct.dataclass
class CodebookUsage(Additive):
  """How often each code occurs.

  counts:  int32[K]
  """

  counts: Int[Array, "K"]

  @classmethod
  def from_counts(cls, counts: Int[Array, "K"]) -> "CodebookUsage":
    """From a quantizer's `stats["counts"]`."""
    return cls(counts)

  @classmethod
  def from_ids(
    cls,
    ids: Int[Array, "B *L"],
    num_codes: int,
    valid: Bool[Array, "B"] | None = None,
  ) -> "CodebookUsage":
    """From ids in [0, num_codes); -1 marks masked positions, which do not count."""
    is_kept = ids >= 0
    if valid is not None:
      is_kept &= valid.reshape(valid.shape + (1,) * (ids.ndim - 1))
    lines = jnp.where(is_kept, ids, num_codes).reshape(-1)
    counts = jnp.bincount(lines, length=num_codes + 1)[:num_codes]
    return cls(counts.astype(jnp.int32))

  def compute(self) -> dict[str, float]:
    """`usage`: share of codes that occur. `dead_codes`: how many do not. `perplexity`:
    exp of the entropy of the histogram, 1 to K. `entropy`: that entropy over log K, 0 to 1.
    """
    counts = np.asarray(self.counts, np.float64)
    require_rows(counts.sum())
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * np.log(shares)).sum())
    return {
      "usage": len(shares) / len(counts),
      "dead_codes": float(len(counts) - len(shares)),
      "perplexity": float(np.exp(entropy)),
      "entropy": entropy / float(np.log(len(counts))) if len(counts) > 1 else 1.0,
    }


@struct.dataclass
class BitEntropy(Additive):
  """Entropy of each bit of binary tokens, over all tokens.

  on:      float32[m] or int32[m], in how many tokens each bit is 1
  tokens:  float32[] or int32[]
  """

  on: Array
  tokens: Array

  @classmethod
  def from_counts(cls, on: Array, tokens: Array) -> "BitEntropy":
    """From a quantizer's `stats["on"]` and `stats["tokens"]`."""
    return cls(on, tokens)

  @classmethod
  def from_bits(
    cls,
    bits: Bool[Array, "B L m"] | Float[Array, "B L m"],
    valid: Bool[Array, "B"] | Bool[Array, "B L"] | None = None,
  ) -> "BitEntropy":
    """From bits as bools or numbers that are 0 or 1. `valid` may also say which tokens."""
    kept = jnp.ones(bits.shape[:2], bool)
    if valid is not None:
      kept &= valid if valid.ndim == 2 else valid[:, None]
    on = jnp.sum(bits.astype(bool) & kept[..., None], axis=(0, 1), dtype=jnp.int32)
    return cls(on, jnp.sum(kept, dtype=jnp.int32))

  def compute(self) -> dict[str, float]:
    """`mean`: mean entropy per bit, in bits, 0 to 1. `in_use`: share of the bits whose
    rarer value has at least 1 % of the tokens."""
    require_rows(self.tokens)
    p = np.asarray(self.on, np.float64) / float(self.tokens)
    rarer = np.minimum(p, 1 - p)
    # log2 of 0 is met only where its weight is 0.
    weights = np.stack([p, 1 - p])
    entropy = -(weights * np.log2(np.where(weights > 0, weights, 1))).sum(0)
    return {
      "mean": float(entropy.mean()),
      "in_use": float((rarer >= BIT_IN_USE).mean()),
    }


@struct.dataclass
class BitsPerPixel(Additive):
  """Rate of tokens stored without entropy coding.

  bits, pixels:  float32[], sums over pictures
  """

  bits: Float[Array, ""]
  pixels: Float[Array, ""]

  @classmethod
  def from_tokens(
    cls,
    tokens: Tokens,
    height_px: int,
    width_px: int,
    valid: Bool[Array, "B"] | None = None,
  ) -> "BitsPerPixel":
    """From the tokens of pictures of one size; where tokens have a mask, kept ones count."""
    rows = jnp.ones(tokens.batch, bool) if valid is None else valid
    kept = jnp.ones((tokens.batch, tokens.length), bool)
    kept = (kept if tokens.mask is None else tokens.mask) & rows[:, None]
    return cls(
      jnp.sum(kept, dtype=jnp.float32) * tokens.bits_per_token,
      jnp.sum(rows, dtype=jnp.float32) * height_px * width_px,
    )

  def compute(self) -> float:
    return ratio(self.bits, self.pixels)
