"""What the recipes of the codecs share: small ones on tones and on speech, and the frame of a
published one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tokzoo.data.packaged import sound_crops
from tokzoo.losses import spectral
from tokzoo.train.recipe import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.sound import SoundReconstruction

_RATE = 16_000

PROMPTS = "speech-prompts"
"""The source of real speech."""


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


def speech(system: str, model: Any, weights: Mapping[str, float]) -> Recipe:
  """Half seconds of the speech prompts at 16 kHz, spectra and waves, without critics.

  For the benchmark of the survey: minutes on two CPU cores. The wave's weight makes its loss
  about as large as that of the five spectra.

  Args:
    system: its slug.
    model: config of a codec at 16 kHz.
    weights: of the quantizer's losses.
  """
  optimizer = Optimizer(peak_lr=2e-3, warmup_steps=20, b1=0.8, b2=0.99, clip_norm=10.0)
  return Recipe(
    system=system,
    name="speech-nano",
    task=SoundReconstruction(
      model=model,
      l1=50.0,
      mel=spectral.dac(_RATE, longest=5),
      mel_weight=1.0,
      weights=dict(weights),
    ),
    data=sound_crops("train", _RATE, 0.5, PROMPTS),
    batch_size=8,
    steps=200,
    optimizers={"model": optimizer},
    evaluators={"held_out": Evaluator(data=sound_crops("test", _RATE, 0.5, PROMPTS))},
    save_every=200,
  )


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
