"""QINCo: residual quantization whose codebooks are networks of what was decoded so far.

Huijben et al., "Residual Quantization with Implicit Neural Codebooks" (arXiv 2401.14732).
With xhat_i the sum of the first i codes, xhat_0 = 0,

  level 0      plain codes, c_k
  level i > 0  f_i(c_k, xhat_i): x = c_k + A [c_k, xhat_i] + a, then for each block
               x = x + U relu(V x + v) + u

so that a level adapts its codewords to the cell it refines. The search is exact: every code
of a level is passed through f for every latent, in blocks of codes.

A and U begin at zero, so that training begins from plain residual quantization.
vector_quantize_pytorch has SiLU for relu, four blocks, and no way around A.

Losses, unweighted, means over levels: `codebook` mean (sg z - xhat_{i+1})^2, from which
codes and networks learn, and `commitment` mean (z - sg xhat_{i+1})^2.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokzoo.contract import Quantized
from tokzoo.quantizers.codebook import nearest
from tokzoo.quantizers.gradients import straight_through
from tokzoo.quantizers.masks import count_codes, hide, latents, losses_in, masked_mean

_EXACT = jax.lax.Precision.HIGHEST
_BLOCK = 32

Network = dict[str, Array]
"""Weights of f_i: `mix` [2 D, D] and `mix_bias`, and for each block `up` [P, D, H], `up_bias`,
`down` [P, H, D] and `down_bias`."""


def adapt(
  network: Network, codes: Float[Array, "*N D"], partial: Float[Array, "*N D"]
) -> Float[Array, "*N D"]:
  """f(codes, partial): codes adapted to the partial sums that they refine."""

  def linear(x: Array, kernel: Array, bias: Array) -> Array:
    bias = bias.reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.matmul(x, kernel, precision=_EXACT) + bias

  both = jnp.concatenate([codes, partial], axis=-1)
  x = codes + linear(both, network["mix"], network["mix_bias"])
  for block in range(network["up"].shape[0]):
    hidden = nn.relu(linear(x, network["up"][block], network["up_bias"][block]))
    x = x + linear(hidden, network["down"][block], network["down_bias"][block])
  return x


def nearest_adapted(
  network: Network,
  codes: Float[Array, "K D"],
  partial: Float[Array, "N D"],
  rest: Float[Array, "N D"],
) -> Int[Array, "N"]:
  """argmin_k |rest - f(c_k, partial)|^2, the lowest id of a tie; int32[N].

  Walks through the codes in blocks of 32, so that 32 N codewords lie in memory and tokens
  that are split over devices stay where they are.
  """
  block = min(_BLOCK, codes.shape[0])
  padding = -codes.shape[0] % block
  blocks = jnp.pad(codes, ((0, padding), (0, 0))).reshape(-1, block, codes.shape[1])
  first_ids = jnp.arange(0, codes.shape[0] + padding, block, dtype=jnp.int32)

  def visit(best, block_of):
    block_codes, first = block_of
    shape = (rest.shape[0], *block_codes.shape)
    adapted = adapt(
      network,
      jnp.broadcast_to(block_codes[None], shape),
      jnp.broadcast_to(partial[:, None], shape),
    )
    error = jnp.sum((rest[:, None] - adapted) ** 2, axis=-1)
    ids = first + jnp.arange(block, dtype=jnp.int32)
    error = jnp.where((ids < codes.shape[0])[None], error, jnp.inf)
    found = jnp.argmin(error, axis=-1).astype(jnp.int32)
    least = jnp.min(error, axis=-1)
    is_nearer = least < best[0]
    return (
      jnp.where(is_nearer, least, best[0]),
      jnp.where(is_nearer, found + first, best[1]),
    ), None

  start = (jnp.full(rest.shape[0], jnp.inf), jnp.zeros(rest.shape[0], jnp.int32))
  return jax.lax.scan(visit, start, (blocks, first_ids))[0][1]


class Qinco(nn.Module):
  """Residual quantization with implicit neural codebooks over the last axis.

  num_codes:   K of each level
  dim:         D
  depth:       Q, levels
  hidden:      H, width of a block; None: D
  num_blocks:  P, blocks of a network
  codes_init:  of the codes, [Q, K, D]

  The gradient is straight through around the sum.
  """

  num_codes: int
  dim: int
  depth: int
  hidden: int | None = None
  num_blocks: int = 2
  codes_init: nn.initializers.Initializer = nn.initializers.normal(1.0)

  @property
  def id_groups(self) -> int:
    """Ids per token."""
    return self.depth

  @property
  def bits_per_token(self) -> float:
    return self.depth * math.log2(self.num_codes)

  def setup(self):
    shape = (self.depth, self.num_codes, self.dim)
    self.codes = self.param("codes", self.codes_init, shape, jnp.float32)
    hidden, dim = self.hidden or self.dim, self.dim
    zeros = nn.initializers.zeros
    random = nn.initializers.variance_scaling(
      1.0, "fan_in", "truncated_normal", batch_axis=(0, 1)
    )
    inits = {
      "mix": (zeros, (2 * dim, dim)),
      "mix_bias": (zeros, (dim,)),
      "up": (random, (self.num_blocks, dim, hidden)),
      "up_bias": (zeros, (self.num_blocks, hidden)),
      "down": (zeros, (self.num_blocks, hidden, dim)),
      "down_bias": (zeros, (self.num_blocks, dim)),
    }
    self.networks = {
      name: self.param(name, init, (self.depth - 1, *shape), jnp.float32)
      for name, (init, shape) in inits.items()
    }

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized:
    """Quantizes latents of any float dtype. Ids: int32[B, L, Q]. Stats: `counts`
    int32[Q, K]."""
    if z.shape[-1] != self.dim:
      raise ValueError(f"codes of {self.dim} features, latents of {z.shape[-1]}.")
    z = latents(z, mask)
    ids = self.codes_to_ids(z)
    sums = self.ids_to_partial_sums(ids)
    fixed_sums, fixed = jax.lax.stop_gradient((sums, z))
    by_level = {"commitment": z[None] - fixed_sums, "codebook": fixed[None] - sums}
    losses = {
      name: masked_mean(jnp.moveaxis(offset, 0, -1) ** 2, mask)
      for name, offset in by_level.items()
    }
    values, ids = hide(straight_through(z, sums[-1]), ids, mask)
    counts = [count_codes(ids[..., i], self.num_codes) for i in range(self.depth)]
    stats = {"counts": jnp.stack(counts)}
    return Quantized(values, ids, losses_in(train, losses), stats)

  def ids_to_codes(self, ids: Int[Array, "*N Q"]) -> Float[Array, "*N D"]:
    """The sums of the codes of ids in [0, K). An id of -1 adds 0, and the ids may be those
    of the first levels only."""
    return self.ids_to_partial_sums(ids)[-1]

  def ids_to_partial_sums(self, ids: Int[Array, "*N q"]) -> Float[Array, "q *N D"]:
    """The sums of the codes of the first 1, ..., q <= Q levels."""
    if ids.shape[-1] > self.depth:
      raise ValueError(
        f"ids of {ids.shape[-1]} levels, of which there are {self.depth}."
      )
    total = jnp.zeros((*ids.shape[:-1], self.dim))
    sums = []
    for level in range(ids.shape[-1]):
      code = self.codes[level][jnp.maximum(ids[..., level], 0)]
      if level > 0:
        code = adapt(self._network(level), code, total)
      total = total + jnp.where(ids[..., level, None] < 0, 0.0, code)
      sums.append(total)
    return jnp.stack(sums)

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N Q"]:
    """Ids whose codes add up to `codes` as nearly as greedy search finds."""
    z = jax.lax.stop_gradient(codes.astype(jnp.float32)).reshape(-1, self.dim)
    books = jax.lax.stop_gradient(self.codes)
    ids, total = [], jnp.zeros_like(z)
    for level in range(self.depth):
      if level == 0:
        found = nearest(z, books[0], "euclidean")
        total = books[0][found]
      else:
        network = jax.lax.stop_gradient(self._network(level))
        found = nearest_adapted(network, books[level], total, z - total)
        total = total + adapt(network, books[level][found], total)
      ids.append(found)
    return jnp.stack(ids, axis=-1).reshape(*codes.shape[:-1], self.depth)

  def _network(self, level: int) -> Network:
    """That of a level from 1 on."""
    return {name: weights[level - 1] for name, weights in self.networks.items()}
