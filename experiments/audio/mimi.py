"""Mimi (arXiv 2410.00037): Moshi's codec, causal, 12.5 frames a second.

  tokzoo train experiments/audio/mimi.py --recipe nano

Lab record
  nano        synthesised tones at 16 kHz, 2 CPU cores
  published   the published configuration; its data (7 million hours) is not public, and the
              distillation of WavLM needs a teacher's features in the batches

The schedule's numbers are not checked against the authors' own.
"""

import dataclasses

from tokzoo.data.packaged import sound_crops
from tokzoo.losses import spectral
from tokzoo.nn.sound_critics import MSSTFT
from tokzoo.tokenizers.audio.mimi import PRESETS, Config
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.sound import SoundAdversary, SoundReconstruction

SYSTEM = "mimi"

SMALL = Config(
  sample_rate_hz=16_000,
  net=dataclasses.replace(Config().net, filters=8, dim=32, ratios=(5, 4, 4)),
  layers=2,
  heads=2,
  hidden=64,
  window=50,
  num_codebooks=4,
  num_codes=64,
  code_dim=16,
)
"""Hop 160: 100 frames a second of 6 bits a codebook."""


def nano() -> Recipe:
  """Half-second crops, spectra and waves, without critics."""
  optimizer = Optimizer(peak_lr=1e-3, warmup_steps=20, b1=0.8, b2=0.99, clip_norm=10.0)
  return Recipe(
    system=SYSTEM,
    name="nano",
    task=SoundReconstruction(
      model=SMALL,
      l1=1.0,
      mel=spectral.dac(16_000, longest=5),
      mel_weight=1.0,
      weights={"commitment": 1.0},
    ),
    data=sound_crops("train", 16_000, 0.5),
    batch_size=8,
    steps=200,
    optimizers={"model": optimizer},
    evaluators={
      "held_out": Evaluator(data=sound_crops("test", 16_000, 0.5), batches=4)
    },
    save_every=200,
  )


def published() -> Recipe:
  """Adversarial and feature losses alone, 12 s; 4M steps of 128 [from the paper]."""
  model = PRESETS["mimi"]
  rate = model.sample_rate_hz
  data = sound_crops("train", rate, 12.0, "audio:data/sounds")
  held_out = dataclasses.replace(data, split="test", repeat=1, shuffle=False)
  optimizer = Optimizer(peak_lr=8e-4, schedule="constant", b1=0.5, b2=0.9)
  return Recipe(
    system=SYSTEM,
    name="published",
    task=SoundReconstruction(
      model=model,
      l1=0.0,
      weights={"commitment": 1.0},
      adversary=SoundAdversary(
        network=MSSTFT(n_ffts=(1024, 2048, 512, 256, 128)),
        weight=4.0,
        feature_weight=4.0,
        loss="hinge",
        over="mean",
        features="relative",
      ),
    ),
    data=dataclasses.replace(data, threads=32, prefetch=8),
    batch_size=128,
    steps=4_000_000,
    optimizers={"model": optimizer, "discriminator": optimizer},
    evaluators={"held_out": Evaluator(data=held_out, every=10_000, batches=10)},
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_000,
    log_every=100,
  )


RECIPES = {"nano": nano, "published": published}
