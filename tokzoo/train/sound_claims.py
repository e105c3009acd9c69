"""What claims of several codecs measure: that they are causal, that streams equal the whole."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tokzoo.contract import Variables


def as_it_starts(model: Any, seed: int, audio: Float[Array, "B T C"]) -> Variables:
  """A codec before training, its codebooks drawn among its latents.

  Args:
    model: config of a codec that learns its codebooks in the collection `codebook`.
    seed: of weights and codebooks.
    audio: whose latents.
  """
  module = model.build()
  rngs = {name: jax.random.key(seed) for name in ("params", "codebook", "quantizer")}
  variables = module.init(rngs, audio)
  _, updated = module.apply(
    variables, audio, train=True, rngs=rngs, mutable=["codebook"]
  )
  return {**variables, **updated}


def ids_changed_before(model: Any, seed: int, audio: Float[Array, "B T C"]) -> float:
  """How many ids of the first half of sounds change where noise is added to the second."""
  half = audio.shape[1] // 2
  noise = jax.random.normal(jax.random.key(seed), audio[:, half:].shape)
  changed = audio.at[:, half:].add(0.1 * noise)
  variables = as_it_starts(model, seed, audio)
  run = jax.jit(functools.partial(model.build().apply, method="encode"))
  before = half // model.hop
  ids = [np.asarray(run(variables, x).ids)[:, :before] for x in (audio, changed)]
  return float((ids[0] != ids[1]).sum())


def causality(model: Any, seed: int, audio: Float[Array, "B T C"]) -> dict[str, float]:
  """`ids_changed_before` of a causal codec, and of the same one with convolutions that look
  ahead."""
  ahead = dataclasses.replace(model.net, is_causal=False)
  models = {"causal": model, "not causal": dataclasses.replace(model, net=ahead)}
  return {
    f"ids that change: {name}": ids_changed_before(each, seed, audio)
    for name, each in models.items()
  }


def is_causal(n: Mapping[str, float]) -> bool:
  """Whether the numbers of `causality` say so, of the causal codec alone."""
  return n["ids that change: causal"] == 0 and n["ids that change: not causal"] > 0


def streamed_against_whole(
  model: Any, seed: int, audio: Float[Array, "B T C"], frames: int = 20
) -> dict[str, float]:
  """Pieces of so many frames with carried states against the whole."""
  piece = frames * model.hop
  audio = audio[:, : audio.shape[1] // piece * piece]
  module, variables = model.build(), as_it_starts(model, seed, audio)
  whole = module.apply(variables, audio, method="encode")
  made = module.apply(variables, whole, method="decode")
  state = module.apply(variables, len(audio), method="init_state")
  step = jax.jit(lambda s, x: module.apply(variables, s, x, method="encode_step"))
  back = jax.jit(lambda s, t: module.apply(variables, s, t, method="decode_step"))
  ids, waves = [], []
  for part in jnp.split(audio, audio.shape[1] // piece, 1):
    state, tokens = step(state, part)
    state, wave = back(state, tokens)
    ids.append(np.asarray(tokens.ids))
    waves.append(np.asarray(wave))
  differ = np.concatenate(ids, 1) != np.asarray(whole.ids)
  error = np.abs(np.concatenate(waves, 1) - np.asarray(made)).max()
  return {
    "ids that differ": float(differ.sum()),
    "largest error over largest value": float(error / np.abs(made).max()),
  }


def is_streamed(n: Mapping[str, float]) -> bool:
  """Whether the numbers of `streamed_against_whole` are the same ids, and the wave to 1e-4."""
  return n["ids that differ"] == 0 and n["largest error over largest value"] < 1e-4
