"""MaskGIT's transformer and its parallel decoding.

Chang et al., "MaskGIT: Masked Generative Image Transformer", arXiv 2202.04200. Written from
what google-research/maskgit @ 1db2359 computes (`maskgit/nets/maskgit_transformer.py`,
`maskgit/libml/{parallel_decode,mask_schedule,losses}.py`); weights as Flax checkpoints at
storage.googleapis.com/maskgit-public, each the variables {"params": ...} of the module.

Sequence: [class, N tokens]. One table, which also gives the logits, holds the codes (ids 0 to
V - 1), the classes, and the mask in its last row: a masked token is id -1, here as there.
Post-norm BERT, tanh GELU, layer norms with eps 1e-12, full attention.

Decoding, step s of T, r = (s + 1) / T: every masked token is drawn from its softmax; of those,
the floor(n0 gamma(r)) least confident are masked again, at least one and fewer than before;
confidence = log p + temperature (1 - r) Gumbel; n0 counts what was masked at the start. The
result is the last step's draw before it masks again.

Quirks kept: a token that ties with the threshold is not masked; label smoothing spreads over
classes and mask as well.

Differences from the source: dropout is on exactly when the rng stream `dropout` is there; the
option to train on heavy masks only (min_masking_rate), whose use was not released, is left out.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.errors import TokzooError
from tokzoo.nn.dropout import attend_dropping, dropped
from tokzoo.nn.labelled import LabelledIds, require_ids, require_labels
from tokzoo.nn.layers import rows_dot_general
from tokzoo.nn.schedules import mask_schedule
from tokzoo.tokens import Tokens
from tokzoo.weights import Rule, Table

_INIT = nn.initializers.truncated_normal(0.02)

MASKED = -1
"""The id of a masked token."""


@dataclasses.dataclass(frozen=True)
class MaskGITConfig(LabelledIds):
  """Sizes of MaskGIT; the defaults are the published ones at 256 pixels."""

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
  norm_eps: float = 1e-12
  """Of every norm."""
  dropout: float = 0.1
  """On embeddings, attention weights and branches, in training."""
  label_smoothing: float = 0.1
  """Of the training loss."""
  schedule: str = "cosine"
  """Which share of the tokens training masks: `tokzoo.nn.schedules.mask_schedule`."""

  def build(self) -> "MaskGIT":
    return MaskGIT(self)

  @property
  def num_tokens(self) -> int:
    """Tokens per image."""
    return math.prod(self.grid)

  @property
  def rows(self) -> int:
    """Of the embedding table: codes, classes, the mask."""
    return self.vocab + self.num_classes + 1


class Decoded(struct.PyTreeNode):
  """What each of T decoding steps drew.

  samples:  int32[B, T, N], before masking again; the last step's is the result
  states:   int32[B, T, N], after it, -1 at masked tokens; also the last step's, which masks
            one token that nobody draws
  masked:   int32[B, T], masked tokens of each state
  """

  samples: Int[Array, "B T N"]
  states: Int[Array, "B T N"]
  masked: Int[Array, "B T"]


Noise = Callable[[Any], tuple[Float[Array, "B N V"], Float[Array, "B N"]]]
"""step -> Gumbel noise of the draw and of the confidence."""


class Layer(nn.Module):
  """Post-norm BERT layer."""

  config: MaskGITConfig

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    c = self.config
    heads = c.heads, c.width // c.heads
    q, k, v = (
      nn.DenseGeneral(heads, kernel_init=_INIT, name=name)(x)
      for name in ("query", "key", "value")
    )
    attended = attend_dropping(self, q, k, v, None, c.dropout)
    out = nn.DenseGeneral(c.width, axis=(-2, -1), kernel_init=_INIT, name="out")
    y = _norm(c, "attention_ln")(x + dropped(self, out(attended), c.dropout))
    hidden = nn.gelu(_dense(c.mlp_width, "up_proj")(y), approximate=True)
    h = dropped(self, _dense(c.width, "down_proj")(hidden), c.dropout)
    return checkpoint_name(_norm(c, "mlp_ln")(y + h), "block")


class MaskGIT(nn.Module):
  """The generator (contract: `tokzoo.contract.Generator`)."""

  config: MaskGITConfig

  def setup(self):
    c = self.config
    self.tokens = nn.Embed(c.rows, c.width, embedding_init=_INIT)
    self.positions = nn.Embed(c.num_tokens + 1, c.width, embedding_init=_INIT)
    self.embed_ln = _norm(c)
    self.layers = [Layer(c) for _ in range(c.layers)]
    self.head_dense = nn.Dense(c.width, kernel_init=_INIT, dot_general=rows_dot_general)
    self.head_ln = _norm(c)
    self.head_bias = self.param("head_bias", nn.initializers.zeros, (c.rows,))

  def __call__(
    self, ids: Int[Array, "B N"], labels: Int[Array, "B"]
  ) -> Float[Array, "B N+1 R"]:
    """Logits over the whole table, float32, of the class's place and every token's.

    Args:
      ids: tokens, -1 where masked.
      labels: classes.
    """
    c = self.config
    start = require_labels(labels, c.num_classes, has_null=False)[:, None] + c.vocab
    ids = jnp.concatenate([start, jnp.asarray(ids, jnp.int32)], axis=1)
    # The mask is the table's last row.
    ids = jnp.where(ids == MASKED, c.rows - 1, ids)
    x = self.tokens(ids) + self.positions(jnp.arange(ids.shape[1]))[None]
    x = dropped(self, self.embed_ln(x), c.dropout)
    for layer in self.layers:
      x = layer(x)
    x = self.head_ln(nn.gelu(self.head_dense(x), approximate=True))
    logits = self.tokens.attend(x) + self.head_bias[None, None]
    return logits.astype(jnp.float32)

  def loss(
    self, tokens: Tokens, condition: Int[Array, "B"], rng: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Smoothed cross-entropy of the masked tokens, in nats.

    ceil(gamma(r) N) random tokens of each sample are masked, r ~ U(0, 1).

    Raises:
      TokzooError: tokens or labels of another layout.
    """
    c = self.config
    ids = require_ids(tokens, c.num_tokens, c.vocab)
    ratio_rng, place_rng = jax.random.split(rng)
    r = jax.random.uniform(ratio_rng, ids.shape[:1], minval=1e-6)
    share = mask_schedule(c.schedule)(r, c.num_tokens)
    count = jnp.ceil(share * c.num_tokens).astype(jnp.int32)
    masked = random_mask(place_rng, count, c.num_tokens)
    logits = self(jnp.where(masked, MASKED, ids), condition)[:, 1:]
    each = smoothed_cross_entropy(logits, ids, c.label_smoothing)
    hit = logits[..., : c.vocab].argmax(-1) == ids
    return each.mean(where=masked), {
      "accuracy": (hit & masked).sum() / masked.sum(),
      "masked": masked.mean(),
    }

  def decode_steps(
    self,
    start: Int[Array, "B N"],
    labels: Int[Array, "B"],
    noise: Noise,
    *,
    steps: int = 12,
    first: int = 0,
    choice_temperature: float = 4.5,
    schedule: str = "cosine",
  ) -> Decoded:
    """Parallel decoding from `start` (-1 where masked); the settings are those of `sample`."""
    c = self.config
    gamma = mask_schedule(schedule)
    unknown = (start == MASKED).sum(1)
    # A loop of jax calls a module that is not bound to an outer trace.
    module, variables = self.unbind()

    def step(ids, s):
      logits = jnp.asarray(module.apply(variables, ids, labels))[:, 1:, : c.vocab]
      of_draw, of_choice = noise(s)
      is_masked = ids == MASKED
      drawn = jnp.where(is_masked, (logits + of_draw).argmax(-1), ids)
      log_p = jax.nn.log_softmax(logits)
      log_p = jnp.take_along_axis(log_p, jnp.maximum(drawn, 0)[..., None], -1)[..., 0]
      r = (s + 1).astype(jnp.float32) / steps
      confidence = log_p + choice_temperature * (1 - r) * of_choice
      confidence = jnp.where(is_masked, confidence, jnp.inf)
      # The schedule of `log` and `exp` is of all tokens that were masked at the start.
      holes = unknown.astype(jnp.float32)
      share = gamma(r, jnp.maximum(holes, 2))
      count = jnp.floor(holes * share).astype(jnp.int32)
      count = jnp.maximum(1, jnp.minimum(is_masked.sum(1) - 1, count))
      threshold = jnp.take_along_axis(jnp.sort(confidence, 1), count[:, None], 1)
      after = jnp.where(confidence < threshold, MASKED, drawn).astype(jnp.int32)
      return after, (drawn.astype(jnp.int32), after, (after == MASKED).sum(1))

    _, told = jax.lax.scan(
      step, jnp.asarray(start, jnp.int32), jnp.arange(first, steps)
    )
    return Decoded(*(x.swapaxes(0, 1) for x in told))

  def sample(
    self,
    rng: PRNGKeyArray | None,
    condition: Int[Array, "B"],
    *,
    steps: int = 12,
    choice_temperature: float = 4.5,
    schedule: str = "cosine",
    known: Int[Array, "B N"] | None = None,
    first: int = 0,
  ) -> Tokens:
    """Draws all tokens in a few steps.

    Args:
      rng: key of every draw.
      condition: labels, B rows.
      steps: network calls, T.
      choice_temperature: of the noise on the confidence, which falls to 0.
      schedule: how many tokens stay masked: `tokzoo.nn.schedules.mask_schedule`.
      known: tokens to keep, -1 where one is to be drawn (inpainting); None: draw all.
      first: step to start from; with known tokens, some are skipped (published: 2 of 12).

    Raises:
      TokzooError: settings, labels or known tokens out of range.
    """
    c = self.config
    check_steps(rng, steps, first)
    if not choice_temperature >= 0:
      raise TokzooError(
        f"choice_temperature is at least 0; it is {choice_temperature}: pass 0 or more."
      )
    assert rng is not None
    mask_schedule(schedule)
    batch, length = condition.shape[0], c.num_tokens
    start = jnp.full((batch, length), MASKED) if known is None else jnp.asarray(known)
    if start.shape != (batch, length):
      raise TokzooError(
        f"known tokens are int32[{batch}, {length}], -1 where unknown; these are "
        f"{list(start.shape)}."
      )

    def noise(s):
      draw_rng, choice_rng = jax.random.split(jax.random.fold_in(rng, s))
      shape = batch, length
      return (
        jax.random.gumbel(draw_rng, (*shape, c.vocab)),
        jax.random.gumbel(choice_rng, shape),
      )

    decoded = self.decode_steps(
      start,
      condition,
      noise,
      steps=steps,
      first=first,
      choice_temperature=choice_temperature,
      schedule=schedule,
    )
    return Tokens.from_ids(decoded.samples[:, -1], c.vocab, grid=c.grid)


def check_steps(rng: PRNGKeyArray | None, steps: int, first: int = 0) -> None:
  """Raises TokzooError unless a masked sampler has a key and a number of steps."""
  if rng is None:
    raise TokzooError("sampling needs a random key: pass rng=jax.random.key(seed).")
  if steps < 1 or not 0 <= first < steps:
    raise TokzooError(
      f"sampling from step {first} of {steps}: steps is at least 1, and the first step is 0 "
      "to steps - 1."
    )


def random_mask(
  rng: PRNGKeyArray, count: Int[Array, "B"], length: int
) -> Bool[Array, "B N"]:
  """`count` random places of each row."""
  noise = jax.random.uniform(rng, (count.shape[0], length))
  ranks = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
  return ranks < count[:, None]


def smoothed_cross_entropy(
  logits: Float[Array, "... V"], ids: Int[Array, "..."], smoothing: float
) -> Float[Array, "..."]:
  """-sum q log p, q = (1 - smoothing) one-hot + smoothing / V."""
  log_p = jax.nn.log_softmax(logits, axis=-1)
  true = jnp.take_along_axis(log_p, ids[..., None], axis=-1)[..., 0]
  return -(1 - smoothing) * true - smoothing * log_p.mean(-1)


def _dense(features: int, name: str) -> nn.Dense:
  return nn.Dense(features, kernel_init=_INIT, dot_general=rows_dot_general, name=name)


def _norm(config: MaskGITConfig, name: str | None = None) -> nn.LayerNorm:
  return nn.LayerNorm(config.norm_eps, use_fast_variance=False, name=name)


PRESETS = {
  "maskgit-imagenet-256": MaskGITConfig(),
  "maskgit-imagenet-512": MaskGITConfig(grid=(32, 32)),
}

_LAYER, _PATH = "TransformerLayer_{i}", "params/layers_{i}"
_SELF = f"{_LAYER}/Attention_0/self_attention"

WEIGHTS = Table(
  rules=(
    Rule("Embed_0/word_embeddings/embedding", "params/tokens/embedding"),
    Rule("Embed_0/position_embeddings/embedding", "params/positions/embedding"),
    Rule("Embed_0/embeddings_ln/{x}", "params/embed_ln/{x}"),
    Rule(
      f"{_LAYER}/Attention_0/attention_output_ln/{{x}}", f"{_PATH}/attention_ln/{{x}}"
    ),
    *(
      Rule(f"{_SELF}/{name}/{{x}}", f"{_PATH}/{name}/{{x}}")
      for name in ("query", "key", "value", "out")
    ),
    Rule(f"{_LAYER}/Mlp_0/intermediate_output/{{x}}", f"{_PATH}/up_proj/{{x}}"),
    Rule(f"{_LAYER}/Mlp_0/layer_output/{{x}}", f"{_PATH}/down_proj/{{x}}"),
    Rule(f"{_LAYER}/Mlp_0/layer_output_ln/{{x}}", f"{_PATH}/mlp_ln/{{x}}"),
    Rule("MlmLayer_0/mlm_dense/{x}", "params/head_dense/{x}"),
    Rule("MlmLayer_0/mlm_ln/{x}", "params/head_ln/{x}"),
    Rule("MlmLayer_0/mlm_bias/bias", "params/head_bias"),
  )
)


def flax_weights(config: MaskGITConfig) -> Table:
  """The table of a Flax checkpoint: the authors' code is Linen, of whatever size."""
  return WEIGHTS
