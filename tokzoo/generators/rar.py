"""RAR: an autoregressive generator trained on randomly permuted orders, annealed to raster.

Yu et al., "Randomized Autoregressive Visual Generation", arXiv 2411.00776. Written from what
bytedance/1d-tokenizer @ 942a96f computes (`modeling/rar.py`, the loss in
`modeling/modules/losses.py`); weights on the hub: yucornetto/RAR.

Sequence: [cls (a learnt vector), class, token 1, ..., token N] in some order; the output at a
place predicts the next token, and that of cls is dropped. One embedding table holds the codes
(ids 0 to V - 1), a mask that nothing reads (V), the classes, and "no class".

  Positions          each token bears the row of its place in the image, wherever it stands
  Target-aware       each place also bears the row of the token that it is to predict; cls and
                     the last token bear none
  Condition (adaLN)  class embedding + a row for the place in the sequence
  Order              with probability r a sample's tokens are permuted uniformly, else raster;
                     r falls from 1 to 0 between two steps of the training (`loss_settings`)

Quirks of the published weights, kept: the head's modulation is (scale, shift) where the blocks'
is (shift, scale, gate); the tables are longer than what is read of them.

Differences from the source: sampling is one loop over a cache that holds cls and class; the
order is raster unless `loss` is told otherwise; dropout is on exactly when the rng stream
`dropout` is there.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.nn.decoder import (
  KeyValues,
  Memory,
  causal,
  padded,
  remember,
  so_far,
)
from tokzoo.nn.dropout import attend_dropping, dropped
from tokzoo.nn.labelled import (
  LabelledIds,
  drop_labels,
  require_ids,
  require_labels,
  with_null,
)
from tokzoo.nn.layers import merge_heads, rows_dot_general, split_heads
from tokzoo.nn.sampling import autoregress, check_sampling, draw, guide, numbered
from tokzoo.nn.schedules import power_cosine
from tokzoo.tokens import Tokens
from tokzoo.weights import Rule, Table, linear_rules, norm_rules

_INIT = nn.initializers.normal(0.02)
"""The authors' truncated normal cuts at 2, a hundred deviations, not at two."""


@dataclasses.dataclass(frozen=True)
class Config(LabelledIds):
  """Sizes of RAR; the defaults are the published RAR-B."""

  grid: tuple[int, ...] = (16, 16)
  """The shape that the tokens unfold to."""
  vocab: int = 1024
  """Codes of the tokenizer."""
  width: int = 768
  """Features of the transformer."""
  layers: int = 24
  """Blocks."""
  heads: int = 16
  """Of the attention."""
  mlp_width: int = 3072
  """Hidden features of the MLP."""
  num_classes: int = 1000
  """Class labels."""
  spare_positions: int = 1024
  """Rows of both position tables beyond the tokens'; two are read."""
  spare_conditions: int = 100
  """Rows of the condition's table beyond the tokens'; two are read."""
  norm_eps: float = 1e-6
  """Of every norm."""
  drop: float = 0.1
  """Probability of dropping a class in training."""
  dropout: float = 0.1
  """On the branches of a block and on attention weights, in training."""
  target_aware: bool = True
  """Whether a place knows which token it is to predict; False only for comparison."""
  anneal: tuple[int, int] = (125_000, 187_500)
  """Steps at which the probability of a random order begins to fall from 1, and reaches 0."""

  def build(self) -> "RAR":
    return RAR(self)

  @property
  def num_tokens(self) -> int:
    """Tokens per image."""
    return math.prod(self.grid)

  def loss_settings(self, step: Int[Array, ""]) -> dict[str, Float[Array, ""]]:
    """What `loss` is given at a step of the training: the probability of a random order."""
    start, end = self.anneal
    fallen = (step.astype(jnp.float32) - start) / max(end - start, 1)
    return {"random_order": 1 - jnp.clip(fallen, 0.0, 1.0)}


class Attention(nn.Module):
  """Self-attention with a norm on queries and keys of each head."""

  config: Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B Q D"],
    mask: Bool[Array, "1 1 Q K"],
    memory: KeyValues | None = None,
    start: Int[Array, ""] | None = None,
  ) -> tuple[Float[Array, "B Q D"], KeyValues]:
    c = self.config
    q, k, v = (
      split_heads(part, c.width // c.heads)
      for part in jnp.split(_dense(3 * c.width, "qkv")(x), 3, axis=-1)
    )
    q, k = _norm(c, "q_norm")(q), _norm(c, "k_norm")(k)
    memory = remember(k, v, memory, start)
    attended = attend_dropping(self, q, memory.keys, memory.values, mask, c.dropout)
    out = _dense(c.width, "proj")(merge_heads(attended))
    return dropped(self, out, c.dropout), memory


class Block(nn.Module):
  """adaLN block; every place has a condition of its own."""

  config: Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B Q D"],
    condition: Float[Array, "B Q D"],
    mask: Bool[Array, "1 1 Q K"],
    memory: KeyValues | None = None,
    start: Int[Array, ""] | None = None,
  ) -> tuple[Float[Array, "B Q D"], KeyValues]:
    c = self.config
    modulation = _modulation(6 * c.width, "modulation")(nn.silu(condition))
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(
      modulation, 6, axis=-1
    )
    h = _norm(c, "norm1")(x) * (1 + scale) + shift
    attended, memory = Attention(c, name="attn")(h, mask, memory, start)
    x = x + gate * attended
    h = _norm(c, "norm2")(x) * (1 + mlp_scale) + mlp_shift
    h = nn.gelu(_dense(c.mlp_width, "fc1")(h), approximate=False)
    h = _dense(c.width, "fc2")(dropped(self, h, c.dropout))
    x = x + mlp_gate * dropped(self, h, c.dropout)
    return checkpoint_name(x, "block"), memory


class RAR(nn.Module):
  """The generator (contract: `tokzoo.contract.Generator`)."""

  config: Config

  def setup(self):
    c = self.config
    # Codes, the mask, the classes, "no class".
    rows = c.vocab + 1 + c.num_classes + 1
    self.embeddings = nn.Embed(rows, c.width, embedding_init=_INIT)
    self.cls_token = self.param("cls_token", nn.initializers.zeros, (1, 1, c.width))
    positions = 1, c.num_tokens + c.spare_positions, c.width
    self.pos_embed = self.param("pos_embed", _INIT, positions)
    self.target_aware_pos_embed = self.param("target_aware_pos_embed", _INIT, positions)
    conditions = 1, c.num_tokens + c.spare_conditions, c.width
    self.timesteps_embeddings = self.param("timesteps_embeddings", _INIT, conditions)
    self.blocks = [Block(c) for _ in range(c.layers)]
    self.norm = nn.LayerNorm(
      c.norm_eps, use_bias=False, use_scale=False, use_fast_variance=False
    )
    self.modulation = _modulation(2 * c.width, "modulation")
    self.lm_head = _dense(c.vocab, "lm_head")

  def __call__(
    self,
    ids: Int[Array, "B L"],
    labels: Int[Array, "B"],
    order: Int[Array, "B N"] | None = None,
  ) -> Float[Array, "B L+1 V"]:
    """Teacher-forced logits, float32: entry j predicts token j of the order.

    Args:
      ids: tokens as they follow in `order`, from the first on; L is at most N.
      labels: classes; num_classes is "no class".
      order: place in the image of each of the N tokens; None: raster.
    """
    c = self.config
    if order is None:
      order = jnp.broadcast_to(jnp.arange(c.num_tokens), (ids.shape[0], c.num_tokens))
    length = ids.shape[1] + 2
    classes = self._class(labels)
    cls = jnp.broadcast_to(self.cls_token, classes.shape)
    tokens = self.embeddings(jnp.asarray(ids, jnp.int32))
    x = jnp.concatenate([cls, classes, tokens], axis=1)
    rows = 2 + order
    prefix = jnp.broadcast_to(jnp.arange(2), (ids.shape[0], 2))
    places = jnp.concatenate([prefix, rows], axis=1)[:, :length]
    x = x + jnp.take(self.pos_embed[0], places, axis=0)
    if c.target_aware:
      # From class on, each place bears the row of the token that follows it.
      table, following = self.target_aware_pos_embed[0], rows[:, : length - 1]
      targets = jnp.take(table, following, axis=0)
      room = ((0, 0), (1, length - 1 - targets.shape[1]), (0, 0))
      x = x + jnp.pad(targets, room)
    condition = classes + self.timesteps_embeddings[:, :length]
    for block in self.blocks:
      x, _ = block(x, condition, causal(length))
    return self._logits(x, condition)[:, 1:]

  def loss(
    self,
    tokens: Tokens,
    condition: Int[Array, "B"],
    rng: PRNGKeyArray,
    *,
    random_order: float | Float[Array, ""] = 0.0,
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean cross-entropy of every token given those before it in the order, in nats.

    Each sample is permuted with probability `random_order`. With the rng stream `dropout`
    (training), labels are dropped; both draw from `rng`.

    Raises:
      TokzooError: tokens or labels of another layout.
    """
    c = self.config
    ids = require_ids(tokens, c.num_tokens, c.vocab)
    order_rng, drop_rng = jax.random.split(rng)
    if self.has_rng("dropout"):
      condition = drop_labels(drop_rng, condition, c.drop, c.num_classes)
    order = draw_orders(order_rng, ids.shape[0], c.num_tokens, random_order)
    ids = jnp.take_along_axis(ids, order, axis=1)
    logits = self(ids, condition, order)[:, :-1]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, ids).mean()
    return loss, {"accuracy": (logits.argmax(-1) == ids).mean()}

  def start(self, labels: Int[Array, "B"]) -> tuple[Float[Array, "B V"], Memory]:
    """Logits of the first token, raster order, and the cache with room for all places."""
    c = self.config
    classes = self._class(labels)
    x = jnp.concatenate([jnp.broadcast_to(self.cls_token, classes.shape), classes], 1)
    x = x + self.pos_embed[:, :2]
    if c.target_aware:
      x = x.at[:, 1].add(self.target_aware_pos_embed[:, 2])
    condition = classes + self.timesteps_embeddings[:, :2]
    memory = []
    for block in self.blocks:
      x, kept = block(x, condition, causal(2))
      memory.append(kept)
    # Cls and class, and every token but the last, which predicts nothing.
    return self._logits(x, condition)[:, -1], padded(tuple(memory), c.num_tokens + 1)

  def step(
    self,
    ids: Int[Array, "B"],
    index: Int[Array, ""],
    memory: Memory,
    labels: Int[Array, "B"],
  ) -> tuple[Float[Array, "B V"], Memory]:
    """Logits of token `index` + 1, given token `index`, raster order."""
    c = self.config
    place = index + 2

    def row(table: Array, at: Array) -> Array:
      return jax.lax.dynamic_slice_in_dim(table, at, 1, axis=1)

    x = self.embeddings(ids)[:, None] + row(self.pos_embed, place)
    if c.target_aware:
      x = x + row(self.target_aware_pos_embed, place + 1)
    condition = self._class(labels) + row(self.timesteps_embeddings, place)
    mask, longer = so_far(place, c.num_tokens + 1), []
    for block, kept in zip(self.blocks, memory, strict=True):
      x, kept = block(x, condition, mask, kept, place)
      longer.append(kept)
    return self._logits(x, condition)[:, 0], tuple(longer)

  def sample(
    self,
    rng: PRNGKeyArray | None,
    condition: Int[Array, "B"],
    *,
    guidance: float = 16.0,
    guidance_power: float = 2.75,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
  ) -> Tokens:
    """Draws tokens one after the other in raster order.

    Args:
      rng: key of every draw; not needed at temperature 0.
      condition: labels, B rows.
      guidance: g; token i of N is drawn from u + s (c - u) with
        s = 1 + (g - 1) (1 - cos(pi (i / N)^power)) / 2, so the first is unguided. 0: none.
      guidance_power: bends that rise; 0: s = g throughout.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw among so many; 0: all (as published).
      top_p: draw among the likeliest of so much probability; 1: all (as published).

    Raises:
      TokzooError: settings or labels out of range.
    """
    c = self.config
    check_sampling(
      rng=rng,
      guidance=guidance,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      vocab=c.vocab,
    )
    guided = guidance != 0
    labels = require_labels(condition, c.num_classes)
    both = with_null(labels, c.num_classes, guided)
    # A loop of jax calls a module that is not bound to an outer trace.
    module, variables = self.unbind()
    first, memory = module.apply(variables, both, method=module.start)

    def draw_token(i, logits):
      if guided:
        ratio = jnp.asarray(i, jnp.float32) / c.num_tokens
        logits = guide(logits, power_cosine(ratio, guidance, guidance_power))
      return draw(numbered(rng, i), logits, temperature, top_k, top_p)

    def step(ids, index, memory):
      doubled = jnp.concatenate([ids, ids]) if guided else ids
      return module.apply(variables, doubled, index, memory, both, method=module.step)

    ids = autoregress(first, memory, draw_token, step, c.num_tokens)
    return Tokens.from_ids(ids, c.vocab, grid=c.grid)

  def _class(self, labels: Int[Array, "B"]) -> Float[Array, "B 1 D"]:
    c = self.config
    rows = require_labels(labels, c.num_classes) + c.vocab + 1
    return self.embeddings(rows)[:, None]

  def _logits(
    self, x: Float[Array, "B Q D"], condition: Float[Array, "B Q D"]
  ) -> Float[Array, "B Q V"]:
    # (scale, shift): the other way round than in the blocks.
    scale, shift = jnp.split(self.modulation(nn.silu(condition)), 2, axis=-1)
    return self.lm_head(self.norm(x) * (1 + scale) + shift).astype(jnp.float32)


def draw_orders(
  rng: PRNGKeyArray, batch: int, length: int, probability: float | Float[Array, ""]
) -> Int[Array, "B N"]:
  """Orders of tokens: a uniform permutation with `probability`, else raster."""
  key_rng, coin_rng = jax.random.split(rng)
  shuffled = jnp.argsort(jax.random.uniform(key_rng, (batch, length)), axis=1)
  is_random = jax.random.bernoulli(coin_rng, probability, (batch, 1))
  return jnp.where(is_random, shuffled, jnp.arange(length)[None])


def _dense(features: int, name: str) -> nn.Dense:
  return nn.Dense(features, kernel_init=_INIT, dot_general=rows_dot_general, name=name)


def _modulation(features: int, name: str) -> nn.Dense:
  """Zero at first: every block starts as the identity."""
  zeros = nn.initializers.zeros
  return nn.Dense(features, kernel_init=zeros, dot_general=rows_dot_general, name=name)


def _norm(config: Config, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(config.norm_eps, use_fast_variance=False, name=name)


PRESETS = {
  "rar-b": Config(),
  "rar-l": Config(width=1024, mlp_width=4096),
  "rar-xl": Config(width=1280, layers=32, mlp_width=5120),
  "rar-xxl": Config(width=1408, layers=40, mlp_width=6144),
}

_BLOCK, _PATH = "blocks.{i}", "params/blocks_{i}"

WEIGHTS = Table(
  rules=(
    Rule("embeddings.weight", "params/embeddings/embedding"),
    Rule("cls_token", "params/cls_token"),
    Rule("pos_embed", "params/pos_embed"),
    Rule("target_aware_pos_embed", "params/target_aware_pos_embed"),
    Rule("timesteps_embeddings", "params/timesteps_embeddings"),
    *norm_rules(f"{_BLOCK}.attn.{{x}}_norm", f"{_PATH}/attn/{{x}}_norm"),
    *linear_rules(f"{_BLOCK}.attn.{{x}}", f"{_PATH}/attn/{{x}}"),
    *linear_rules(f"{_BLOCK}.mlp.fc{{n}}", f"{_PATH}/fc{{n}}"),
    *linear_rules(f"{_BLOCK}.adaLN_modulation.1", f"{_PATH}/modulation"),
    *norm_rules(f"{_BLOCK}.norm{{n}}", f"{_PATH}/norm{{n}}"),
    *linear_rules("adaln_before_head.adaLN_modulation.1", "params/modulation"),
    *linear_rules("lm_head", "params/lm_head"),
  )
)
