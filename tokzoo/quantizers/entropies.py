"""Entropies of binary tokens, in nats: of one token's word, and of the mean over tokens.

A token of m bits is a distribution over 2^m words, whose bits are independent given the
latent: bit j is 1 with probability sigmoid(logits[..., j]).

  sample entropy   mean over tokens of H(p)        low: tokens are sure of their word
  batch entropy    H(mean over tokens of p)        high: all words are used

`bit_entropies` is exact and never lists the words of a token. `floored_entropies` is the
published H = -sum_k p_k log max(p_k, 1e-5) over all words spelt out: it costs [N, 2^m]
floats, and words below the floor pull too weakly; it is here for faithfulness.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tokzoo.quantizers.masks import masked_mean


def bit_entropies(
  logits: Float[Array, "B L m"],
  group: int | None = None,
  mask: Bool[Array, "B L"] | None = None,
  eps: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Entropies in nats of tokens of independent bits, without listing the 2^m words.

  Args:
    logits: float32, bit j of a token is 1 with probability sigmoid(logits[..., j]).
    group: how many bits' joint distribution the second entropy takes at a time; None: all.
    mask: the tokens that count.
    eps: added to the mean distribution inside the second entropy's logarithm.

  Returns:
    The mean over tokens of the entropy of a token's word (exact), and the entropy of the
    mean distribution over words, summed over groups of `group` neighbouring bits.
  """
  size = jnp.abs(logits)
  entropy = nn.softplus(-size) + size * nn.sigmoid(-size)
  sample = masked_mean(jnp.sum(entropy, axis=-1), mask)
  batch = _entropy_of_mean(_in_groups(logits, group), _weight(logits, mask), eps)
  return sample, batch


def floored_entropies(
  z: Float[Array, "B L m"],
  sharpness: float,
  floor: float,
  group: int | None = None,
  mask: Bool[Array, "B L"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """As `bit_entropies`, with logarithms of no less than `floor`, as in published code.

  Args:
    z: float32; word k has the probability softmax_k(sharpness sum_j +-z_j), plus where bit
      j of k is 1. This is sigmoid(2 sharpness z_j) for bit j; published code takes the
      softmax, whose rounding errors at high sharpness show in its gradients.
    sharpness: 2 tau s for codes of +-s and the inverse temperature tau.
    floor: of the probability whose logarithm is taken.
    group: how many bits make a word; None: all. Words are spelt out for each token.
    mask: the tokens that count.

  Returns:
    Both entropies in nats, summed over groups.
  """
  weight = _weight(z, mask)[:, None]
  sample, batch = jnp.zeros(()), jnp.zeros(())
  group = group or z.shape[-1]
  for start in range(0, z.shape[-1], group):
    words = nn.softmax(sharpness * _word_sums(z[..., start : start + group]))
    mean = jnp.sum(words * weight, axis=0)
    sample = sample - jnp.sum(weight * words * jnp.log(jnp.maximum(words, floor)))
    batch = batch - jnp.sum(mean * jnp.log(jnp.maximum(mean, floor)))
  return sample, batch


def _weight(
  logits: Float[Array, "B L m"], mask: Bool[Array, "B L"] | None
) -> Float[Array, "N"]:
  """What each token adds to a mean over the kept ones."""
  kept = jnp.ones(logits.shape[:2], bool) if mask is None else mask
  weight = kept.reshape(-1).astype(jnp.float32)
  return weight / jnp.maximum(jnp.sum(weight), 1)


def _in_groups(
  logits: Float[Array, "B L m"], group: int | None
) -> Float[Array, "N G g"]:
  group = group or logits.shape[-1]
  flat = logits.reshape(-1, logits.shape[-1])
  # A bit that fills up the last group is never 1, which adds nothing to an entropy.
  flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % group)), constant_values=-jnp.inf)
  return flat.reshape(flat.shape[0], -1, group)


def _word_sums(z: Float[Array, "B L m"]) -> Float[Array, "N 2**m"]:
  """sum_j +-z_j for each word of m bits, big-endian."""
  flat = z.reshape(-1, z.shape[-1])
  sums = jnp.zeros((flat.shape[0], 1))
  for bit in range(z.shape[-1]):
    pair = jnp.stack([-flat[:, bit], flat[:, bit]], axis=-1)
    sums = (sums[:, :, None] + pair[:, None, :]).reshape(flat.shape[0], -1)
  return sums


def _entropy_of_mean(
  logits: Float[Array, "N G m"], weight: Float[Array, "N"], eps: float
) -> Float[Array, ""]:
  """The sum over groups of H(sum_n weight_n p_n), p_n over the 2^m words of a group."""
  # p(word) = p(high half) p(low half), so the mean over tokens is one matrix product of
  # [N, 2^(m/2)] matrices: 18 bits take two of 512 columns instead of 262,144.
  half = logits.shape[-1] // 2
  high = _word_probabilities(logits[..., :half])
  low = _word_probabilities(logits[..., half:]) * weight[:, None, None]
  mean = jnp.einsum("ngh,ngl->ghl", high, low, precision=jax.lax.Precision.HIGHEST)
  # A word that no token can take has p = 0, where the slope of p log p is infinite.
  return -jnp.sum(mean * jnp.log(jnp.maximum(mean + eps, jnp.finfo(mean.dtype).tiny)))


def _word_probabilities(logits: Float[Array, "N G m"]) -> Float[Array, "N G 2**m"]:
  """The distribution over the words of m independent bits, big-endian."""
  words = jnp.ones((*logits.shape[:2], 1))
  for bit in range(logits.shape[-1]):
    pair = nn.sigmoid(jnp.stack([-logits[..., bit], logits[..., bit]], axis=-1))
    words = (words[..., :, None] * pair[..., None, :]).reshape(*logits.shape[:2], -1)
  return words
