"""FlexTok's generator: a class-conditional Llama over 1 to 256 ordered tokens.

Bachmann et al., "FlexTok: Resampling Images into 1D Token Sequences of Flexible Length",
arXiv 2502.13967, stage 2. The authors' repository (apple/ml-flextok) holds no generator, so
this follows the paper: the decoder-only transformer of LlamaGen (arXiv 2406.06525), width 64
times the layers, heads of 64 features, on a sequence instead of a grid. The paper's weights are
not published. Later ones of its authors (EPFL-VILAB/FlexAR-1B-C2I, 1.15B, and four for captions)
are other networks, of the framework L3M, and are not read here.

Sequence: [class, token 0, ..., token K - 1]; the output at a place predicts the next token.
As every prefix of the tokens is an image, `sample(num_tokens=k)` may stop early: it costs k
steps, and FlexTok decodes what it gets.

Ours to choose, as nothing says otherwise: rotary positions, one table for class and tokens;
the feed-forward's hidden features, 8/3 of the width in multiples of 64; dropout. The weight
table is in LlamaGen's names. Captions (the paper's second condition) are not here. Dropout is
on exactly when the rng stream `dropout` is there.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.nn.decoder import (
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
from tokzoo.nn.prefix import check_num_tokens
from tokzoo.nn.rotary import Rotary, line_rotary
from tokzoo.nn.sampling import autoregress, check_sampling, draw, guide, numbered
from tokzoo.tokens import Tokens
from tokzoo.weights import LINEAR, Rule, Table, llama_block_rules

_INIT = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Config(LabelledIds):
  """Sizes of the generator; the defaults are 1.33B, the largest one."""

  num_tokens: int = 256
  """K, the most tokens of an image."""
  vocab: int = 64_000
  """Codes of the tokenizer."""
  width: int = 1920
  """Features of the transformer."""
  layers: int = 30
  """Blocks."""
  heads: int = 30
  """Of the attention."""
  num_classes: int = 1000
  """Class labels."""
  multiple_of: int = 64
  """The feed-forward's hidden features are rounded up to it."""
  norm_eps: float = 1e-5
  """Of every norm."""
  rope_theta: float = 10_000.0
  """Base of the rotary frequencies."""
  drop: float = 0.1
  """Probability of dropping the class in training."""
  dropout: float = 0.1
  """On token embeddings and on both branches of a block, in training."""

  def build(self) -> "FlexTokAR":
    return FlexTokAR(self)


class FlexTokAR(nn.Module):
  """The autoregressive generator (contract: `tokzoo.contract.Generator`)."""

  config: Config

  def setup(self):
    c = self.config
    self.tok_embeddings = nn.Embed(c.vocab, c.width, embedding_init=_INIT)
    # One row more than there are classes: the last stands for "no class".
    self.classes = nn.Embed(c.num_classes + 1, c.width, embedding_init=_INIT)
    hidden = llama_hidden(c.width, c.multiple_of)
    self.stack = LlamaStack(c.layers, c.heads, hidden, c.norm_eps, c.dropout)
    self.norm = nn.RMSNorm(c.norm_eps)
    self.output = dense(c.vocab, "output", nn.initializers.zeros)

  def __call__(
    self, ids: Int[Array, "B L"], labels: Int[Array, "B"]
  ) -> Float[Array, "B L+1 V"]:
    """Teacher-forced logits, float32: entry i predicts token i.

    Args:
      ids: tokens from the first on; a prefix of an image will do.
      labels: classes; num_classes is "no class".
    """
    tokens = dropped(self, self.tok_embeddings(ids), self.config.dropout)
    x = jnp.concatenate([self._class(labels), tokens], axis=1)
    x, _ = self.stack(x, self._rotary().rows(0, x.shape[1]), causal(x.shape[1]))
    return self._logits(x)

  def loss(
    self, tokens: Tokens, condition: Int[Array, "B"], rng: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean cross-entropy of every token given those before, in nats.

    With the rng stream `dropout` (training), labels are dropped with `rng`. Metrics: the
    accuracy, and the cross-entropy of the first token alone.

    Raises:
      TokzooError: tokens or labels of another layout.
    """
    c = self.config
    ids = require_ids(tokens, c.num_tokens, c.vocab)
    if self.has_rng("dropout"):
      condition = drop_labels(rng, condition, c.drop, c.num_classes)
    logits = self(ids[:, :-1], condition)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
    accuracy = (logits.argmax(-1) == ids).mean()
    return each.mean(), {"accuracy": accuracy, "first_token": each[:, 0].mean()}

  def start(
    self, labels: Int[Array, "B"], length: int | None = None
  ) -> tuple[Float[Array, "B V"], Memory]:
    """Logits of the first token, and the cache of the class with room for `length` tokens
    (None: K)."""
    x, memory = self.stack(self._class(labels), self._rotary().rows(0, 1), causal(1))
    return self._logits(x[:, 0]), padded(memory, 1 + (length or self.config.num_tokens))

  def step(
    self, ids: Int[Array, "B"], index: Int[Array, ""], memory: Memory
  ) -> tuple[Float[Array, "B V"], Memory]:
    """Logits of token `index` + 1, given token `index`."""
    place = 1 + index
    mask = so_far(place, memory[0].keys.shape[1])
    x = self.tok_embeddings(ids)[:, None]
    x, memory = self.stack(x, self._rotary().rows(place, 1), mask, memory, place)
    return self._logits(x[:, 0]), memory

  def sample(
    self,
    rng: PRNGKeyArray | None,
    condition: Int[Array, "B"],
    *,
    num_tokens: int | None = None,
    guidance: float = 1.5,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
  ) -> Tokens:
    """Draws the first tokens of images, one after the other.

    Args:
      rng: key of every draw; not needed at temperature 0.
      condition: labels, B rows.
      num_tokens: k, how many tokens to draw; None: K. The first of them do not depend on it.
      guidance: s in u + s (c - u); 1 is none.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw among so many; 0: all.
      top_p: draw among the likeliest of so much probability; 1: all.

    Raises:
      TokzooError: settings, labels or the number of tokens out of range.
    """
    c = self.config
    length = check_num_tokens(num_tokens, c.num_tokens)
    check_sampling(
      rng=rng,
      guidance=guidance,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      vocab=c.vocab,
    )
    guided = guidance != 1
    labels = require_labels(condition, c.num_classes)
    both = with_null(labels, c.num_classes, guided)
    # A loop of jax calls a module that is not bound to an outer trace.
    module, variables = self.unbind()
    first, memory = module.apply(variables, both, length, method=module.start)

    def draw_token(i, logits):
      if guided:
        logits = guide(logits, guidance)
      return draw(numbered(rng, i), logits, temperature, top_k, top_p)

    def step(ids, index, memory):
      doubled = jnp.concatenate([ids, ids]) if guided else ids
      return module.apply(variables, doubled, index, memory, method=module.step)

    ids = autoregress(first, memory, draw_token, step, length)
    return Tokens.from_ids(ids, c.vocab)

  def _rotary(self) -> Rotary:
    c = self.config
    return line_rotary(1 + c.num_tokens, c.width // c.heads, c.rope_theta)

  def _class(self, labels: Int[Array, "B"]) -> Float[Array, "B 1 D"]:
    return self.classes(require_labels(labels, self.config.num_classes))[:, None]

  def _logits(self, x: Array) -> Float[Array, "... V"]:
    return self.output(self.norm(x)).astype(jnp.float32)


def _sized(depth: int) -> Config:
  return Config(width=64 * depth, layers=depth, heads=depth)


# Named by the parameters of their blocks, 12 width^2 each. "Up to 1.33B" is what is known of the
# paper's sizes: the five below are unverified.
PRESETS = {
  "flextok-ar-49m": _sized(10),
  "flextok-ar-85m": _sized(12),
  "flextok-ar-201m": _sized(16),
  "flextok-ar-393m": _sized(20),
  "flextok-ar-679m": _sized(24),
  "flextok-ar-1.33b": _sized(30),
}

WEIGHTS = Table(
  rules=(
    Rule("tok_embeddings.weight", "params/tok_embeddings/embedding"),
    Rule("cls_embedding.embedding_table.weight", "params/classes/embedding"),
    *llama_block_rules("layers.{i}", "params/stack/block_{i}"),
    Rule("norm.weight", "params/norm/scale"),
    Rule("output.weight", "params/output/kernel", LINEAR),
  )
)
