"""Autoregressive model of the bits of Instella-T2I's tokens (arXiv 2506.21022)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.generators.instella_t2i.shared import (
  BLOCK,
  PATH,
  SHARED_WEIGHTS,
  Attention,
  Condition,
  Config,
  ContextEmbedder,
  Uniform,
  check_sampling,
  drop_classes,
  guide,
  guided_condition,
  uniform_draws,
)
from tokzoo.nn.layers import MLP
from tokzoo.tokens import Tokens
from tokzoo.weights import Rule, Table, linear_rules


@dataclasses.dataclass(frozen=True)
class ARConfig(Config):
  """Sizes of the autoregressive generator; the defaults are the published ones."""

  def build(self) -> "InstellaAR":
    return InstellaAR(self)


class Cache(struct.PyTreeNode):
  """What sampling remembers: keys and values of the condition and of the tokens so far.

  context:  per block, keys and values `[B, T, H, d]`
  tokens:   per block, keys and values `[B, L, H, d]`, filled up to the current token
  mask:     bool[B, T], the condition's
  """

  context: list[tuple[Array, Array]]
  tokens: list[tuple[Array, Array]]
  mask: Bool[Array, "B T"]


class AutoregressiveBlock(nn.Module):
  """Pre-norm block; image tokens are causal, the condition is seen by all."""

  config: ARConfig

  def setup(self):
    c = self.config
    self.input_norm, self.post_norm = nn.RMSNorm(c.norm_eps), nn.RMSNorm(c.norm_eps)
    self.proj_cond = nn.Dense(c.width)
    self.attn = Attention(c.head_dim, c.width, c.norm_eps)
    self.mlp = MLP(int(c.width * c.mlp_ratio))
    # One row more than there are tokens; the published weights have it, nothing reads it.
    self.pos_emb = self.param(
      "pos_emb", nn.initializers.zeros, (1, c.num_tokens + 1, c.width)
    )

  def __call__(self, x: Array, context: Array, mask: Array) -> Array:
    h = self.input_norm(x) + self.pos_emb[:, : x.shape[1]].astype(x.dtype)
    memory = self.attn.remember(jnp.concatenate([self.proj_cond(context), h], axis=1))
    return self._finish(x, self.attn(h, memory, mask))

  def remember_context(self, context: Array) -> tuple[Array, Array]:
    return self.attn.remember(self.proj_cond(context))

  def step(self, x: Array, index: Array, context: tuple, tokens: tuple, mask: Array):
    """One token `[B, 1, D]` at `index`; returns its output and the longer memory."""
    position = jax.lax.dynamic_slice_in_dim(self.pos_emb, index, 1, axis=1)
    h = self.input_norm(x) + position.astype(x.dtype)
    tokens = tuple(
      jax.lax.dynamic_update_slice_in_dim(old, new, index, axis=1)
      for old, new in zip(tokens, self.attn.remember(h), strict=True)
    )
    memory = tuple(
      jnp.concatenate(pair, axis=1) for pair in zip(context, tokens, strict=True)
    )
    return self._finish(x, self.attn(h, memory, mask)), tokens

  def _finish(self, x: Array, attended: Array) -> Array:
    x = x + attended
    return checkpoint_name(x + self.mlp(self.post_norm(x)), "block")


class InstellaAR(nn.Module):
  """The autoregressive generator (contract: `tokzoo.contract.Generator`)."""

  config: ARConfig

  def setup(self):
    c = self.config
    self.context = ContextEmbedder(c)
    self.x_embedder = nn.Dense(c.width)
    self.split_token = self.param(
      "split_token", nn.initializers.normal(0.02), (1, 1, c.width)
    )
    self.blocks = [AutoregressiveBlock(c) for _ in range(c.layers)]
    self.norm_out = nn.RMSNorm(c.norm_eps)
    self.proj_out = nn.Dense(c.bits)
    self.time_1, self.time_2 = nn.Dense(c.width), nn.Dense(c.width)

  def __call__(self, bits: Float[Array, "B L m"], condition: Condition) -> Array:
    """Teacher-forced logits `float32[B, L, m]`: entry i predicts `bits[:, i]`."""
    if self.is_initializing():
      # The published weights carry a time embedding that the model never reads.
      self.time_2(self.time_1(jnp.zeros((1, 1))))
    text = self.context(condition)
    start = jnp.broadcast_to(
      self.split_token, (bits.shape[0], 1, self.split_token.shape[-1])
    )
    embedded = self.x_embedder(bits[:, :-1].astype(start.dtype))
    x = jnp.concatenate([start, embedded], axis=1)
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    mask = jnp.concatenate(
      [
        jnp.broadcast_to(
          text.mask[:, None, None],
          (text.mask.shape[0], 1, x.shape[1], text.mask.shape[1]),
        ),
        jnp.broadcast_to(causal[None, None], (text.mask.shape[0], 1, *causal.shape)),
      ],
      axis=-1,
    )
    for block, features in zip(self.blocks, text.features, strict=True):
      x = block(x, features.astype(x.dtype), mask)
    return self.proj_out(self.norm_out(x)).astype(jnp.float32)

  def loss(
    self, tokens: Tokens, condition: Condition, rng: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean binary cross-entropy of every bit given the tokens before, in nats."""
    bits = tokens.unpacked().astype(jnp.float32)
    logits = self(bits, drop_classes(self.config, condition, rng))
    loss = optax.sigmoid_binary_cross_entropy(logits, bits).mean()
    return loss, {"bit_accuracy": ((logits > 0) == (bits > 0.5)).mean()}

  def start(self, condition: Condition) -> Cache:
    """The cache before the first token."""
    c = self.config
    text = self.context(condition)
    dtype = self.split_token.dtype
    context = [
      block.remember_context(features.astype(dtype))
      for block, features in zip(self.blocks, text.features, strict=True)
    ]
    shape = (text.mask.shape[0], c.num_tokens, c.width // c.head_dim, c.head_dim)
    empty = jnp.zeros(shape, dtype)
    return Cache(context, [(empty, empty)] * c.layers, text.mask)

  def step(
    self, previous: Float[Array, "B m"], index: Int[Array, ""], cache: Cache
  ) -> tuple[Float[Array, "B m"], Cache]:
    """Logits of token `index` given the token before it (ignored at index 0)."""
    embedded = self.x_embedder(previous.astype(self.split_token.dtype))[:, None]
    x = jnp.where(index == 0, self.split_token, embedded)
    batch, length = x.shape[0], self.config.num_tokens
    so_far = jnp.broadcast_to((jnp.arange(length) <= index)[None], (batch, length))
    mask = jnp.concatenate([cache.mask, so_far], axis=1)[:, None, None]
    tokens = []
    for block, context, remembered in zip(
      self.blocks, cache.context, cache.tokens, strict=True
    ):
      x, remembered = block.step(x, index, context, remembered, mask)
      tokens.append(remembered)
    logits = self.proj_out(self.norm_out(x))[:, 0].astype(jnp.float32)
    return logits, cache.replace(tokens=tokens)

  def sample(
    self,
    rng: PRNGKeyArray | None,
    condition: Condition,
    *,
    null: Condition | None = None,
    guidance: float = 9.0,
    temperature: float = 0.5,
    uniform: Uniform | None = None,
  ) -> Tokens:
    """Draws tokens one after the other, the bits of one token independently.

    Args:
      rng: key of every draw; not needed with `uniform`.
      condition: what to draw for, B rows.
      null: as for `InstellaDiffusion.sample`.
      guidance: s in (1 + s) conditional - s unconditional; 0 needs no `null`.
      temperature: divides the logits; 0 takes the likelier value of every bit.
      uniform: token number -> float32[B, m], in place of `rng`.

    Raises:
      TokzooError: settings out of range, or guidance on text without `null`.
    """
    check_sampling(1, temperature or 1.0, 1)
    c = self.config
    batch = jax.tree.leaves(condition)[-1].shape[0]
    uniform = uniform or uniform_draws(rng, (batch, c.bits))
    both = guided_condition(c, condition, null, guidance)
    module, variables = self.unbind()
    cache = module.apply(variables, both, method=module.start)

    def step(carry, index):
      previous, cache = carry
      doubled = previous if guidance == 0 else jnp.concatenate([previous, previous])
      raw, cache = module.apply(variables, doubled, index, cache, method=module.step)
      logits = guide(raw, batch, guidance)
      if temperature == 0:
        bits = logits > 0
      else:
        bits = uniform(index) < nn.sigmoid(logits / temperature)
      return (bits.astype(jnp.float32), cache), bits

    first = jnp.zeros((batch, c.bits), jnp.float32)
    _, bits = jax.lax.scan(step, (first, cache), jnp.arange(c.num_tokens))
    return Tokens.from_bits(bits.swapaxes(0, 1))


PRESETS = {"instella-ar": ARConfig()}

AR_WEIGHTS = Table(
  rules=(
    *SHARED_WEIGHTS,
    Rule("split_token", "params/split_token"),
    Rule(f"{BLOCK}.input_layernorm.weight", f"{PATH}/input_norm/scale"),
    Rule(f"{BLOCK}.post_attention_layernorm.weight", f"{PATH}/post_norm/scale"),
    *linear_rules(f"{BLOCK}.mlp.net.0.proj", f"{PATH}/mlp/up_proj"),
    *linear_rules(f"{BLOCK}.mlp.net.2", f"{PATH}/mlp/down_proj"),
    Rule("norm_out.weight", "params/norm_out/scale"),
  )
)
