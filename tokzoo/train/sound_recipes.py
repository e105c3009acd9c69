"""What the recipes of the codecs share: small ones on tones and on speech, and the frame of a
published one."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from tokzoo.contract import Batch, Variables
from tokzoo.data.config import DataConfig
from tokzoo.data.packaged import sound_crops
from tokzoo.errors import TokzooError
from tokzoo.losses import spectral
from tokzoo.nn.sound_critics import (
  MSSTFT,
  Critics,
  MultiBand,
  MultiPeriod,
  MultiResolution,
  MultiScale,
)
from tokzoo.train.recipe import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.sound import SoundAdversary, SoundReconstruction

_RATE = 16_000

PROMPTS = "speech-prompts"
"""The source of real speech."""

WAVE = 10.0
"""Weight of the wave beside EnCodec's spectra where the phase is to be found.

On reconstructed speech the gradient of these spectra is 6 times that of the wave. That of DAC's,
which are logarithms and steep where it is almost silent, is 1,300 times as large (130 times on
noise): weights of 50 and 1 let it drown the wave, of 20 and 0.01 left DAC at silence for 120 steps.
"""

LIGHT_VQ = {"commitment": 0.05, "codebook": 0.2}
"""A fifth of the weights that DAC's codebooks have as published, for short trainings.

As published they outweigh sound at the start (codebook's loss is 9, all that is heard 1.6), and
latents shrink to silence before the wave is found: SNAC's did for 3 of 4 seeds. At a fiftieth the
codes lag behind the latents (a loss of 300).
"""

GAIN = math.sqrt(3)
"""Of initial weights in short trainings, see `LouderStart`."""


def small(system: str, model: Any, weights: Mapping[str, float]) -> Recipe:
  """Half-second crops of tones at 16 kHz, spectra and waves, without critics.

  Args:
    system: its slug.
    model: config of a small codec at 16 kHz.
    weights: of the quantizer's losses.
  """
  optimizer = Optimizer(peak_lr=1e-3, warmup_steps=20, b1=0.8, b2=0.99, clip_norm=10.0)
  held_out = Evaluator(data=sound_crops("test", _RATE, 0.5), batches=4)
  return Recipe(
    system=system,
    name="nano",
    task=SoundReconstruction(
      model=model,
      l1=1.0,
      mel=spectral.dac(_RATE, longest=5),
      mel_weight=1.0,
      weights=dict(weights),
    ),
    data=sound_crops("train", _RATE, 0.5),
    batch_size=8,
    steps=200,
    optimizers={"model": optimizer},
    evaluators={"held_out": held_out},
    save_every=200,
  )


THREE_KINDS = SoundAdversary(
  network=Critics(
    (MultiPeriod(), MultiScale(), MSSTFT(n_ffts=(1024, 2048, 512, 256, 128)))
  ),
  feature_factor=2.0,
)
"""SpeechTokenizer's critics, which DM-Codec took over."""

_SHRINKING = re.compile(
  r"(en|de)coder/layer_.*kernel$|encoder/(block_\d+/)?conv\d/kernel$"
)
"""Paths of SEANet's convolutions, and of those of DAC's encoder outside of residual units."""


@dataclasses.dataclass(frozen=True)
class LouderStart(SoundReconstruction):
  """`SoundReconstruction` of a codec whose convolutions start with larger weights.

  torch's initial weights, which the networks have as published, keep a third of the variance at
  every convolution; through SEANet's eight in a row on either side so little is left of the sound
  that a short training is over before it is found again. DAC's encoder leaves a tenth of it, a
  hundredth of what its codes are at first; its residual units and its decoder are left alone.
  """

  gain: float = GAIN
  """Factor of these initial kernels: the root of 3 keeps the variance."""

  def init(self, rng: PRNGKeyArray, batch: Batch) -> Variables:
    variables = super().init(rng, batch)

    def louder(path: Any, leaf: Any) -> Any:
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      return self.gain * leaf if _SHRINKING.match(name) and leaf.ndim == 3 else leaf

    params = jax.tree_util.tree_map_with_path(louder, variables["params"])
    return {**variables, "params": params}


def speech(
  system: str,
  model: Any,
  weights: Mapping[str, float],
  *,
  steps: int = 500,
) -> Recipe:
  """Half seconds of the speech prompts at 16 kHz, spectra and waves, without critics.

  For the benchmark of the survey: some minutes on a CPU.

  Args:
    system: its slug.
    model: config of a codec at 16 kHz.
    weights: of the quantizer's losses.
    steps: of the run.
  """
  optimizer = Optimizer(
    peak_lr=1.5e-3,
    warmup_steps=30,
    b1=0.8,
    b2=0.99,
    clip_norm=10.0,
  )
  task = LouderStart(
    model=model, l1=WAVE, mel=spectral.encodec(_RATE), weights=dict(weights)
  )
  return Recipe(
    system=system,
    name="speech-nano",
    task=task,
    data=prompts("train"),
    batch_size=8,
    steps=steps,
    optimizers={"model": optimizer},
    evaluators={"held_out": Evaluator(data=prompts("test"))},
    save_every=100,
    log_every=20,
  )


def with_critics(
  recipe: Recipe, adversary: SoundAdversary, init_from: str | None = None
) -> Recipe:
  """The whole objective, small: a recipe without critics, and its system's made `smaller`.

  Args:
    recipe: `small` or `speech`.
    adversary: as published. Its weights are a twentieth here, where the wave and the spectra of a
      small codec count for half of one, and not for ten.
    init_from: the checkpoint that it goes on from, gently; None: from the start.
  """
  light = dataclasses.replace(
    adversary,
    network=smaller(adversary.network),
    weight=0.05 * adversary.weight,
    feature_weight=0.05 * adversary.feature_weight,
  )
  gentle = dataclasses.replace(
    recipe.optimizers["model"], peak_lr=3e-4, warmup_steps=20, weight_decay=0.0
  )
  return dataclasses.replace(
    recipe,
    name=f"{recipe.name.removesuffix('nano')}gan-nano",
    task=dataclasses.replace(recipe.task, adversary=light),
    batch_size=8,
    steps=200,
    optimizers={
      "model": recipe.optimizers["model"] if init_from is None else gentle,
      "discriminator": gentle,
    },
    init_from=init_from,
    save_every=100,
    log_every=20,
  )


def smaller(network: Any) -> Any:
  """Critics of the same kinds for a CPU: one transform, two periods, an eighth of the channels."""
  match network:
    case Critics():
      return Critics(tuple(map(smaller, network.networks)), network.peak)
    case MultiPeriod():
      return network.clone(
        periods=(2, 3), widths=tuple(width // 8 for width in network.widths)
      )
    case MultiResolution():
      return network.clone(n_ffts=(512,), width=network.width // 8)
    case MultiScale():
      return MultiScale(tuple(width // 8 for width in network.widths), groups=4)
    case MultiBand():
      return MultiBand((512,), network.width // 8, network.bands)
    case MSSTFT():
      return network.clone(n_ffts=(512,), hops=None, width=network.width // 8)
  raise TokzooError(
    f"{type(network).__name__} is not a critic of tokzoo/nn/sound_critics: write a small one."
  )


def prompts(split: str) -> DataConfig:
  """Half seconds of the speech prompts at 16 kHz; split: train or test.

  Every prompt is decoded anew for each crop, a millisecond: an accelerator wants many threads.
  """
  data = sound_crops(split, _RATE, 0.5, PROMPTS)
  return dataclasses.replace(data, threads=8, prefetch=16) if split == "train" else data


def at_scale(
  system: str,
  name: str,
  task: SoundReconstruction,
  *,
  seconds: float,
  batch_size: int,
  steps: int,
  optimizer: Optimizer,
) -> Recipe:
  """A codec and its critics on a folder of sounds, on all devices.

  Args:
    system, name: of the recipe.
    task: with an adversary.
    seconds: of a crop.
    batch_size, steps: of the run.
    optimizer: of codec and critics alike.
  """
  rate = task.model.sample_rate_hz
  data = sound_crops("train", rate, seconds, "audio:data/sounds")
  held_out = dataclasses.replace(data, split="test", repeat=1, shuffle=False)
  return Recipe(
    system=system,
    name=name,
    task=task,
    data=dataclasses.replace(data, threads=32, prefetch=8),
    batch_size=batch_size,
    steps=steps,
    optimizers={"model": optimizer, "discriminator": optimizer},
    evaluators={"held_out": Evaluator(data=held_out, every=10_000, batches=10)},
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_000,
    log_every=100,
  )
