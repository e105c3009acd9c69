"""LlamaGen's generators: Llama over image tokens in raster order, for classes or captions.

Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation", arXiv
2406.06525. Written from what FoundationVision/LlamaGen @ ce98ec4 computes
(`autoregressive/models/{gpt,generate}.py`); weights on the hub: FoundationVision/LlamaGen and
peizesun/llamagen_t2i.

Sequence: [condition token(s), token 0, ..., token N - 1]; the output at a place predicts the
next one. The condition is one row of a class table, or 120 caption features (T5-XL, width
2,048, padded on the LEFT) through an MLP. Tokens are those of a grid, row by row.

Quirks of the published weights, kept: the rotary rows of the condition tokens are all zero
(`tokzoo.nn.rotary.grid_rotary`); guidance of 1 or less is none at all; a null caption is a
fixed random array that is never trained (collection `buffers`).

Differences from the source: the padding of captions is masked in training wherever a mask is
given, as in sampling; dropout is on exactly when the rng stream `dropout` is there.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.contract import Batch
from tokzoo.errors import TokzooError
from tokzoo.nn.decoder import (
  LlamaStack,
  Memory,
  causal,
  dense,
  llama_hidden,
  padded,
)
from tokzoo.nn.dropout import dropped
from tokzoo.nn.labelled import (
  LabelledIds,
  drop_labels,
  require_ids,
  require_labels,
  with_null,
)
from tokzoo.nn.rotary import Rotary, grid_rotary
from tokzoo.nn.sampling import autoregress, check_sampling, draw, guide, numbered
from tokzoo.tokens import Tokens
from tokzoo.weights import LINEAR, Rule, Table, llama_block_rules

_INIT = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Config(LabelledIds):
  """Sizes of the generator; the defaults are the published GPT-B at 256 pixels."""

  grid: int = 16
  """Rows and columns of tokens: 16 at 256 pixels, 24 at 384, 32 at 512."""
  vocab: int = 16384
  """Codes of the tokenizer."""
  width: int = 768
  """Features of the transformer."""
  layers: int = 12
  """Blocks."""
  heads: int = 12
  """Of the attention."""
  num_classes: int | None = 1000
  """Class labels; None: captions."""
  caption_tokens: int = 120
  """Features of a caption."""
  caption_width: int = 2048
  """Width of the features of a caption."""
  multiple_of: int = 256
  """The feed-forward's hidden features are rounded up to it."""
  norm_eps: float = 1e-5
  """Of every norm."""
  rope_theta: float = 10_000.0
  """Base of the rotary frequencies."""
  drop: float = 0.1
  """Probability of dropping the condition in training."""
  dropout: float = 0.1
  """On the embeddings of condition and tokens and on both branches of a block, in training."""

  def build(self) -> "LlamaGen":
    return LlamaGen(self)

  @property
  def num_tokens(self) -> int:
    """Tokens per image."""
    return self.grid**2

  @property
  def prefix(self) -> int:
    """Condition tokens."""
    return self.caption_tokens if self.num_classes is None else 1

  def example(self) -> tuple[Tokens, "Condition", PRNGKeyArray]:
    if self.num_classes is not None:
      return super().example()
    ids = jnp.zeros((1, self.num_tokens), jnp.int32)
    return Tokens.from_ids(ids, self.vocab), self._caption(), jax.random.key(0)

  def example_batch(self) -> Batch:
    if self.num_classes is not None:
      return super().example_batch()
    caption = self._caption()
    ids = jnp.zeros((1, self.num_tokens), jnp.int32)
    return {"ids": ids, "features": caption.features, "text_mask": caption.mask}

  def condition(self, batch: Batch) -> "Condition":
    """The condition in a batch: `label`, or `features` [B, T, C] and `text_mask` [B, T].

    Raises:
      TokzooError: the batch lacks what this generator is conditioned on.
    """
    if self.num_classes is not None:
      return super().condition(batch)
    missing = [name for name in ("features", "text_mask") if name not in batch]
    if missing:
      raise TokzooError(
        f"the generator is conditioned on features and text_mask, but the data has only "
        f"{', '.join(sorted(batch))}: use data with {' and '.join(missing)}."
      )
    return Caption(batch["features"], batch["text_mask"])

  def _caption(self) -> "Caption":
    shape = (1, self.caption_tokens, self.caption_width)
    return Caption(jnp.zeros(shape), jnp.ones(shape[:2], bool))


class Caption(struct.PyTreeNode):
  """A caption as its language model's last hidden states.

  features:  float[B, T, C]
  mask:      bool[B, T], False at padding, which is on the left
  """

  features: Float[Array, "B T C"]
  mask: Bool[Array, "B T"]


Condition = Caption | Int[Array, "B"]


class CaptionEmbedder(nn.Module):
  """W2 gelu(W1 features), tanh GELU, no biases."""

  width: int

  @nn.compact
  def __call__(self, features: Float[Array, "B T C"]) -> Float[Array, "B T D"]:
    hidden = nn.gelu(dense(self.width, "fc1")(features), approximate=True)
    return dense(self.width, "fc2")(hidden)


class LlamaGen(nn.Module):
  """The autoregressive generator (contract: `tokzoo.contract.Generator`)."""

  config: Config

  def setup(self):
    c = self.config
    self.tok_embeddings = nn.Embed(c.vocab, c.width, embedding_init=_INIT)
    if c.num_classes is not None:
      # One row more than there are classes: the last stands for "no class".
      self.classes = nn.Embed(c.num_classes + 1, c.width, embedding_init=_INIT)
    else:
      self.cap_proj = CaptionEmbedder(c.width)
      self.null_caption = self.variable("buffers", "null_caption", self._null)
    hidden = llama_hidden(c.width, c.multiple_of)
    self.stack = LlamaStack(c.layers, c.heads, hidden, c.norm_eps, c.dropout)
    self.norm = nn.RMSNorm(c.norm_eps)
    self.output = dense(c.vocab, "output", nn.initializers.zeros)

  def __call__(
    self, ids: Int[Array, "B L"], condition: Condition
  ) -> Float[Array, "B T+L V"]:
    """Teacher-forced logits, float32: entry T - 1 + i predicts token i (T condition tokens).

    Args:
      ids: tokens from the first on; a prefix of an image will do.
      condition: labels (num_classes: no class) or captions. Where captions have a mask,
        their padding is not seen.
    """
    start = self._embed_condition(condition)
    x = jnp.concatenate([start, self.tok_embeddings(ids)], axis=1)
    x = dropped(self, x, self.config.dropout)
    mask = self._mask(condition, x.shape[1])
    x, _ = self.stack(x, self._rotary().rows(0, x.shape[1]), mask)
    return self._logits(x)

  def loss(
    self, tokens: Tokens, condition: Condition, rng: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean cross-entropy of every token given those before, in nats.

    With the rng stream `dropout` (training), conditions are dropped with `rng`.

    Raises:
      TokzooError: tokens or conditions of another layout.
    """
    c = self.config
    ids = require_ids(tokens, c.num_tokens, c.vocab)
    if self.has_rng("dropout"):
      condition = self._drop(condition, rng)
    logits = self(ids[:, :-1], condition)[:, c.prefix - 1 :]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, ids).mean()
    return loss, {"accuracy": (logits.argmax(-1) == ids).mean()}

  def start(self, condition: Condition) -> tuple[Float[Array, "B V"], Memory]:
    """Logits of the first token, and the cache of the condition with room for all tokens."""
    c = self.config
    x = self._embed_condition(condition)
    mask = self._mask(condition, c.prefix)
    x, memory = self.stack(x, self._rotary().rows(0, c.prefix), mask)
    return self._logits(x[:, -1]), padded(memory, c.prefix + c.num_tokens)

  def step(
    self,
    ids: Int[Array, "B"],
    index: Int[Array, ""],
    memory: Memory,
    seen: Bool[Array, "B T"] | None = None,
  ) -> tuple[Float[Array, "B V"], Memory]:
    """Logits of token `index` + 1, given token `index`; `seen` masks the condition."""
    c = self.config
    place = c.prefix + index
    mask = (jnp.arange(c.prefix + c.num_tokens) <= place)[None]
    if seen is not None:
      room = ((0, 0), (0, c.num_tokens))
      mask = mask & jnp.pad(seen, room, constant_values=True)
    x = self.tok_embeddings(ids)[:, None]
    rotary = self._rotary().rows(place, 1)
    x, memory = self.stack(x, rotary, mask[:, None, None], memory, place)
    return self._logits(x[:, 0]), memory

  def sample(
    self,
    rng: PRNGKeyArray | None,
    condition: Condition,
    *,
    null: Condition | None = None,
    guidance: float = 2.0,
    guidance_until: int = -1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
  ) -> Tokens:
    """Draws tokens one after the other, row by row of the grid.

    Args:
      rng: key of every draw; not needed at temperature 0.
      condition: what to draw for, B rows.
      null: captions that guidance leads away from; None: the model's own.
      guidance: s in u + s (c - u); 1 or less is none.
      guidance_until: guide the first token and the `guidance_until` + 1 after it, then no
        more; -1: all.
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
    both = self._with_null(self._require(condition), null) if guided else condition
    # A loop of jax calls a module that is not bound to an outer trace.
    module, variables = self.unbind()
    first, memory = module.apply(variables, both, method=module.start)
    seen = both.mask if isinstance(both, Caption) else None

    def draw_token(i, logits):
      if guided:
        # Token i is loop index i - 1 of the source, whose prefill is always guided.
        on = (guidance_until < 0) | (jnp.asarray(i) - 1 <= guidance_until)
        plain = jnp.split(logits, 2)[0]
        logits = jnp.where(on, guide(logits, guidance), plain)
      return draw(numbered(rng, i), logits, temperature, top_k, top_p)

    def step(ids, index, memory):
      doubled = jnp.concatenate([ids, ids]) if guided else ids
      return module.apply(variables, doubled, index, memory, seen, method=module.step)

    ids = autoregress(first, memory, draw_token, step, c.num_tokens)
    return Tokens.from_ids(ids, c.vocab, grid=(c.grid, c.grid))

  def _null(self) -> Float[Array, "T C"]:
    c = self.config
    shape = (c.caption_tokens, c.caption_width)
    return jax.random.normal(self.make_rng("params"), shape) / c.caption_width**0.5

  def _rotary(self) -> Rotary:
    c = self.config
    return grid_rotary(c.grid, c.grid, c.width // c.heads, c.prefix, c.rope_theta)

  def _require(self, condition: Condition) -> Condition:
    """The condition, if it is of the kind and the sizes of this generator."""
    c = self.config
    if c.num_classes is not None:
      if isinstance(condition, Caption):
        raise TokzooError(
          "this generator is conditioned on class labels: pass int32[B]."
        )
      return require_labels(condition, c.num_classes)
    if not isinstance(condition, Caption):
      raise TokzooError(
        "this generator is conditioned on captions: pass Caption (features, mask)."
      )
    found, wanted = condition.features.shape[1:], (c.caption_tokens, c.caption_width)
    if found != wanted:
      raise TokzooError(
        f"caption features of shape [B, {found[0]}, {found[1]}] came; this generator reads "
        f"[B, {wanted[0]}, {wanted[1]}]: pad on the left, from the language model it was "
        "trained with."
      )
    return condition

  def _embed_condition(self, condition: Condition) -> Float[Array, "B T D"]:
    condition = self._require(condition)
    if isinstance(condition, Caption):
      dtype = self.tok_embeddings.embedding.dtype
      x = self.cap_proj(condition.features.astype(dtype))
    else:
      x = self.classes(condition)[:, None]
    return x

  def _mask(self, condition: Condition, length: int) -> Bool[Array, "#B 1 L L"]:
    """Causal; padding of captions is not seen, except by itself."""
    mask = causal(length)
    if not isinstance(condition, Caption):
      return mask
    room = ((0, 0), (0, length - condition.mask.shape[1]))
    seen = jnp.pad(condition.mask, room, constant_values=True)[:, None, None]
    return mask & (seen | jnp.eye(length, dtype=bool)[None, None])

  def _logits(self, x: Array) -> Float[Array, "... V"]:
    return self.output(self.norm(x)).astype(jnp.float32)

  def _drop(self, condition: Condition, rng: PRNGKeyArray) -> Condition:
    c = self.config
    condition = self._require(condition)
    if not isinstance(condition, Caption):
      assert c.num_classes is not None
      return drop_labels(rng, condition, c.drop, c.num_classes)
    away = jax.random.bernoulli(rng, c.drop, condition.mask.shape[:1])[:, None, None]
    null = self.null_caption.value.astype(condition.features.dtype)[None]
    return condition.replace(features=jnp.where(away, null, condition.features))

  def _with_null(self, condition: Condition, null: Condition | None) -> Condition:
    """The conditional rows, then the unconditional ones."""
    if not isinstance(condition, Caption):
      assert self.config.num_classes is not None
      return with_null(condition, self.config.num_classes, True)
    if null is None:
      own = self.null_caption.value.astype(condition.features.dtype)
      features = jnp.broadcast_to(own[None], condition.features.shape)
      # The null caption is read through the caption's own mask, as in the source.
      null = condition.replace(features=features)
    return jax.tree.map(lambda *halves: jnp.concatenate(halves), condition, null)


_B = {"width": 768, "layers": 12, "heads": 12}
_L = {"width": 1024, "layers": 24, "heads": 16}
_XL = {"width": 1280, "layers": 36, "heads": 20}
_XXL = {"width": 1536, "layers": 48, "heads": 24}
_3B = {"width": 3200, "layers": 24, "heads": 32}

PRESETS = {
  "llamagen-c2i-b-256": Config(**_B),
  "llamagen-c2i-l-256": Config(**_L),
  "llamagen-c2i-b-384": Config(grid=24, **_B),
  "llamagen-c2i-l-384": Config(grid=24, **_L),
  "llamagen-c2i-xl-384": Config(grid=24, **_XL),
  "llamagen-c2i-xxl-384": Config(grid=24, **_XXL),
  "llamagen-c2i-3b-384": Config(grid=24, **_3B),
  "llamagen-t2i-xl-256": Config(grid=16, num_classes=None, **_XL),
  "llamagen-t2i-xl-512": Config(grid=32, num_classes=None, **_XL),
}

WEIGHTS = Table(
  rules=(
    Rule("tok_embeddings.weight", "params/tok_embeddings/embedding"),
    Rule("cls_embedding.embedding_table.weight", "params/classes/embedding"),
    Rule("cls_embedding.cap_proj.{x}.weight", "params/cap_proj/{x}/kernel", LINEAR),
    Rule("cls_embedding.uncond_embedding", "buffers/null_caption"),
    *llama_block_rules("layers.{i}", "params/stack/block_{i}"),
    Rule("norm.weight", "params/norm/scale"),
    Rule("output.weight", "params/output/kernel", LINEAR),
  )
)
