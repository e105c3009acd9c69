"""Open-MAGVIT2's and IBQ's generators: Llama over image tokens, with a factorised or a plain
head.

Luo et al., "Open-MAGVIT2", arXiv 2409.04410, and Shi et al., "Scalable Image Tokenization with
Index Backpropagation Quantization", arXiv 2412.02692. Written from what TencentARC/SEED-Voken
@ b9a17ea computes (`src/Open_MAGVIT2/modules/transformer/gpt.py`,
`src/IBQ/modules/transformer/llama.py`); weights on the hub: TencentARC/Open-MAGVIT2-AR-* and
TencentARC/IBQ-AR-*.

Both read [class, token 0, ..., token N - 2] with the blocks and the rotary table of LlamaGen
(the class's rotary row is all zero); the output at place i predicts token i.

  Factorised  a token of 18 bits is two: pre, its channels 0 to 5, and post, its channels 6 to
              17; a channel's bit in the id is 2^channel. Their embeddings are added. Per
              place a small causal transformer reads [the output there, the embedding of pre]
              and gives the logits of pre and, given pre, of post.
  IBQ         every block and the head are modulated by the class's embedding (adaLN).

Quirks of the published weights, kept: the small transformer's rotary table is the first two
rows of the large one's (zeros, then the cell (0, 0), which turns nothing), and both share the
final norm.

Differences from the source: dropout is on exactly when the rng stream `dropout` is there.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.nn.decoder import (
  KeyValues,
  LlamaAttention,
  LlamaStack,
  Memory,
  causal,
  dense,
  llama_hidden,
  padded,
  so_far,
)
from tokzoo.nn.dropout import dropped
from tokzoo.nn.labelled import (
  LabelledIds,
  drop_labels,
  require_ids,
  require_labels,
  with_null,
)
from tokzoo.nn.layers import GatedMLP, rows_dot_general
from tokzoo.nn.rotary import Rotary, grid_rotary
from tokzoo.nn.sampling import autoregress, check_sampling, draw, guide, numbered
from tokzoo.tokens import Tokens
from tokzoo.weights import LINEAR, Rule, Table, linear_rules, llama_block_rules

_INIT = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Config(LabelledIds):
  """What both generators have; the defaults are the published ones."""

  grid: int = 16
  """Rows and columns of tokens."""
  width: int = 1024
  """Features of the transformer."""
  layers: int = 24
  """Blocks over the places of the grid."""
  heads: int = 16
  """Of the attention."""
  num_classes: int = 1000
  """Class labels."""
  multiple_of: int = 256
  """The feed-forward's hidden features are rounded up to it."""
  norm_eps: float = 1e-5
  """Of every norm."""
  rope_theta: float = 10_000.0
  """Base of the rotary frequencies."""
  drop: float = 0.1
  """Probability of dropping a class in training."""
  dropout: float = 0.1
  """On the embeddings of class and tokens and on both branches of a block, in training."""

  @property
  def num_tokens(self) -> int:
    """Tokens per image."""
    return self.grid**2

  def rotary(self) -> Rotary:
    """Of the class and the grid."""
    head_dim = self.width // self.heads
    return grid_rotary(self.grid, self.grid, head_dim, 1, self.rope_theta)


@dataclasses.dataclass(frozen=True)
class FactorizedConfig(Config):
  """Sizes of the generator of factorised tokens; the defaults are the published B."""

  factors: tuple[int, int] = (6, 12)
  """Bits of the two parts of a token, the first channels first."""
  intra_layers: int = 2
  """Blocks within a token."""

  def build(self) -> "FactorizedAR":
    return FactorizedAR(self)

  @property
  def bits(self) -> int:
    """Bits per token."""
    return sum(self.factors)

  @property
  def vocab(self) -> int:
    """Codes of the tokenizer."""
    return 2**self.bits


@dataclasses.dataclass(frozen=True)
class IBQConfig(Config):
  """Sizes of the generator of IBQ's tokens; the defaults are the published B."""

  layers: int = 16
  vocab: int = 16384
  """Codes of the tokenizer."""
  gate_init: float = 1e-3
  """What the gates' initial weights are multiplied with; the scales' and shifts' by 1/2."""

  def build(self) -> "IBQAR":
    return IBQAR(self)


class FactorizedAR(nn.Module):
  """Spatial transformer and a small one within each token (`tokzoo.contract.Generator`)."""

  config: FactorizedConfig

  def setup(self):
    c = self.config
    pre, post = (2**bits for bits in c.factors)
    self.class_emb = nn.Embed(c.num_classes + 1, c.width, embedding_init=_INIT)
    self.pre_emb = nn.Embed(pre, c.width, embedding_init=_INIT)
    self.post_emb = nn.Embed(post, c.width, embedding_init=_INIT)
    hidden = llama_hidden(c.width, c.multiple_of)
    blocks = (c.heads, hidden, c.norm_eps, c.dropout)
    self.spatial = LlamaStack(c.layers, *blocks)
    self.intra = LlamaStack(c.intra_layers, *blocks)
    self.norm = nn.RMSNorm(c.norm_eps)
    self.head_0 = dense(pre, "head_0", nn.initializers.zeros)
    self.head_1 = dense(post, "head_1", nn.initializers.zeros)

  def __call__(
    self, ids: Int[Array, "B N"], labels: Int[Array, "B"]
  ) -> tuple[Float[Array, "B N p"], Float[Array, "B N q"]]:
    """Teacher-forced logits of pre and of post, float32: entry i predicts token i."""
    c = self.config
    ids = jnp.asarray(ids, jnp.int32)
    start = self.class_emb(require_labels(labels, c.num_classes))[:, None]
    x = jnp.concatenate([start, self._embed(ids[:, :-1])], axis=1)
    x = dropped(self, x, c.dropout)
    length = x.shape[1]
    x, _ = self.spatial(x, c.rotary().rows(0, length), causal(length))
    # One short sequence per token.
    pre = self.pre_emb(split_factors(ids, c.factors)[0])
    pairs = jnp.stack([x, pre], axis=2).reshape(-1, 2, c.width)
    y, _ = self.intra(pairs, c.rotary().rows(0, 2), causal(2))
    y = self.norm(y).reshape(*ids.shape, 2, c.width)
    first, second = self.head_0(y[:, :, 0]), self.head_1(y[:, :, 1])
    return first.astype(jnp.float32), second.astype(jnp.float32)

  def loss(
    self, tokens: Tokens, condition: Int[Array, "B"], rng: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean cross-entropy of pre plus that of post given pre, in nats a token.

    Tokens are ids, or packed bits of this generator's width. With the rng stream `dropout`
    (training), labels are dropped with `rng`.

    Raises:
      TokzooError: tokens or labels of another layout.
    """
    c = self.config
    if tokens.packed is not None and tokens.bits == c.bits and c.bits <= 30:
      places = 2 ** jnp.arange(c.bits, dtype=jnp.int32)[None, None]
      ids = (tokens.unpacked().astype(jnp.int32) * places).sum(-1)
      tokens = Tokens.from_ids(ids, c.vocab)
    ids = require_ids(tokens, c.num_tokens, c.vocab)
    if self.has_rng("dropout"):
      condition = drop_labels(rng, condition, c.drop, c.num_classes)
    losses, accuracy = [], []
    for logits, part in zip(
      self(ids, condition), split_factors(ids, c.factors), strict=True
    ):
      ce = optax.softmax_cross_entropy_with_integer_labels(logits, part)
      losses.append(ce.mean())
      accuracy.append((logits.argmax(-1) == part).mean())
    named = {"pre": losses[0], "post": losses[1]}
    return losses[0] + losses[1], {
      **named,
      "accuracy_pre": accuracy[0],
      "accuracy_post": accuracy[1],
    }

  def start(self, labels: Int[Array, "B"]) -> tuple[Float[Array, "B D"], Memory]:
    """The output that stands for token 0, and the cache with room for all places."""
    c = self.config
    x = self.class_emb(require_labels(labels, c.num_classes))[:, None]
    x, memory = self.spatial(x, c.rotary().rows(0, 1), causal(1))
    return x[:, 0], padded(memory, c.num_tokens)

  def step(
    self, ids: Int[Array, "B"], index: Int[Array, ""], memory: Memory
  ) -> tuple[Float[Array, "B D"], Memory]:
    """The output that stands for token `index` + 1, given token `index`."""
    c = self.config
    place = index + 1
    x, rotary = self._embed(ids)[:, None], c.rotary().rows(place, 1)
    x, memory = self.spatial(x, rotary, so_far(place, c.num_tokens), memory, place)
    return x[:, 0], memory

  def first_part(self, x: Float[Array, "B D"]) -> tuple[Float[Array, "B p"], Memory]:
    """Logits of pre at an output of the spatial transformer, and what post remembers."""
    y, memory = self.intra(x[:, None], self.config.rotary().rows(0, 1), causal(1))
    return self.head_0(self.norm(y[:, 0])).astype(jnp.float32), padded(memory, 2)

  def second_part(self, pre: Int[Array, "B"], memory: Memory) -> Float[Array, "B q"]:
    """Logits of post given pre."""
    x, place = self.pre_emb(pre)[:, None], jnp.int32(1)
    y, _ = self.intra(
      x, self.config.rotary().rows(1, 1), so_far(place, 2), memory, place
    )
    return self.head_1(self.norm(y[:, 0])).astype(jnp.float32)

  def sample(
    self,
    rng: PRNGKeyArray | None,
    condition: Int[Array, "B"],
    *,
    guidance: float = 1.9,
    guidance_post: float | None = None,
    temperature: float = 1.0,
    temperature_post: float | None = None,
    top_k: int = 0,
    top_k_post: int = 0,
    top_p: float = 1.0,
    top_p_post: float = 1.0,
  ) -> Tokens:
    """Draws tokens one after the other, of each first pre, then post.

    Args:
      rng: key of every draw; not needed where both temperatures are 0.
      condition: labels, B rows.
      guidance: s in u + s (c - u) for pre. It also decides: 1 or less is none for both.
      guidance_post: for post; None: as for pre.
      temperature: divides the logits of pre; 0 takes the likeliest.
      temperature_post: for post; None: as for pre.
      top_k, top_k_post: draw among so many; 0: all.
      top_p, top_p_post: draw among the likeliest of so much probability; 1: all.

    Raises:
      TokzooError: settings or labels out of range.
    """
    c = self.config
    scales = guidance, guidance if guidance_post is None else guidance_post
    after = temperature if temperature_post is None else temperature_post
    choices = (temperature, top_k, top_p), (after, top_k_post, top_p_post)
    for scale, (warmth, k, p), bits in zip(scales, choices, c.factors, strict=True):
      check_sampling(
        rng=rng, guidance=scale, temperature=warmth, top_k=k, top_p=p, vocab=2**bits
      )
    guided = guidance > 1
    labels = require_labels(condition, c.num_classes)
    both = with_null(labels, c.num_classes, guided)
    # A loop of jax calls a module that is not bound to an outer trace.
    module, variables = self.unbind()
    first, memory = module.apply(variables, both, method=module.start)

    def led(logits, scale):
      return guide(logits, scale) if guided else logits

    def draw_token(i, x):
      logits, remembered = module.apply(variables, x, method=module.first_part)
      pre = draw(numbered(rng, 2 * i), led(logits, scales[0]), *choices[0])
      given = jnp.concatenate([pre, pre]) if guided else pre
      logits = jnp.asarray(
        module.apply(variables, given, remembered, method=module.second_part)
      )
      post = draw(numbered(rng, 2 * i + 1), led(logits, scales[1]), *choices[1])
      return join_factors(pre, post, c.factors)

    def step(ids, index, memory):
      doubled = jnp.concatenate([ids, ids]) if guided else ids
      return module.apply(variables, doubled, index, memory, method=module.step)

    ids = autoregress(first, memory, draw_token, step, c.num_tokens)
    return Tokens.from_ids(ids, c.vocab, grid=(c.grid, c.grid))

  def _embed(self, ids: Int[Array, "..."]) -> Float[Array, "... D"]:
    pre, post = split_factors(ids, self.config.factors)
    return self.pre_emb(pre) + self.post_emb(post)


def split_factors(
  ids: Int[Array, "..."], factors: tuple[int, int]
) -> tuple[Int[Array, "..."], Int[Array, "..."]]:
  """The two parts of each token: its lowest bits, which are the first channels, and the
  others. Within a part the first channel stays the lowest bit."""
  ids = jnp.asarray(ids, jnp.int32)
  return ids & (2 ** factors[0] - 1), ids >> factors[0]


def join_factors(
  pre: Int[Array, "..."], post: Int[Array, "..."], factors: tuple[int, int]
) -> Int[Array, "..."]:
  """The inverse of `split_factors`."""
  return pre + (post << factors[0])


class AdaLNBlock(nn.Module):
  """Llama's block whose norms are modulated by the class, and whose branches are gated."""

  config: IBQConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B Q D"],
    classes: Float[Array, "B 1 D"],
    rotary: Rotary,
    mask: Bool[Array, "#B 1 Q K"],
    memory: KeyValues | None = None,
    start: Int[Array, ""] | None = None,
  ) -> tuple[Float[Array, "B Q D"], KeyValues]:
    c = self.config
    factors = (c.gate_init, c.gate_init, 0.5, 0.5, 0.5, 0.5)
    modulation = _modulation(c.width, factors, "ada_lin")(nn.silu(classes))
    gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = jnp.split(
      modulation, 6, axis=-1
    )
    h = nn.RMSNorm(c.norm_eps, name="attention_norm")(x) * (1 + scale_1) + shift_1
    attention = LlamaAttention(c.heads, c.dropout, name="attention")
    attended, memory = attention(h, rotary, mask, memory, start)
    x = x + attended * gate_1
    h = nn.RMSNorm(c.norm_eps, name="ffn_norm")(x) * (1 + scale_2) + shift_2
    hidden = llama_hidden(c.width, c.multiple_of)
    h = dropped(self, GatedMLP(hidden, _INIT, name="feed_forward")(h), c.dropout)
    return checkpoint_name(x + h * gate_2, "block"), memory


class IBQAR(nn.Module):
  """adaLN Llama over IBQ's tokens (contract: `tokzoo.contract.Generator`)."""

  config: IBQConfig

  def setup(self):
    c = self.config
    self.class_emb = nn.Embed(c.num_classes + 1, c.width, embedding_init=_INIT)
    self.tok_emb = nn.Embed(c.vocab, c.width, embedding_init=_INIT)
    self.blocks = [AdaLNBlock(c) for _ in range(c.layers)]
    self.head_norm = nn.RMSNorm(c.norm_eps)
    self.head_ada_lin = _modulation(c.width, (0.5, 0.5), "head_ada_lin")
    self.head = dense(c.vocab, "head", nn.initializers.zeros)

  def __call__(
    self, ids: Int[Array, "B L"], labels: Int[Array, "B"]
  ) -> Float[Array, "B L+1 V"]:
    """Teacher-forced logits, float32: entry i predicts token i, given those before it.

    `ids` are the tokens from the first on; L is at most one less than an image has.
    """
    c = self.config
    classes = self.class_emb(require_labels(labels, c.num_classes))[:, None]
    tokens = self.tok_emb(jnp.asarray(ids, jnp.int32))
    x = dropped(self, jnp.concatenate([classes, tokens], axis=1), c.dropout)
    length = x.shape[1]
    rotary = c.rotary().rows(0, length)
    for block in self.blocks:
      x, _ = block(x, classes, rotary, causal(length))
    return self._logits(x, classes)

  def loss(
    self, tokens: Tokens, condition: Int[Array, "B"], rng: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean cross-entropy of every token given those before, in nats.

    With the rng stream `dropout` (training), labels are dropped with `rng`.

    Raises:
      TokzooError: tokens or labels of another layout.
    """
    c = self.config
    ids = require_ids(tokens, c.num_tokens, c.vocab)
    if self.has_rng("dropout"):
      condition = drop_labels(rng, condition, c.drop, c.num_classes)
    logits = self(ids[:, :-1], condition)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, ids).mean()
    return loss, {"accuracy": (logits.argmax(-1) == ids).mean()}

  def start(self, labels: Int[Array, "B"]) -> tuple[Float[Array, "B V"], Memory]:
    """Logits of token 0, and the cache with room for all places."""
    c = self.config
    classes = self.class_emb(require_labels(labels, c.num_classes))[:, None]
    x, memory = classes, []
    for block in self.blocks:
      x, kept = block(x, classes, c.rotary().rows(0, 1), causal(1))
      memory.append(kept)
    return self._logits(x, classes)[:, 0], padded(tuple(memory), c.num_tokens)

  def step(
    self,
    ids: Int[Array, "B"],
    index: Int[Array, ""],
    memory: Memory,
    labels: Int[Array, "B"],
  ) -> tuple[Float[Array, "B V"], Memory]:
    """Logits of token `index` + 1, given token `index`."""
    c = self.config
    place = index + 1
    classes = self.class_emb(labels)[:, None]
    x, longer = self.tok_emb(ids)[:, None], []
    rotary, mask = c.rotary().rows(place, 1), so_far(place, c.num_tokens)
    for block, kept in zip(self.blocks, memory, strict=True):
      x, kept = block(x, classes, rotary, mask, kept, place)
      longer.append(kept)
    return self._logits(x, classes)[:, 0], tuple(longer)

  def sample(
    self,
    rng: PRNGKeyArray | None,
    condition: Int[Array, "B"],
    *,
    guidance: float = 2.25,
    temperature: float = 1.1,
    top_k: int = 0,
    top_p: float = 1.0,
  ) -> Tokens:
    """Draws tokens one after the other, row by row of the grid.

    Args:
      rng: key of every draw; not needed at temperature 0.
      condition: labels, B rows.
      guidance: s in u + s (c - u); 1 or less is none.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw among so many; 0: all.
      top_p: draw among the likeliest of so much probability; 1: all.

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
    guided = guidance > 1
    labels = require_labels(condition, c.num_classes)
    both = with_null(labels, c.num_classes, guided)
    module, variables = self.unbind()
    first, memory = module.apply(variables, both, method=module.start)

    def draw_token(i, logits):
      logits = guide(logits, guidance) if guided else logits
      return draw(numbered(rng, i), logits, temperature, top_k, top_p)

    def step(ids, index, memory):
      doubled = jnp.concatenate([ids, ids]) if guided else ids
      return module.apply(variables, doubled, index, memory, both, method=module.step)

    ids = autoregress(first, memory, draw_token, step, c.num_tokens)
    return Tokens.from_ids(ids, c.vocab, grid=(c.grid, c.grid))

  def _logits(
    self, x: Float[Array, "B Q D"], classes: Float[Array, "B 1 D"]
  ) -> Float[Array, "B Q V"]:
    scale, shift = jnp.split(self.head_ada_lin(nn.silu(classes)), 2, axis=-1)
    return self.head(self.head_norm(x) * (1 + scale) + shift).astype(jnp.float32)


def _modulation(width: int, factors: tuple[float, ...], name: str) -> nn.Dense:
  """A linear layer to one modulation a factor, each initialised times its factor."""

  def init(key, shape, dtype=jnp.float32):
    each = jnp.repeat(jnp.asarray(factors, dtype), width)[None]
    return _INIT(key, shape, dtype) * each

  return nn.Dense(
    len(factors) * width, kernel_init=init, dot_general=rows_dot_general, name=name
  )


FACTORIZED_PRESETS = {
  "open-magvit2-ar-b": FactorizedConfig(),
  "open-magvit2-ar-l": FactorizedConfig(
    width=1280, layers=36, heads=20, intra_layers=3
  ),
  "open-magvit2-ar-xl": FactorizedConfig(
    width=1536, layers=48, heads=24, intra_layers=4
  ),
}

IBQ_PRESETS = {
  "ibq-ar-b": IBQConfig(),
  "ibq-ar-l": IBQConfig(width=1280, layers=20, heads=20),
  "ibq-ar-xl": IBQConfig(width=1536, layers=24, heads=24, gate_init=1e-4),
  "ibq-ar-xxl": IBQConfig(width=1920, layers=30, heads=30, gate_init=1e-5),
}

# The published files are of a Lightning module that also holds the tokenizer.
_OTHERS = (r"(?!transformer\.).*",)

FACTORIZED_WEIGHTS = Table(
  rules=(
    Rule("transformer.class_emb.embedding_table.weight", "params/class_emb/embedding"),
    Rule("transformer.{x}_emb.weight", "params/{x}_emb/embedding"),
    *llama_block_rules("transformer.spatial_blocks.{i}", "params/spatial/block_{i}"),
    *llama_block_rules("transformer.factorized_blocks.{i}", "params/intra/block_{i}"),
    Rule("transformer.norm.weight", "params/norm/scale"),
    Rule("transformer.head.{i}.weight", "params/head_{i}/kernel", LINEAR),
  ),
  ignore=_OTHERS,
)

IBQ_WEIGHTS = Table(
  rules=(
    Rule("transformer.class_emb.embedding_table.weight", "params/class_emb/embedding"),
    Rule("transformer.tok_emb.weight", "params/tok_emb/embedding"),
    *linear_rules("transformer.blocks.{i}.ada_lin.1", "params/blocks_{i}/ada_lin"),
    *llama_block_rules("transformer.blocks.{i}", "params/blocks_{i}"),
    Rule("transformer.head_nm.rmsnorm.weight", "params/head_norm/scale"),
    *linear_rules("transformer.head_nm.ada_lin.1", "params/head_ada_lin"),
    Rule("transformer.head.weight", "params/head/kernel", LINEAR),
  ),
  ignore=_OTHERS,
)
