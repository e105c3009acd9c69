"""ImageBert: TiTok's masked generator, a BERT with classifier-free guidance; and its sampler.

Yu et al., "An Image is Worth 32 Tokens for Reconstruction and Generation", arXiv 2406.07550.
Written from what bytedance/1d-tokenizer @ 942a96f computes (`modeling/maskgit.py` with
transformers' BertModel, `MLMLoss` of `modeling/modules/losses.py`); weights on the hub:
yucornetto/generator_titok_{l32,b64}_imagenet, and One-D-Piece's (arXiv 2501.10064), of equal
size over 256 tokens: turing-motors/MaskGIT_One-D-Piece-{S,B,L}-256.

Sequence: [class, K tokens]. Ids: codes 0 to V - 1, the mask V, the classes, and "no class".
Post-norm BERT, exact GELU, layer norms with eps 1e-12; a linear head to the V codes, not tied.

Decoding, step i of S, r = (i + 1) / S: masked tokens become argmax(logits + t Gumbel), with
t = temperature (1 - r); confidence = the token's LOGIT + t Gumbel; the m = floor(K 2/pi
arccos r) least confident are masked again, at least one and fewer than before, ties with the
threshold included; the last step masks none.

Guidance: "constant" c + g (c - u); "linear" with g i / S for g, so that step 0 is unguided;
"power-cosine" u + s (c - u), s rising from 1 to g.

Quirks kept: the token-type row 0 is added to every place. Difference from the source: dropout
is on exactly when the rng stream `dropout` is there.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.errors import TokzooError, unknown
from tokzoo.generators.maskgit.original import (
  check_steps,
  random_mask,
  smoothed_cross_entropy,
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
from tokzoo.nn.schedules import arccos, power_cosine
from tokzoo.tokens import Tokens
from tokzoo.weights import Rule, Table, linear_rules, norm_rules

INIT = nn.initializers.normal(0.02)
"""The authors' truncated normal cuts at 2, a hundred deviations, not at two."""
_GUIDANCE = ("constant", "linear", "power-cosine")


@dataclasses.dataclass(frozen=True)
class MaskedConfig(LabelledIds):
  """What ImageBert and UViT have; the defaults are those of TiTok-L-32's ImageBert."""

  grid: tuple[int, ...] = (32,)
  """The shape that the tokens unfold to; (K,) for a 1D tokenizer."""
  vocab: int = 4096
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
  norm_eps: float = 1e-12
  """Of every norm."""
  drop: float = 0.1
  """Probability of dropping a class in training."""
  dropout: float = 0.1
  """On embeddings, attention weights and branches, in training."""
  label_smoothing: float = 0.1
  """Of the training loss."""
  unmasked_weight: float = 0.1
  """Of a token that is not masked, in the training loss."""

  @property
  def num_tokens(self) -> int:
    """Tokens per image."""
    return math.prod(self.grid)

  @property
  def rows(self) -> int:
    """Of the embedding table: codes, the mask, classes, "no class"."""
    return self.vocab + 1 + self.num_classes + 1


@dataclasses.dataclass(frozen=True)
class ImageBertConfig(MaskedConfig):
  """Sizes of ImageBert; the defaults are TiTok-L-32's."""

  def build(self) -> "ImageBert":
    return ImageBert(self)


class MaskedGenerator(nn.Module):
  """Loss and sampler of ImageBert and UViT, whose `__call__(ids, labels)` gives logits."""

  config: MaskedConfig

  def __call__(
    self, ids: Int[Array, "B K"], labels: Int[Array, "B"]
  ) -> Float[Array, "B K V"]:
    """Logits of every token, float32; masked tokens have the id `config.vocab`."""
    raise TypeError("a masked generator is an ImageBert or a UViT.")

  def loss(
    self, tokens: Tokens, condition: Int[Array, "B"], rng: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Smoothed cross-entropy, in nats: masked tokens weigh 1, the others `unmasked_weight`.

    max(1, round(K 2/pi arccos t)) random tokens of each sample are masked, t ~ U(0, 1). With
    the rng stream `dropout` (training), labels are dropped; all draw from `rng`.

    Raises:
      TokzooError: tokens or labels of another layout.
    """
    c = self.config
    ids = require_ids(tokens, c.num_tokens, c.vocab)
    time_rng, place_rng, drop_rng = jax.random.split(rng, 3)
    if self.has_rng("dropout"):
      condition = drop_labels(drop_rng, condition, c.drop, c.num_classes)
    t = jax.random.uniform(time_rng, ids.shape[:1])
    count = jnp.maximum(1, jnp.round(c.num_tokens * arccos(t))).astype(jnp.int32)
    masked = random_mask(place_rng, count, c.num_tokens)
    logits = self(jnp.where(masked, c.vocab, ids), condition)
    return self.masked_loss(logits, ids, masked)

  def masked_loss(
    self, logits: Float[Array, "B K V"], ids: Int[Array, "B K"], masked: Array
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of given logits, and the accuracy on masked tokens."""
    c = self.config
    each = smoothed_cross_entropy(logits, ids, c.label_smoothing)
    weights = jnp.where(masked, 1.0, c.unmasked_weight)
    hit = (logits.argmax(-1) == ids) & masked
    return (each * weights).sum() / weights.sum(), {
      "accuracy": hit.sum() / masked.sum(),
      "masked": masked.mean(),
    }

  def sample(
    self,
    rng: PRNGKeyArray | None,
    condition: Int[Array, "B"],
    *,
    steps: int = 8,
    guidance: float = 4.5,
    guidance_decay: str = "linear",
    guidance_power: float = 3.0,
    temperature: float = 9.5,
    anneal_softmax: bool = False,
  ) -> Tokens:
    """Draws all tokens in a few steps.

    Args:
      rng: key of every draw.
      condition: labels, B rows.
      steps: network calls, S.
      guidance: g; 0 is none.
      guidance_decay: "constant", "linear" or "power-cosine".
      guidance_power: exponent of "power-cosine".
      temperature: of the noise, which falls to 0 at the last step.
      anneal_softmax: divide the logits by 0.5 + 0.8 (1 - r).

    Raises:
      TokzooError: settings or labels out of range.
    """
    c = self.config
    check_steps(rng, steps)
    assert rng is not None
    if not guidance >= 0 or not temperature >= 0:
      raise TokzooError(
        f"guidance and temperature are at least 0; they are {guidance} and {temperature}: "
        "pass 0 or more."
      )
    if guidance_decay not in _GUIDANCE:
      raise unknown("guidance_decay", guidance_decay, _GUIDANCE)
    labels = require_labels(condition, c.num_classes)
    guided, batch, length = guidance != 0, labels.shape[0], c.num_tokens
    both = with_null(labels, c.num_classes, guided)
    # A loop of jax calls a module that is not bound to an outer trace.
    module, variables = self.unbind()

    def logits_of(ids, i):
      doubled = jnp.concatenate([ids, ids]) if guided else ids
      logits = jnp.asarray(module.apply(variables, doubled, both))
      if not guided:
        return logits
      towards, away = jnp.split(logits, 2)
      done = i.astype(jnp.float32) / steps
      if guidance_decay == "power-cosine":
        return away + power_cosine(done, guidance, guidance_power) * (towards - away)
      scale = guidance * (done if guidance_decay == "linear" else 1.0)
      return towards + scale * (towards - away)

    def step(ids, i):
      r = (i + 1).astype(jnp.float32) / steps
      t = temperature * (1 - r)
      draw_rng, choice_rng = jax.random.split(jax.random.fold_in(rng, i))
      logits = logits_of(ids, i)
      if anneal_softmax:
        logits = logits / (0.5 + 0.8 * (1 - r))
      drawn = (logits + t * jax.random.gumbel(draw_rng, logits.shape)).argmax(-1)
      chosen = jnp.take_along_axis(logits, drawn[..., None], axis=-1)[..., 0]
      is_masked = ids == c.vocab
      drawn = jnp.where(is_masked, drawn, ids).astype(jnp.int32)
      confidence = chosen + t * jax.random.gumbel(choice_rng, chosen.shape)
      confidence = jnp.where(is_masked, confidence, jnp.inf)
      count = jnp.floor(length * arccos(r)).astype(jnp.int32)
      count = jnp.maximum(1, jnp.minimum(is_masked.sum(1) - 1, count))
      threshold = jnp.take_along_axis(jnp.sort(confidence, 1), count[:, None] - 1, 1)
      again = (confidence <= threshold) & (i < steps - 1)
      return jnp.where(again, c.vocab, drawn), None

    start = jnp.full((batch, length), c.vocab, jnp.int32)
    ids, _ = jax.lax.scan(step, start, jnp.arange(steps))
    return Tokens.from_ids(ids, c.vocab, grid=c.grid)

  def _with_class(
    self, ids: Int[Array, "B K"], labels: Int[Array, "B"]
  ) -> Int[Array, "B K+1"]:
    """The table's rows of the class and the tokens."""
    c = self.config
    start = require_labels(labels, c.num_classes)[:, None] + c.vocab + 1
    return jnp.concatenate([start, jnp.asarray(ids, jnp.int32)], axis=1)


class Layer(nn.Module):
  """Post-norm BERT layer."""

  config: MaskedConfig

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    c = self.config
    q, k, v = (
      split_heads(dense(c.width, name)(x), c.width // c.heads)
      for name in ("query", "key", "value")
    )
    h = dense(c.width, "out")(
      merge_heads(attend_dropping(self, q, k, v, None, c.dropout))
    )
    y = norm(c, "attention_norm")(x + dropped(self, h, c.dropout))
    hidden = nn.gelu(dense(c.mlp_width, "up_proj")(y), approximate=False)
    h = dropped(self, dense(c.width, "down_proj")(hidden), c.dropout)
    return checkpoint_name(norm(c, "mlp_norm")(y + h), "block")


class ImageBert(MaskedGenerator):
  """The generator of TiTok-L-32 and TiTok-B-64 (contract: `tokzoo.contract.Generator`)."""

  config: ImageBertConfig

  @nn.compact
  def __call__(
    self, ids: Int[Array, "B K"], labels: Int[Array, "B"]
  ) -> Float[Array, "B K V"]:
    c = self.config
    rows = self._with_class(ids, labels)
    x = nn.Embed(c.rows, c.width, embedding_init=INIT, name="tokens")(rows)
    places = jnp.arange(c.num_tokens + 1)[None]
    x = x + nn.Embed(places.size, c.width, embedding_init=INIT, name="positions")(
      places
    )
    # BERT knows two types of token; every place is of type 0.
    types = nn.Embed(2, c.width, embedding_init=INIT, name="types")
    x = x + types(jnp.zeros((1, 1), jnp.int32))
    x = dropped(self, norm(c, "embed_norm")(x), c.dropout)
    for i in range(c.layers):
      x = Layer(c, name=f"layer_{i}")(x)
    return dense(c.vocab, "lm_head")(x[:, 1:]).astype(jnp.float32)


def dense(features: int, name: str, use_bias: bool = True) -> nn.Dense:
  """A linear layer as these generators initialise it."""
  return nn.Dense(
    features,
    use_bias=use_bias,
    kernel_init=INIT,
    dot_general=rows_dot_general,
    name=name,
  )


def norm(config: MaskedConfig, name: str) -> nn.LayerNorm:
  """A layer norm with the config's eps."""
  return nn.LayerNorm(config.norm_eps, use_fast_variance=False, name=name)


PRESETS = {
  "titok-l32-imagebert": ImageBertConfig(),
  "titok-b64-imagebert": ImageBertConfig(grid=(64,)),
  "one-d-piece-imagebert": ImageBertConfig(grid=(256,)),
}

_EMBED, _LAYER, _PATH = (
  "model.embeddings",
  "model.encoder.layer.{i}",
  "params/layer_{i}",
)

WEIGHTS = Table(
  rules=(
    Rule(f"{_EMBED}.word_embeddings.weight", "params/tokens/embedding"),
    Rule(f"{_EMBED}.position_embeddings.weight", "params/positions/embedding"),
    Rule(f"{_EMBED}.token_type_embeddings.weight", "params/types/embedding"),
    *norm_rules(f"{_EMBED}.LayerNorm", "params/embed_norm"),
    *norm_rules(f"{_LAYER}.attention.output.LayerNorm", f"{_PATH}/attention_norm"),
    *norm_rules(f"{_LAYER}.output.LayerNorm", f"{_PATH}/mlp_norm"),
    *linear_rules(f"{_LAYER}.attention.output.dense", f"{_PATH}/out"),
    *linear_rules(f"{_LAYER}.intermediate.dense", f"{_PATH}/up_proj"),
    *linear_rules(f"{_LAYER}.output.dense", f"{_PATH}/down_proj"),
    *linear_rules(f"{_LAYER}.attention.self.{{x}}", f"{_PATH}/{{x}}"),
    *linear_rules("model.lm_head", "params/lm_head"),
  ),
  # A buffer of older transformers.
  ignore=(r"model\.embeddings\.position_ids",),
)
