"""Flow-Omni: a language model whose speech tokens are mel frames, drawn by a flow-matching head.

Yuan et al., "Continuous Speech Tokens Makes LLMs Robust Multi-Modality Learners", arXiv 2412.04917.
No code or weights are public, and the paper's sizes are not known: the mechanism is the paper's,
what is marked [design] is this project's completion of it.

  features  float32[B, F, A], a speech encoder's output (Whisper's in the paper), or none
  text      int32[B, T], the reply, PAD after its end
  tokens    values float32[B, T, m]: log mel frames of unit scale, with a mask where speech ends

Every step gives the next text token (logits) and the next frame (a flow given the state), text a
step ahead of speech [design: delay 1]. Its input is the embedding of the last token plus a
projection of the last frame. A stop logit ends the speech [design: a continuous stream has no
end-of-sequence token]. The adapter stacks four of the encoder's frames and is an MLP of two
layers [design]. The backbone is Llama's (`tokzoo/nn/decoder.py`), where the paper starts from a
pretrained Qwen2-class model.

Loss: L_LM + flow_weight * L_CFM + stop_weight * L_stop; weights 1 [design]. Frames that are fed back
get noise in training [design], against the drift of sampled frames.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.contract import Batch
from tokzoo.errors import TokzooError
from tokzoo.generators.heads.flow_matching import FlowHead
from tokzoo.nn.decoder import (
  KeyValues,
  LlamaStack,
  Memory,
  causal,
  llama_hidden,
  padded,
  so_far,
)
from tokzoo.nn.griffin_lim import from_log_mel
from tokzoo.nn.rotary import Rotary, axis_angles
from tokzoo.nn.spectra import Mel
from tokzoo.tokens import Tokens
from tokzoo.weights import Table

Condition = Mapping[str, Array]
"""`text` int32[B, T] and `features` float32[B, F, A], either of which may lack."""

PAD, BOS = 0, 1
"""Text tokens that mean nothing: after the end, and before the beginning."""


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes; no published ones are known."""

  mels: int = 80
  """m, bins of a frame."""
  sample_rate_hz: int = 24_000
  """Of sound that frames are made of."""
  hop: int = 480
  """Samples a frame: 50 frames a second."""
  n_fft: int = 2048
  """Samples of a frame's window."""
  mel_mean: float = -5.0
  """Of the natural log of mel magnitudes, taken away."""
  mel_std: float = 2.5
  """By which they are divided then."""
  vocab: int = 32_000
  """Text tokens, PAD and BOS among them."""
  feature_dim: int = 1280
  """A, features of the speech encoder."""
  stack: int = 4
  """Of its frames that become one place."""
  width: int = 1024
  """D of the backbone."""
  layers: int = 24
  """Its blocks."""
  heads: int = 16
  """Of each attention."""
  head_width: int = 1024
  """Of the flow head."""
  head_blocks: int = 6
  """Of the flow head."""
  draws: int = 4
  """Times and noises for each frame in training."""
  input_noise: float = 0.1
  """Standard deviation of the noise on frames that are fed back in training."""
  state_dropout: float = 0.1
  """Share of states that are dropped in training, for guidance."""
  flow_weight: float = 1.0
  """Of the flow-matching loss."""
  stop_weight: float = 1.0
  """Of the stop logit's."""

  def build(self) -> "FlowOmni":
    return FlowOmni(self)

  def tokens_of(self, batch: Batch) -> Tokens:
    """The frames of a batch: `values` float32[B, T, m] as they are, or of `audio`."""
    if "values" in batch:
      return Tokens.from_values(batch["values"], mask=batch.get("mask"))
    if "audio" not in batch:
      raise TokzooError(
        f"Flow-Omni trains on sound or frames, but the data has {', '.join(sorted(batch))}: "
        "name a source of sound."
      )
    return Tokens.from_values(self.frames(batch["audio"]))

  def frames(self, audio: Float[Array, "B T C"]) -> Float[Array, "B L m"]:
    """Normalised log mel frames of sound, its channels' mean."""
    mono = audio.astype(jnp.float32).mean(-1, keepdims=True)
    return (self._mel(mono, self.sample_rate_hz) - self.mel_mean) / self.mel_std

  def audio(
    self, frames: Float[Array, "B L m"], rng: PRNGKeyArray
  ) -> Float[Array, "B L*hop 1"]:
    """Sound of frames by Griffin and Lim, where the paper has a vocoder [design].

    Args:
      frames: normalised, as `frames` gives them.
      rng: of the first phases.
    """
    logs = frames * self.mel_std + self.mel_mean
    # The last frame stands in the middle of its hop; a short sound is filled up with silence.
    missing = max(self.n_fft // 2 // self.hop + 2 - frames.shape[1], 1)
    silence = jnp.full((len(frames), missing, self.mels), np.log(1e-5), logs.dtype)
    logs = jnp.concatenate([logs, silence], 1)
    wave = from_log_mel(logs, self._mel, self.sample_rate_hz, rng)
    return wave[:, : frames.shape[1] * self.hop]

  @property
  def _mel(self) -> Mel:
    return Mel(self.n_fft, self.hop, self.mels, log="e")

  def condition(self, batch: Batch) -> Condition:
    """What the frames of a batch are drawn given."""
    return {name: batch[name] for name in ("text", "features") if name in batch}

  def check_condition(self, condition: Mapping[str, Any] | int) -> Condition:
    """A condition from outside, or so many rows of none, as `FlowOmni.sample` takes it.

    Raises:
      TokzooError: other names, shapes or dtypes, or text that is not of the vocabulary.
    """
    if isinstance(condition, int):
      if condition < 1:
        raise TokzooError(f"{condition} sounds were asked for: make at least 1.")
      # Training without text reads PAD at every place.
      return {"text": jnp.full((condition, 1), PAD, jnp.int32)}
    if not condition or set(condition) - {"text", "features"}:
      raise TokzooError(
        "Flow-Omni answers `text` or `features`; the condition has "
        f"{', '.join(sorted(condition)) or 'nothing'}: give one of them, or both."
      )
    given = {name: np.asarray(value) for name, value in condition.items()}
    text, features = given.get("text"), given.get("features")
    if text is not None:
      if text.ndim != 2 or not np.issubdtype(text.dtype, np.integer):
        raise TokzooError(f"text is int[B, T]; this is {text.dtype}{list(text.shape)}.")
      if text.size and not 0 <= text.min() <= text.max() < self.vocab:
        raise TokzooError(
          f"text tokens are 0 to {self.vocab - 1}; these run from {text.min()} to {text.max()}."
        )
      given["text"] = text.astype(np.int32)
    if features is not None:
      if features.ndim != 3 or features.shape[2] != self.feature_dim:
        raise TokzooError(
          f"features are float[B, F, {self.feature_dim}]; these are {list(features.shape)}."
        )
      if not np.isfinite(features).all():
        raise TokzooError("features are finite; these hold NaN or infinity.")
      given["features"] = features.astype(np.float32)
    if len({len(value) for value in given.values()}) > 1:
      raise TokzooError("text and features differ in their number of rows.")
    return {name: jnp.asarray(value) for name, value in given.items()}

  def example(self) -> tuple[Tokens, Condition, PRNGKeyArray]:
    """Inputs of `loss`, of the smallest shapes."""
    tokens = Tokens.from_values(jnp.zeros((1, 2, self.mels)))
    features = jnp.zeros((1, self.stack, self.feature_dim))
    text = jnp.zeros((1, 2), jnp.int32)
    return tokens, {"text": text, "features": features}, jax.random.key(0)


class FlowOmni(nn.Module):
  """The model (contract: `tokzoo.contract.Generator`)."""

  config: Config

  def setup(self):
    c = self.config
    init = nn.initializers.normal(0.02)
    self.embed = nn.Embed(c.vocab, c.width, embedding_init=init)
    self.frame_in = nn.Dense(c.width)
    self.adapter_in = nn.Dense(c.width)
    self.adapter_out = nn.Dense(c.width)
    self.stack = LlamaStack(c.layers, c.heads, llama_hidden(c.width, 64))
    self.norm = nn.RMSNorm(1e-5)
    self.text_out = nn.Dense(c.vocab, use_bias=False)
    self.stop_out = nn.Dense(1)
    self.null = self.param("null", init, (c.width,), jnp.float32)
    self.head = FlowHead(c.mels, c.head_width, c.head_blocks)

  def loss(
    self, tokens: Tokens, condition: Condition, rng: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Text, frames and their end, each place given those before it.

    Args:
      tokens: frames [B, T, m] of unit scale; the mask says where speech is.
      condition: `text`, `features`.
      rng: of noise and times.
    """
    c = self.config
    frames = self._frames(tokens)
    batch, length = frames.shape[:2]
    noise_rng, flow_rng, drop_rng = jax.random.split(rng, 3)
    fed = frames
    is_training = self.has_rng("dropout")
    if is_training and c.input_noise:
      fed = fed + c.input_noise * jax.random.normal(noise_rng, frames.shape)
    text = condition.get("text")
    states = self.states(fed, text, condition.get("features"))
    told, spoken = states[:, :length], states[:, 1:]
    mask = tokens.mask
    seen = jnp.ones((batch, length), bool) if mask is None else mask
    given = spoken
    if is_training and c.state_dropout:
      is_dropped = jax.random.bernoulli(drop_rng, c.state_dropout, (batch, length, 1))
      given = jnp.where(is_dropped, self.null.astype(spoken.dtype)[None, None], spoken)
    flow = _mean(self.head.loss(frames, given, flow_rng, c.draws), seen)
    # The last frame that is spoken is followed by the end.
    is_last = seen & ~jnp.pad(seen[:, 1:], ((0, 0), (0, 1)))
    stop_logits = self.stop_out(spoken)[..., 0].astype(jnp.float32)
    targets = is_last.astype(jnp.float32)
    stop = _mean(optax.sigmoid_binary_cross_entropy(stop_logits, targets), seen)
    metrics = {"flow": flow, "stop": stop}
    total = c.flow_weight * flow + c.stop_weight * stop
    logits = self.text_out(told).astype(jnp.float32)
    if text is not None:
      each = optax.softmax_cross_entropy_with_integer_labels(logits, text)
      # One PAD is learnt, after the end; the others are no text.
      before = jnp.pad(text[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
      is_text = (text != PAD) | (before != PAD)
      metrics["text"] = _mean(each, is_text)
      total = total + metrics["text"]
    return total, metrics

  def states(
    self,
    frames: Float[Array, "B T m"],
    text: Int[Array, "B T"] | None,
    features: Float[Array, "B F A"] | None,
  ) -> Float[Array, "B T+1 D"]:
    """The backbone's states of a teacher-forced pass, T + 1 steps: state t gives text t, and
    frame t - 1, since speech is a step behind."""
    prefix = self._prefix(features, len(frames))
    x = jnp.concatenate([prefix, self._inputs(frames, text)], 1)
    places = x.shape[1]
    states, _ = self.stack(x, self._rotary(places), causal(places))
    return self.norm(states[:, prefix.shape[1] :])

  def sample(
    self,
    rng: PRNGKeyArray,
    condition: Condition,
    *,
    frames: int = 250,
    steps: int = 10,
    guidance: float = 1.0,
  ) -> Tokens:
    """Frames until the stop logit is positive, at most `frames`; text is the likeliest.

    Args:
      rng: of the frames' noise.
      condition: `features` of a question; `text`, where it is given, is read instead of the
        model's own.
      frames: T at most.
      steps: of Euler, for each frame.
      guidance: of the flow; 1: none.

    Returns:
      values float32[B, T, m]; the mask ends with the frame whose stop logit is positive.
    """
    c = self.config
    given, features = condition.get("text"), condition.get("features")
    batch = _rows(condition)
    prefix = self._prefix(features, batch)
    places = prefix.shape[1] + frames + 1
    rotary = self._rotary(places)
    start = prefix.shape[1]
    memory: Memory = ()
    if start:
      _, memory = self.stack(prefix, rotary.rows(0, start), causal(start))
      memory = padded(memory, places)
    else:
      memory = self._empty(batch, places)

    def step(module: "FlowOmni", carry: Any, t: Array) -> tuple[Any, Any]:
      memory, text, frame, is_done = carry
      x = module.embed(text)[:, None] + module.frame_in(frame)[:, None]
      place = start + t
      states, memory = module.stack(
        x, rotary.rows(place, 1), so_far(place, places), memory, place
      )
      state = module.norm(states)[:, 0]
      text = jnp.argmax(module.text_out(state), -1).astype(jnp.int32)
      if given is not None:
        at = jnp.minimum(t, given.shape[1] - 1)
        read = jax.lax.dynamic_index_in_dim(given, at, 1, keepdims=False)
        text = jnp.where(t < given.shape[1], read, PAD)
      drawn = module.head.sample(
        state,
        jax.random.fold_in(rng, t),
        steps,
        guidance,
        module.null.astype(state.dtype)[None],
      )
      # The first step speaks no frame yet.
      drawn = jnp.where(t == 0, jnp.zeros_like(drawn), drawn)
      stop = module.stop_out(state)[:, 0] > 0
      kept = ~is_done & (t > 0)
      is_done = is_done | (stop & (t > 0))
      return (memory, text, drawn, is_done), (drawn, kept)

    carry = (
      memory,
      jnp.full((batch,), BOS, jnp.int32),
      jnp.zeros((batch, c.mels)),
      jnp.zeros((batch,), bool),
    )
    scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
    _, (values, mask) = scan(self, carry, jnp.arange(frames + 1))
    return Tokens.from_values(values[1:].swapaxes(0, 1), mask=mask[1:].T)

  def _inputs(
    self, frames: Float[Array, "B T m"], text: Int[Array, "B T"] | None
  ) -> Float[Array, "B T+1 D"]:
    """What each of T + 1 steps reads: the text before it, and the frame two before it."""
    batch, length = frames.shape[:2]
    if text is None:
      text = jnp.full((batch, length), PAD, jnp.int32)
    if text.shape != (batch, length):
      raise TokzooError(
        f"text of shape {list(text.shape)} came with frames of {batch} x {length}: pad it to as "
        "many places."
      )
    before = jnp.pad(text, ((0, 0), (1, 0)), constant_values=BOS)
    spoken = jnp.pad(frames, ((0, 0), (2, 0), (0, 0)))[:, : length + 1]
    return self.embed(before) + self.frame_in(spoken)

  def _prefix(
    self, features: Float[Array, "B F A"] | None, batch: int
  ) -> Float[Array, "B P D"]:
    """The speech encoder's frames as places, `stack` of them in one."""
    c = self.config
    if features is None and not self.is_initializing():
      return jnp.zeros((batch, 0, c.width))
    if features is None:  # a model has its adapter whatever it was first shown
      self._prefix(jnp.zeros((1, c.stack, c.feature_dim)), 1)
      return jnp.zeros((batch, 0, c.width))
    missing = -features.shape[1] % c.stack
    features = jnp.pad(features, ((0, 0), (0, missing), (0, 0)))
    stacked = features.reshape(batch, -1, c.stack * c.feature_dim)
    return self.adapter_out(nn.gelu(self.adapter_in(stacked)))

  def _rotary(self, places: int) -> Rotary:
    c = self.config
    positions = np.arange(places, dtype=np.float64)[:, None]
    angles = axis_angles(positions, (c.width // c.heads,), 10_000.0)
    return Rotary(
      jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
    )

  def _empty(self, batch: int, places: int) -> Memory:
    """A cache with nothing in it."""
    c = self.config
    shape = (batch, places, c.heads, c.width // c.heads)
    return tuple(KeyValues(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(c.layers))

  def _frames(self, tokens: Tokens) -> Float[Array, "B T m"]:
    values = tokens.values
    if values is None or values.shape[-1] != self.config.mels:
      raise TokzooError(
        f"Flow-Omni speaks frames [B, T, {self.config.mels}]; these tokens are {tokens.kind} "
        f"{list(tokens.array.shape)}."
      )
    return values


def _rows(condition: Condition) -> int:
  """B of a condition.

  Raises:
    TokzooError: it is empty.
  """
  leaves = list(condition.values())
  if not leaves:
    raise TokzooError(
      "Flow-Omni answers something: give `text` or `features` as the condition."
    )
  return len(leaves[0])


def _mean(values: Array, mask: Array) -> Float[Array, ""]:
  """The mean where the mask is True."""
  kept = jnp.where(mask, values, 0.0).sum()
  return kept / jnp.maximum(mask.sum().astype(jnp.float32), 1.0)


PRESETS: dict[str, Config] = {}
"""None is known."""

WEIGHTS = Table(())
"""No weights are public."""
