"""Instella-T2I's generators: binary diffusion and an autoregressive model of binary tokens.

Wang et al., "Instella-T2I: Pushing the Limits of 1D Discrete Latent Space Image Generation",
arXiv 2506.21022. Written from the paper and from what AMD-AIG-AIMA/Instella-T2I @ 9a1a753
computes (`models.diff_model`, `models.ar_model`); weights on the hub: amd/Instella-T2I,
research use only.

Both are transformers over the bits `[B, L, m]` of one image. Block i attends from the image
tokens to [linear_i(condition of layer i), image tokens]; the condition is never updated.

  Diffusion       x_t: each bit ~ Bernoulli((1 - t) b + t/2); the network predicts the logit
                  that a bit was flipped; binary cross-entropy to the clean bits
  Autoregressive  start vector and the tokens so far -> m independent bit logits of the next

Condition, an input of every call:
  text    `TextFeatures`: every hidden layer of a frozen language model, layer i for block i
          (published: AMD-OLMo-1B, 16 layers of width 2048, prompts padded on the LEFT). A
          dropped prompt is the empty string, so dropping happens where features are made.
  class   `int32[B]` labels, with `Config.num_classes` set; the label num_classes means "no
          class", and training puts it in place of a label with probability `drop`.

Differences from the source: sampling of the autoregressive model keeps keys and values in a
cache (the source recomputes them: the same numbers); class labels are ours, for small runs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.errors import TokzooError
from tokzoo.nn.layers import MLP, attend, merge_heads, split_heads
from tokzoo.tokens import Tokens
from tokzoo.weights import LINEAR, Rule, Table


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a generator; the defaults are the published ones."""

  num_tokens: int = 128
  """Tokens per image."""
  bits: int = 64
  """Bits per token."""
  width: int = 2048
  """Features of the transformer."""
  layers: int = 16
  """Blocks; a text condition has one feature map for each."""
  head_dim: int = 128
  """Features per head."""
  mlp_ratio: float = 4.0
  """Hidden features of the MLP over its width."""
  condition_width: int = 2048
  """Features of the text condition, or of the class embedding."""
  num_classes: int | None = None
  """Class labels instead of text; None: text."""
  drop: float = 0.1
  """Probability of dropping a class label in training."""
  norm_eps: float = 1e-6
  """Of every norm."""


@struct.dataclass
class TextFeatures:
  """The hidden states of a frozen language model.

  features:  float[layers, B, T, C], layer i for block i
  mask:      bool[B, T], False at padding (on the left in the published set-up)
  """

  features: Float[Array, "N B T C"]
  mask: Bool[Array, "B T"]


Condition = TextFeatures | Int[Array, "B"]
Uniform = Callable[[Any], Float[Array, "..."]]
"""draw number -> uniform numbers in [0, 1) of the shape that is drawn."""


class ContextEmbedder(nn.Module):
  """Class labels as text features of one token; text passes unchanged."""

  config: Config

  @nn.compact
  def __call__(self, condition: Condition) -> TextFeatures:
    c = self.config
    if c.num_classes is None:
      if not isinstance(condition, TextFeatures):
        raise TokzooError(
          "this generator is conditioned on text: pass TextFeatures (features, mask)."
        )
      layers, _, _, width = condition.features.shape
      if (layers, width) != (c.layers, c.condition_width):
        raise TokzooError(
          f"text features of {layers} layers of width {width} came; this generator reads "
          f"{c.layers} layers of width {c.condition_width}: use the language model it was "
          "trained with."
        )
      return condition
    if isinstance(condition, TextFeatures):
      raise TokzooError("this generator is conditioned on class labels: pass int32[B].")
    # One row more than there are classes: the last stands for "no class".
    embedding = nn.Embed(c.num_classes + 1, c.condition_width, name="classes")(
      condition
    )
    features = jnp.broadcast_to(
      embedding[None, :, None, :], (c.layers, embedding.shape[0], 1, c.condition_width)
    )
    return TextFeatures(features, jnp.ones((embedding.shape[0], 1), bool))


class Attention(nn.Module):
  """Queries from the image tokens; keys and values from whatever is remembered."""

  head_dim: int
  width: int
  eps: float

  def setup(self):
    self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
      nn.Dense(self.width, use_bias=False) for _ in range(4)
    )
    self.norm_q, self.norm_k = nn.RMSNorm(self.eps), nn.RMSNorm(self.eps)

  def remember(self, x: Float[Array, "B K D"]) -> tuple[Array, Array]:
    """Keys and values of `x`, `[B, K, H, d]` each."""
    keys = self.norm_k(split_heads(self.k_proj(x), self.head_dim))
    return keys, split_heads(self.v_proj(x), self.head_dim)

  def __call__(self, x: Float[Array, "B Q D"], memory: tuple, mask: Array) -> Array:
    queries = self.norm_q(split_heads(self.q_proj(x), self.head_dim))
    return self.o_proj(merge_heads(attend(queries, *memory, mask=mask)))


# ---------------------------------------------------------------- binary diffusion


class DiffusionBlock(nn.Module):
  """adaLN block (DiT) whose attention also sees the condition."""

  config: Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    time: Float[Array, "B D"],
    context: Float[Array, "B T C"],
    mask: Bool[Array, "B 1 1 K"],
  ) -> Float[Array, "B L D"]:
    c = self.config
    modulation = _dense(6 * c.width, "modulation")(nn.silu(time))[:, None, :]
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(
      modulation, 6, axis=-1
    )
    positions = self.param("pos_emb", nn.initializers.zeros, (1, c.num_tokens, c.width))
    h = _layer_norm(c, x) * (1 + scale) + shift + positions.astype(x.dtype)
    context = _dense(c.width, "proj_cond")(context)
    attention = Attention(c.head_dim, c.width, c.norm_eps, name="attn")
    memory = attention.remember(jnp.concatenate([context, h], axis=1))
    x = x + gate * attention(h, memory, mask)
    h = _layer_norm(c, x) * (1 + mlp_scale) + mlp_shift
    x = x + mlp_gate * MLP(int(c.width * c.mlp_ratio), name="mlp")(h)
    return checkpoint_name(x, "block")


class InstellaDiffusion(nn.Module):
  """Binary diffusion (contract: `tokzoo.contract.Generator`)."""

  config: Config

  @nn.compact
  def __call__(
    self, x_t: Float[Array, "B L m"], t: Float[Array, "B"], condition: Condition
  ) -> Float[Array, "B L m"]:
    """The logit that each bit of `x_t` was flipped, at time `t` in [0, 1]."""
    c = self.config
    text = ContextEmbedder(c, name="context")(condition)
    # A plain number goes in: no sinusoids.
    time = _dense(c.width, "time_1")(t[:, None])
    time = _dense(c.width, "time_2")(nn.silu(time))
    x = _dense(c.width, "x_embedder")(x_t)
    seen = jnp.concatenate([text.mask, jnp.ones(x.shape[:2], bool)], axis=1)[
      :, None, None
    ]
    for i in range(c.layers):
      block = DiffusionBlock(c, name=f"blocks_{i}")
      x = block(x, time, text.features[i].astype(x.dtype), seen)
    modulation = _dense(2 * c.width, "modulation_out")(nn.silu(time))[:, None, :]
    # The last layer's order is (scale, shift), unlike the blocks'.
    scale, shift = jnp.split(modulation, 2, axis=-1)
    x = _layer_norm(c, x) * (1 + scale) + shift
    return _dense(c.bits, "proj_out")(x)

  def loss(
    self, tokens: Tokens, condition: Condition, rng: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean binary cross-entropy of the clean bits at t ~ sigmoid(N(0, 1)), in nats."""
    time_rng, noise_rng, drop_rng = jax.random.split(rng, 3)
    bits = tokens.unpacked().astype(jnp.float32)
    t = nn.sigmoid(jax.random.normal(time_rng, bits.shape[:1]))
    x_t = add_noise(bits, t, jax.random.uniform(noise_rng, bits.shape))
    condition = drop_classes(self.config, condition, drop_rng)
    logits = self.bit_logits(x_t, t, condition)
    loss = optax.sigmoid_binary_cross_entropy(logits, bits).mean()
    return loss, {"bit_accuracy": ((logits > 0) == (bits > 0.5)).mean()}

  def bit_logits(self, x_t: Array, t: Array, condition: Condition) -> Array:
    """Logits of the clean bits: a flip speaks against what `x_t` shows. Float32."""
    dtype = jax.tree.leaves(self.variables["params"])[0].dtype
    flip = self(x_t.astype(dtype), t.astype(dtype), condition).astype(jnp.float32)
    return (1 - 2 * x_t) * flip

  def sample(
    self,
    rng: PRNGKeyArray | None,
    condition: Condition,
    *,
    null: Condition | None = None,
    steps: int = 20,
    guidance: float = 7.5,
    temperature: float = 1.0,
    rho: float = 1.0,
    protocol: int = 1,
    uniform: Uniform | None = None,
  ) -> Tokens:
    """Draws tokens, from fair coin flips to clean bits.

    Args:
      rng: key of every draw; not needed with `uniform`.
      condition: what to draw for, B rows.
      null: the unconditional rows that guidance leads away from: features of the empty
        prompt. Class models make their own.
      steps: network calls; t_i = (1 - i / steps) ** rho.
      guidance: s in (1 + s) conditional - s unconditional; 0 needs no `null`.
      temperature: divides the logits.
      rho: bends the times.
      protocol: 1 draws x ~ Bernoulli((1 - t') p + t'/2); 2 weighs by the step from x (both
        as in the source).
      uniform: draw number k -> float32[B, L, m], in place of `rng` (draw 0 is the start).

    Raises:
      TokzooError: settings out of range, or guidance on text without `null`.
    """
    _check_sampling(steps, temperature, protocol)
    c = self.config
    batch = jax.tree.leaves(condition)[-1].shape[0]
    uniform = uniform or _uniform(rng, (batch, c.num_tokens, c.bits))
    both = guided_condition(c, condition, null, guidance)
    # A loop of jax calls a module that is not bound to an outer trace.
    module, variables = self.unbind()

    def clean_probability(x, t):
      rows = x.shape[0]
      doubled = x if guidance == 0 else jnp.concatenate([x, x])
      raw = module.apply(variables, doubled, jnp.full(doubled.shape[:1], t), both)
      flip = nn.sigmoid(guide(raw / temperature, rows, guidance))
      return x * (1 - flip) + (1 - x) * flip

    def step(x, scanned):
      k, t, t_next = scanned
      p = clean_probability(x, t)
      if protocol == 1:
        p_next = p * (1 - t_next) + 0.5 * t_next
      else:
        on = (p * (1 - t_next) + 0.5 * t_next) * (x - (t - t_next) * (x - 0.5))
        off_x = 1 - x
        off = ((1 - p) * (1 - t_next) + 0.5 * t_next) * (
          off_x - (t - t_next) * (off_x - 0.5)
        )
        p_next = on / (on + off)
      return (uniform(k) < p_next).astype(jnp.float32), None

    times = (1.0 - jnp.arange(steps, dtype=jnp.float32) / steps) ** rho
    x = (uniform(0) < 0.5).astype(jnp.float32)
    draws = jnp.arange(1, steps)
    x, _ = jax.lax.scan(step, x, (draws, times[:-1], times[1:]))
    return Tokens.from_bits(clean_probability(x, times[-1]) > 0.5)


def add_noise(
  bits: Float[Array, "B L m"], t: Float[Array, "B"], uniform: Float[Array, "B L m"]
) -> Float[Array, "B L m"]:
  """x_t: each bit is replaced by a fair coin with probability t."""
  t = t[:, None, None]
  return (uniform < (1 - t) * bits + 0.5 * t).astype(jnp.float32)


# ---------------------------------------------------------------- autoregressive


@struct.dataclass
class Cache:
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

  config: Config

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

  config: Config

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
    _check_sampling(1, max(temperature, 1e-9), 1)
    c = self.config
    batch = jax.tree.leaves(condition)[-1].shape[0]
    uniform = uniform or _uniform(rng, (batch, c.bits))
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


# ---------------------------------------------------------------- shared by both


def drop_classes(config: Config, condition: Condition, rng: PRNGKeyArray) -> Condition:
  """Puts "no class" in place of some labels; text passes (its prompts are dropped earlier)."""
  if config.num_classes is None:
    return condition
  dropped = jax.random.bernoulli(rng, config.drop, condition.shape)
  return jnp.where(dropped, config.num_classes, condition)


def guided_condition(
  config: Config, condition: Condition, null: Condition | None, guidance: float
) -> Condition:
  """The conditional rows, then the unconditional ones if guidance needs them."""
  if guidance == 0:
    return condition
  if config.num_classes is not None:
    return jnp.concatenate([condition, jnp.full_like(condition, config.num_classes)])
  if null is None:
    raise TokzooError(
      "guidance on text needs the features of the empty prompt: pass null=TextFeatures(...), "
      "or guidance=0."
    )
  return TextFeatures(
    jnp.concatenate([condition.features, null.features], axis=1),
    jnp.concatenate([condition.mask, null.mask]),
  )


def guide(
  raw: Float[Array, "2B ..."], rows: int, guidance: float
) -> Float[Array, "B ..."]:
  """Classifier-free guidance: (1 + s) conditional - s unconditional."""
  if guidance == 0:
    return raw
  return (1 + guidance) * raw[:rows] - guidance * raw[rows:]


def _uniform(rng: PRNGKeyArray | None, shape: tuple[int, ...]) -> Uniform:
  if rng is None:
    raise TokzooError("sampling needs a random key: pass rng=jax.random.key(seed).")
  return lambda k: jax.random.uniform(jax.random.fold_in(rng, k), shape)


def _check_sampling(steps: int, temperature: float, protocol: int) -> None:
  if steps < 1 or temperature <= 0 or protocol not in (1, 2):
    raise TokzooError(
      f"sampling with steps {steps}, temperature {temperature}, protocol {protocol}: steps is "
      "at least 1, the temperature above 0, the protocol 1 or 2."
    )


def _dense(features: int, name: str) -> nn.Dense:
  """A linear layer with the diffusion model's published initialisation."""
  return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform(), name=name)


def _layer_norm(config: Config, x: Array) -> Array:
  """LayerNorm without weights."""
  norm = nn.LayerNorm(epsilon=config.norm_eps, use_bias=False, use_scale=False)
  return norm(x)


PRESETS = {
  "instella-diffusion": Config(),
  "instella-ar": Config(),
}


def _linear(key: str, path: str) -> tuple[Rule, Rule]:
  return Rule(f"{key}.weight", f"{path}/kernel", LINEAR), Rule(
    f"{key}.bias", f"{path}/bias"
  )


_BLOCK, _PATH = "transformer_blocks.{i}", "params/blocks_{i}"
_SHARED = (
  Rule(f"{_BLOCK}.attn.norm_{{x}}.weight", f"{_PATH}/attn/norm_{{x}}/scale"),
  Rule(f"{_BLOCK}.attn.{{name}}.weight", f"{_PATH}/attn/{{name}}/kernel", LINEAR),
  Rule(f"{_BLOCK}.pos_emb", f"{_PATH}/pos_emb"),
  *_linear(f"{_BLOCK}.proj_cond", f"{_PATH}/proj_cond"),
  *_linear("x_embedder", "params/x_embedder"),
  *_linear("time_embed.linear_{n}", "params/time_{n}"),
  *_linear("proj_out", "params/proj_out"),
  # Ours alone: class models have no published weights.
  Rule("class_embed.weight", "params/context/classes/embedding"),
)

DIFFUSION_WEIGHTS = Table(
  rules=(
    *_SHARED,
    *_linear(f"{_BLOCK}.norm1.linear", f"{_PATH}/modulation"),
    *_linear(f"{_BLOCK}.ff.net.0.proj", f"{_PATH}/mlp/up_proj"),
    *_linear(f"{_BLOCK}.ff.net.2", f"{_PATH}/mlp/down_proj"),
    *_linear("norm_out.linear", "params/modulation_out"),
  )
)

AR_WEIGHTS = Table(
  rules=(
    *_SHARED,
    Rule("split_token", "params/split_token"),
    Rule(f"{_BLOCK}.input_layernorm.weight", f"{_PATH}/input_norm/scale"),
    Rule(f"{_BLOCK}.post_attention_layernorm.weight", f"{_PATH}/post_norm/scale"),
    *_linear(f"{_BLOCK}.mlp.net.0.proj", f"{_PATH}/mlp/up_proj"),
    *_linear(f"{_BLOCK}.mlp.net.2", f"{_PATH}/mlp/down_proj"),
    Rule("norm_out.weight", "params/norm_out/scale"),
  )
)
