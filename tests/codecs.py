"""Tiny codecs of sound with random weights, and their checkpoint files."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tokzoo.hub import Card, PretrainedCodec
from tokzoo.hub.codec import example_sound
from tokzoo.nn.seanet import SEANet
from tokzoo.systems import part_of_config
from tokzoo.tokenizers.audio.encodec import Config
from tokzoo.train import to_json
from tokzoo.weights.checkpoint import write_checkpoint

RATE = 1_600

CAUSAL = Config(
  sample_rate_hz=RATE,
  net=SEANet(filters=4, dim=8, ratios=(4, 2), lstm_layers=1),
  num_codebooks=4,
  num_codes=16,
  bandwidths_kbps=(0.8, 1.6, 3.2),
)
"""200 frames a second of 4 bits: 1, 2 and 4 codebooks."""

STEREO = Config(
  sample_rate_hz=RATE,
  net=SEANet(
    filters=4,
    dim=8,
    ratios=(4, 2),
    channels=2,
    is_causal=False,
    norm="time_group",
    lstm_layers=1,
  ),
  num_codebooks=2,
  num_codes=16,
  bandwidths_kbps=(1.6,),
  chunk=1_600,
  stride=1_584,
  is_normalized=True,
)
"""EnCodec at 48 kHz, small: chunks of a second."""


@functools.cache
def random_codec(config: Any, seed: int = 0) -> Any:
  """Variables whose codes are spread about where the latents are."""
  module = config.build()
  names = ("params", "codebook", "quantizer", "noise")
  rngs = {name: jax.random.key(seed + 1) for name in names}
  like = jax.eval_shape(module.init, rngs, example_sound(config))
  draw = np.random.default_rng(seed)

  def random(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    if leaf.dtype == np.bool_:
      return np.ones(leaf.shape, bool)
    fan_in = int(np.prod(leaf.shape[:-1])) or 1
    scale = 1.5 / fan_in**0.5 if leaf.ndim > 1 else 0.1
    return draw.normal(size=leaf.shape, scale=scale).astype(leaf.dtype)

  variables = jax.tree.map(random, like)
  codes = variables.get("codebook", {})
  spread = jax.tree.map(lambda x: 0.5 * x if x.dtype != np.bool_ else x, codes)
  return {**variables, "codebook": spread} if codes else variables


def pretrained(config: Any, seed: int = 0) -> PretrainedCodec:
  """A codec in memory."""
  card = Card("tiny", "encodec", "tokenizer", "Apache-2.0", "Apache-2.0")
  return PretrainedCodec(config.build(), random_codec(config, seed), card)


def save_codec(path: Path, config: Any = CAUSAL, seed: int = 0) -> Path:
  """Writes a random codec as a checkpoint file."""
  system, part = part_of_config(config)
  about = {"system": system, "part": part, "config": to_json(config)}
  write_checkpoint(path, random_codec(config, seed), about)
  return path


def sound(seconds: float = 0.5, channels: int = 1, seed: int = 0) -> np.ndarray:
  """float32[T, C] at RATE: a chord over noise."""
  draw = np.random.default_rng(seed)
  times = np.arange(round(seconds * RATE)) / RATE
  waves = [
    0.3 * np.sin(2 * np.pi * 110 * (c + 1) * times) * np.sin(3 * times) ** 2
    for c in range(channels)
  ]
  noise = 0.05 * draw.normal(size=(len(times), channels))
  return (np.stack(waves, 1) + noise).astype(np.float32)
