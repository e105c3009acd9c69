"""What both generators of Instella-T2I share: sizes, condition, attention, guidance."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.contract import Batch
from tokzoo.errors import TokzooError
from tokzoo.nn.layers import attend, merge_heads, split_heads
from tokzoo.tokens import Tokens
from tokzoo.weights import LINEAR, Rule, linear_rules

_PROMPT = 128
"""Tokens of the longest prompt, as published."""


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

  def example(self) -> tuple[Tokens, "Condition", PRNGKeyArray]:
    """Inputs of `loss` of the right shapes, batch of one: what initialisation needs."""
    tokens = Tokens.from_bits(jnp.zeros((1, self.num_tokens, self.bits)))
    key = jax.random.key(0)
    if self.num_classes is not None:
      return tokens, jnp.zeros(1, jnp.int32), key
    features = jnp.zeros((self.layers, 1, 1, self.condition_width))
    return tokens, TextFeatures(features, jnp.ones((1, 1), bool)), key

  def example_batch(self) -> Batch:
    """One row of training data as the trainer gets it, zeros: tokens and their condition, a
    text of the longest length that was published (128)."""
    batch = {"packed": jnp.zeros((1, self.num_tokens, -(-self.bits // 32)), jnp.uint32)}
    if self.num_classes is not None:
      return {**batch, "label": jnp.zeros(1, jnp.int32)}
    features = jnp.zeros((1, self.layers, _PROMPT, self.condition_width))
    return {**batch, "features": features, "text_mask": jnp.ones((1, _PROMPT), bool)}

  def condition(self, batch: Batch) -> "Condition":
    """The condition in a batch: `label`, or `features` [B, layers, T, C] and `text_mask`.

    Raises:
      TokzooError: the batch lacks what this generator is conditioned on.
    """
    wanted = ("features", "text_mask") if self.num_classes is None else ("label",)
    missing = [name for name in wanted if name not in batch]
    if missing:
      raise TokzooError(
        f"the generator is conditioned on {' and '.join(wanted)}, but the data has only "
        f"{', '.join(sorted(batch))}: use data with {' and '.join(missing)}."
      )
    if self.num_classes is not None:
      return batch["label"]
    return TextFeatures(batch["features"].swapaxes(0, 1), batch["text_mask"])


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


def drop_classes(config: Config, condition: Condition, rng: PRNGKeyArray) -> Condition:
  """Puts "no class" in place of some labels; text passes (its prompts are dropped earlier)."""
  if config.num_classes is None or isinstance(condition, TextFeatures):
    return condition
  dropped = jax.random.bernoulli(rng, config.drop, condition.shape)
  return jnp.where(dropped, config.num_classes, condition)


def guided_condition(
  config: Config, condition: Condition, null: Condition | None, guidance: float
) -> Condition:
  """The conditional rows, then the unconditional ones if guidance needs them."""
  if guidance == 0:
    return condition
  if config.num_classes is not None and not isinstance(condition, TextFeatures):
    return jnp.concatenate([condition, jnp.full_like(condition, config.num_classes)])
  if not isinstance(condition, TextFeatures) or not isinstance(null, TextFeatures):
    raise TokzooError(
      "guidance on text needs TextFeatures of the prompts and, as null=..., those of the "
      "empty prompt: pass both, or guidance=0."
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


def uniform_draws(rng: PRNGKeyArray | None, shape: tuple[int, ...]) -> Uniform:
  """Draws of one shape from one key: number k has a key of its own.

  Raises:
    TokzooError: there is no key.
  """
  if rng is None:
    raise TokzooError("sampling needs a random key: pass rng=jax.random.key(seed).")
  return lambda k: jax.random.uniform(jax.random.fold_in(rng, k), shape)


def check_sampling(steps: int, temperature: float, protocol: int) -> None:
  """Raises TokzooError unless a sampler's settings are in range."""
  if steps < 1 or not temperature > 0 or protocol not in (1, 2):
    raise TokzooError(
      f"sampling with steps {steps}, temperature {temperature}, protocol {protocol}: steps is "
      "at least 1, the temperature above 0, the protocol 1 or 2."
    )


BLOCK, PATH = "transformer_blocks.{i}", "params/blocks_{i}"
SHARED_WEIGHTS = (
  Rule(f"{BLOCK}.attn.norm_{{x}}.weight", f"{PATH}/attn/norm_{{x}}/scale"),
  Rule(f"{BLOCK}.attn.{{name}}.weight", f"{PATH}/attn/{{name}}/kernel", LINEAR),
  Rule(f"{BLOCK}.pos_emb", f"{PATH}/pos_emb"),
  *linear_rules(f"{BLOCK}.proj_cond", f"{PATH}/proj_cond"),
  *linear_rules("x_embedder", "params/x_embedder"),
  *linear_rules("time_embed.linear_{n}", "params/time_{n}"),
  *linear_rules("proj_out", "params/proj_out"),
  # Ours alone: class models have no published weights.
  Rule("class_embed.weight", "params/context/classes/embedding"),
)
