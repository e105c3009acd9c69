"""Tiny codecs with random weights, and the sounds they are given."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.base import compiled
from tokzoo.nn.dac import DACNet
from tokzoo.nn.hubert import HuBERT
from tokzoo.nn.seanet import SEANet
from tokzoo.nn.vocos import Vocos
from tokzoo.tokenizers.audio import (
  dac,
  dm_codec,
  encodec,
  mimi,
  snac,
  speechtokenizer,
  wavtokenizer,
  xcodec,
)

_NET = SEANet(dim=8, filters=2, ratios=(4, 2), lstm_layers=2)
_STEREO = SEANet(
  channels=2, dim=8, filters=2, ratios=(4, 2), is_causal=False, norm="time_group"
)
_SPEECH = dataclasses.replace(_NET, is_causal=False, is_bidirectional=True)
_DAC = DACNet(encoder_dim=2, rates=(2, 4), decoder_dim=8)

CONFIGS: dict[str, Any] = {
  "encodec": encodec.Config(
    sample_rate_hz=800,
    net=_NET,
    num_codebooks=4,
    num_codes=16,
    bandwidths_kbps=(0.4, 0.8, 1.6),
  ),
  "encodec-stereo": encodec.Config(
    sample_rate_hz=400,
    net=_STEREO,
    num_codebooks=4,
    num_codes=16,
    bandwidths_kbps=(0.4, 0.8),
    chunk=80,
    stride=76,
    is_normalized=True,
  ),
  "dac": dac.Config(
    sample_rate_hz=800,
    net=dataclasses.replace(_DAC, rates=(2, 5)),
    num_codebooks=3,
    num_codes=16,
    code_dim=4,
  ),
  "mimi": mimi.Config(
    sample_rate_hz=480,
    net=dataclasses.replace(
      mimi.Config().net, dim=16, filters=2, ratios=(4, 2), kernel=5
    ),
    layers=2,
    heads=2,
    hidden=24,
    window=5,
    num_codebooks=4,
    num_codes=16,
    code_dim=8,
    layer_scale=1.0,
  ),
  "snac": snac.Config(
    sample_rate_hz=800,
    net=dataclasses.replace(
      snac.Config().net, encoder_dim=2, rates=(2, 3), decoder_dim=8
    ),
    num_codes=16,
    code_dim=4,
  ),
  "snac-attention": snac.Config(
    sample_rate_hz=800,
    net=dataclasses.replace(
      snac.Config().net,
      encoder_dim=16,
      rates=(2, 2),
      decoder_dim=64,
      attention_window=8,
    ),
    num_codes=16,
    code_dim=4,
  ),
  "speechtokenizer": speechtokenizer.Config(
    sample_rate_hz=800, net=_SPEECH, num_codebooks=3, num_codes=16, semantic_dim=6
  ),
  "dm-codec": dm_codec.Config(
    sample_rate_hz=800, net=_SPEECH, num_codebooks=3, num_codes=16, semantic_dim=6
  ),
  "wavtokenizer": wavtokenizer.Config(
    sample_rate_hz=800,
    net=dataclasses.replace(_NET, is_causal=False),
    vocos=Vocos(dim=8, hidden=12, layers=2, groups=2, bandwidths=2, n_fft=32, hop=8),
    num_codes=16,
  ),
  "xcodec": xcodec.Config(
    sample_rate_hz=800,
    net=dataclasses.replace(
      _DAC,
      rates=(4, 2),
      decoder_rates=(4, 2),
      latent_dim=4,
      has_tanh=False,
      output_padding=True,
    ),
    semantic=HuBERT(
      dim=8,
      layers=1,
      heads=2,
      hidden=12,
      conv_dims=(4, 4, 4),
      conv_strides=(2, 2, 2),
      conv_kernels=(3, 3, 2),
      position_kernel=4,
      position_groups=2,
    ),
    num_codebooks=2,
    num_codes=16,
    bandwidths_kbps=(0.4, 0.8),
  ),
}


def mostly_slow(*everyday: str) -> list[Any]:
  """All codecs as parameters of a test, slow but for some that differ most."""
  return [
    name if name in everyday else pytest.param(name, marks=pytest.mark.slow)
    for name in CONFIGS
  ]


@functools.cache
def variables_of(name: str) -> Any:
  """Random variables of a config, with codebooks that are in use."""
  config = CONFIGS[name]
  x = jnp.zeros((1, 16 * config.hop, config.channels))
  like = jax.eval_shape(config.build().init, jax.random.key(0), x)
  draw = np.random.default_rng(0)

  def random(path, leaf):
    last = path[-1].key
    if last == "is_started":
      return np.ones(leaf.shape, leaf.dtype)
    if last in ("alpha", "scale", "gamma"):
      return draw.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    fan = int(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 4
    fan = 1 if path[0].key == "codebook" or last == "codes" else fan
    return draw.normal(size=leaf.shape, scale=fan**-0.5).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(random, like)


def sound(config: Any, samples: int, batch: int = 2, seed: int = 0) -> jax.Array:
  """Noise in [-1, 1], [B, T, C]."""
  draw = np.random.default_rng(seed)
  shape = (batch, samples, config.channels)
  return jnp.asarray(draw.uniform(-1, 1, shape), jnp.float32)


def run(name: str, method: Any, *arguments: Any, **settings: Any) -> Any:
  """A method of the tiny codec, compiled as one program."""
  module = CONFIGS[name].build()
  apply = compiled(lambda v, given: module.apply(v, *given, method=method, **settings))
  return apply(variables_of(name), arguments)
