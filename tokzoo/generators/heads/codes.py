"""A categorical head: draws the codes of residual levels given a state of the backbone.

The counterpart of the flow-matching head for tokens of a codec: level after level, each given the
levels before it, as in the depth transformer of RQ-Transformer (Lee et al., arXiv 2203.01941),
here by an MLP of residual blocks that all levels share:

  h_q = W state + b_q + sum_{j < q} embed_j(id_j);  h += MLP(norm(h));  logits_q = V_q norm(h)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray


class CodesHead(nn.Module):
  """Distributions of Q ids, each of K.

  levels:  Q
  vocab:   K
  width:   w of the MLP, and of the codes' embeddings
  blocks:  residual blocks
  hidden:  features within a block
  """

  levels: int
  vocab: int
  width: int = 512
  blocks: int = 3
  hidden: int = 1024

  def setup(self):
    init = nn.initializers.normal(0.02)
    shape = (self.levels, self.vocab, self.width)
    self.embed = self.param("embed", init, shape, jnp.float32)
    self.level = self.param("level", init, (self.levels, self.width), jnp.float32)
    self.state_in = nn.Dense(self.width)
    self.norms = [_norm() for _ in range(self.blocks + 1)]
    self.up = [nn.Dense(self.hidden) for _ in range(self.blocks)]
    self.down = [nn.Dense(self.width) for _ in range(self.blocks)]
    # Every code is as likely as another at first.
    zeros = nn.initializers.zeros
    shape = (self.levels, self.width, self.vocab)
    self.out = self.param("out", zeros, shape, jnp.float32)
    self.bias = self.param("bias", zeros, (self.levels, self.vocab), jnp.float32)

  def __call__(
    self, state: Float[Array, "N D"], ids: Int[Array, "N Q"]
  ) -> Float[Array, "N Q K"]:
    """Logits of every level, given the ids of those before it."""
    each = self._embedded(ids)
    before = jnp.cumsum(each, 1) - each
    h = self.state_in(state)[:, None] + self.level[None] + before
    return jnp.einsum("nqw,qwk->nqk", self._mixed(h), self.out) + self.bias[None]

  def loss(
    self, ids: Int[Array, "N Q"], state: Float[Array, "N D"]
  ) -> Float[Array, "N"]:
    """Cross-entropy of a token in nats, the sum of its levels'."""
    logits = self(state, ids)
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids).sum(-1)

  def sample(
    self, state: Float[Array, "N D"], rng: PRNGKeyArray, temperature: float = 1.0
  ) -> Int[Array, "N Q"]:
    """Ids, level after level.

    Args:
      state: what each token is drawn given.
      rng: of the draws.
      temperature: above 0; 1: as learnt.
    """
    given, ids = self.state_in(state), []
    for q in range(self.levels):
      h = self._mixed(given + self.level[None, q])
      logits = (h @ self.out[q] + self.bias[None, q]) / temperature
      key = jax.random.fold_in(rng, q)
      ids.append(jax.random.categorical(key, logits).astype(jnp.int32))
      given = given + self.embed[q][ids[-1]]
    return jnp.stack(ids, -1)

  def read(self, ids: Int[Array, "N Q"]) -> Float[Array, "N w"]:
    """Tokens as the backbone reads them: the sum of their codes' embeddings."""
    return self._embedded(ids).sum(1)

  def _embedded(self, ids: Int[Array, "N Q"]) -> Float[Array, "N Q w"]:
    return self.embed[jnp.arange(self.levels)[None], ids]

  def _mixed(self, h: Float[Array, "... w"]) -> Float[Array, "... w"]:
    for norm, up, down in zip(self.norms, self.up, self.down, strict=False):
      h = h + down(nn.silu(up(norm(h))))
    return self.norms[-1](h)


def _norm() -> nn.LayerNorm:
  return nn.LayerNorm(1e-6, use_bias=False, use_scale=False)
