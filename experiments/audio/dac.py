"""DAC (arXiv 2306.06546): codes of 8 features searched by angle, 16, 24 and 44.1 kHz.

  tokzoo train experiments/audio/dac.py --recipe nano

Lab record
  nano                     synthesised tones at 16 kHz, 4 codebooks of 64 codes, 2 CPU cores
  16khz, 24khz, 44khz      the published configurations (conf/final/*.yml): 0.38 s crops; their
                           training data is not public as a set: any folder of audio
"""

import dataclasses

from tokzoo.data.packaged import sound_crops
from tokzoo.losses import spectral
from tokzoo.nn.dac import DACNet
from tokzoo.nn.sound_critics import Critics, MultiBand, MultiPeriod
from tokzoo.tokenizers.audio.dac import PRESETS, Config
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.sound import SoundAdversary, SoundReconstruction

SYSTEM = "dac"

SMALL = Config(
  sample_rate_hz=16_000,
  net=DACNet(encoder_dim=8, rates=(4, 5, 8), decoder_dim=64),
  num_codebooks=4,
  num_codes=64,
)
"""Hop 160: 100 frames a second of 6 bits a codebook."""

_VQ = {"commitment": 0.25, "codebook": 1.0}


def nano() -> Recipe:
  """Half-second crops, spectra and waves, without critics."""
  return Recipe(
    system=SYSTEM,
    name="nano",
    task=SoundReconstruction(
      model=SMALL,
      l1=1.0,
      mel=spectral.dac(16_000, longest=5),
      mel_weight=1.0,
      weights=_VQ,
    ),
    data=sound_crops("train", 16_000, 0.5),
    batch_size=8,
    steps=200,
    optimizers={
      "model": Optimizer(peak_lr=1e-3, warmup_steps=20, b1=0.8, b2=0.99, clip_norm=10.0)
    },
    evaluators={
      "held_out": Evaluator(data=sound_crops("test", 16_000, 0.5), batches=4)
    },
    save_every=200,
  )


def _published(rate: str, steps: int) -> Recipe:
  model = PRESETS[f"dac-{rate}"]
  data = sound_crops("train", model.sample_rate_hz, 0.38, "audio:data/sounds")
  held_out = dataclasses.replace(data, split="test", repeat=1, shuffle=False)
  # As published but for the decay of the learning rate, by 0.999996 a step.
  optimizer = Optimizer(peak_lr=1e-4, schedule="constant", b1=0.8, b2=0.99)
  return Recipe(
    system=SYSTEM,
    name=rate,
    task=SoundReconstruction(
      model=model,
      l1=0.0,
      mel=spectral.dac(model.sample_rate_hz),
      mel_weight=15.0,
      weights=_VQ,
      adversary=SoundAdversary(
        network=Critics((MultiPeriod(), MultiBand()), peak=0.8),
        weight=1.0,
        feature_weight=2.0,
        skips_logits=True,
      ),
    ),
    data=dataclasses.replace(data, threads=32, prefetch=8),
    batch_size=72,
    steps=steps,
    optimizers={"model": optimizer, "discriminator": optimizer},
    evaluators={"held_out": Evaluator(data=held_out, every=10_000, batches=10)},
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_000,
    log_every=100,
  )


def khz16() -> Recipe:
  """16 kHz, 12 codebooks."""
  return _published("16khz", 400_000)


def khz24() -> Recipe:
  """24 kHz, 32 codebooks."""
  return _published("24khz", 400_000)


def khz44() -> Recipe:
  """44.1 kHz, 9 codebooks."""
  return _published("44khz", 250_000)


RECIPES = {"nano": nano, "16khz": khz16, "24khz": khz24, "44khz": khz44}
