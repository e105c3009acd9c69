"""Binary quantizer: m independent bits a token, each embedded by its own vector.

Instella-T2I (arXiv 2506.21022), binary latent space after Wang et al. (arXiv 2304.04820):

  logits = W z + c;  p = sigmoid(logits)
  training:    b ~ Bernoulli(sigmoid(logits / temperature))
  evaluation:  b = p > 1/2
  values:      (b + p - sg(p)) @ E,  E [m, D]: the sum of the rows of the bits that are on

The straight-through gradient is that of the un-tempered sigmoid. The bits are 0 and 1, not
-1 and 1, so an empty token is the zero vector; of a token that is hidden `ids` are 0, not -1.
Losses are returned in evaluation, too.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tokzoo.contract import Quantized


class Binary(nn.Module):
  """The binary quantizer.

  bits:         m, bits per token
  width:        D, features of latents and codes
  temperature:  of the Bernoulli draw in training; 0 draws nothing: b = p > 1/2 there too

  Losses (unweighted means over kept positions and bits):
    code            p (1 - p): pushes every probability to 0 or 1
    sample_entropy  mean entropy of the bits of one token, in bits per bit
    batch_entropy   entropy of the mean probability of each bit, in bits per bit: 1 when
                    every bit is on half of the time
  Stats: `on` float32[m], how often each bit was on; `tokens` float32, how many were kept.
  Training needs the rng stream "bits" unless `temperature` is 0.
  """

  bits: int
  width: int
  temperature: float = 0.1

  def setup(self):
    self.proj = nn.Dense(self.bits, dtype=jnp.float32)
    self.embed = self.param(
      "embed", nn.initializers.normal(0.02), (self.bits, self.width)
    )

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized:
    logits = self.proj(z.astype(jnp.float32))
    p = nn.sigmoid(logits)
    if train and self.temperature > 0:
      draw = jax.random.bernoulli(
        self.make_rng("bits"), nn.sigmoid(logits / self.temperature)
      )
      bits = draw.astype(jnp.float32)
    else:
      bits = (p > 0.5).astype(jnp.float32)
    kept = (
      jnp.ones(z.shape[:2], jnp.float32) if mask is None else mask.astype(jnp.float32)
    )
    kept = kept[..., None]
    straight_through = bits + p - jax.lax.stop_gradient(p)
    values = self.ids_to_codes(straight_through * kept)
    tokens = kept.sum()

    def mean(x):
      return (x * kept).sum() / jnp.maximum(tokens * self.bits, 1.0)

    p_mean = (p * kept).sum((0, 1)) / jnp.maximum(tokens, 1.0)
    return Quantized(
      values=values,
      ids=bits * kept,
      losses={
        "code": mean(p * (1 - p)),
        "sample_entropy": mean(_entropy(logits)),
        "batch_entropy": _entropy_of(p_mean).mean(),
      },
      stats={"on": (bits * kept).sum((0, 1)), "tokens": tokens},
    )

  def ids_to_codes(self, ids: Float[Array, "B L m"]) -> Float[Array, "B L D"]:
    """Bits to embeddings, float32."""
    return ids.astype(jnp.float32) @ self.embed.astype(jnp.float32)

  def codes_to_ids(self, codes: Float[Array, "B L D"]) -> Float[Array, "B L m"]:
    """Embeddings back to bits by least squares; exact where the rows of E are independent
    (m <= D and a trained or random E)."""
    bits = codes.astype(jnp.float32) @ jnp.linalg.pinv(self.embed.astype(jnp.float32))
    return (bits > 0.5).astype(jnp.float32)

  @property
  def num_codes(self) -> int:
    """2 ** m, an exact Python integer."""
    return 2**self.bits

  @property
  def bits_per_token(self) -> float:
    return float(self.bits)


def _entropy(logits: Float[Array, "..."]) -> Float[Array, "..."]:
  """Entropy in bits of sigmoid(logits); from log-sigmoids, so no logarithm of 0."""
  p = nn.sigmoid(logits)
  nats = -p * nn.log_sigmoid(logits) - (1 - p) * nn.log_sigmoid(-logits)
  return nats / jnp.log(2.0)


def _entropy_of(p: Float[Array, "..."]) -> Float[Array, "..."]:
  """Entropy in bits of a probability."""
  p = jnp.clip(p, 1e-7, 1 - 1e-7)
  return -(p * jnp.log2(p) + (1 - p) * jnp.log2(1 - p))
