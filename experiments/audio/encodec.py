"""EnCodec (arXiv 2210.13438): a causal codec at 1.5 to 24 kbps, and its stereo and music models.

  tokzoo train experiments/audio/encodec.py --recipe nano
  tokzoo train experiments/audio/encodec.py --recipe speech-nano     after  tokzoo data prepare
                                                                     speech-prompts
  tokzoo reproduce encodec

Lab record
  nano             synthesised tones at 16 kHz, 8 codebooks of 64 codes, 2 CPU cores
  speech-nano      the same on 25 minutes of one speaker
  24khz, 48khz     the published configurations; their training data is not public as a set (DNS
                   challenge, Common Voice, AudioSet, FSD50K, Jamendo): any folder of audio

Published: network, weights, balancer, MS-STFT discriminator. The training loop and its losses are
the paper's, section 3.4 and appendix A.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tokzoo.contract import Batch, Variables
from tokzoo.data import evaluation_batches, loader
from tokzoo.data.packaged import sound_crops
from tokzoo.losses import spectral
from tokzoo.metrics import mel_distance, si_snr
from tokzoo.nn.seanet import SEANet
from tokzoo.nn.sound_critics import MSSTFT
from tokzoo.tokenizers.audio.encodec import PRESETS, Config
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.claims import Claim, fit
from tokzoo.train.sound import SoundAdversary, SoundReconstruction

SYSTEM = "encodec"

# ---------------------------------------------------------------- nano: a 2-core CPU

SMALL = Config(
  sample_rate_hz=16_000,
  net=SEANet(filters=8, dim=32, ratios=(8, 5, 4), lstm_layers=1),
  num_codebooks=8,
  num_codes=64,
  bandwidths_kbps=(0.6, 1.2, 2.4, 4.8),
  reset_below=0.2,
)
"""Hop 160: 100 frames a second of 6 bits a codebook."""


def nano(source: str = "tones", name: str = "nano") -> Recipe:
  """Half-second crops, the whole objective: balancer, critic, drawn bit rates."""
  optimizer = Optimizer(
    name="adam", peak_lr=1e-3, warmup_steps=20, b1=0.5, b2=0.9, clip_norm=10.0
  )
  return Recipe(
    system=SYSTEM,
    name=name,
    task=SoundReconstruction(
      model=SMALL,
      l1=0.1,
      mel=spectral.encodec(16_000, longest=10),
      mel_weight=1.0,
      weights={"commitment": 1.0},
      adversary=SoundAdversary(
        network=MSSTFT(n_ffts=(512, 256), width=4),
        weight=3.0,
        feature_weight=3.0,
        loss="hinge",
        over="mean",
        features="relative",
        share=2 / 3,
      ),
      balance=0.999,
    ),
    data=sound_crops("train", 16_000, 0.5, source),
    batch_size=8,
    steps=200,
    optimizers={"model": optimizer, "discriminator": optimizer},
    evaluators={
      "held_out": Evaluator(data=sound_crops("test", 16_000, 0.5, source), batches=4)
    },
    save_every=200,
  )


def speech_nano() -> Recipe:
  """The same on the speech prompts."""
  return nano("speech-prompts", "speech-nano")


# ---------------------------------------------------------------- as published


def khz24() -> Recipe:
  """24 kHz, causal: 300 epochs of 2,000 steps of 64 seconds (appendix A)."""
  return _published("encodec-24khz", "24khz", share=2 / 3, weight=3.0)


def khz48() -> Recipe:
  """48 kHz stereo: the adversary weighs 4, and the critics learn at half of the steps."""
  return _published("encodec-48khz", "48khz", share=0.5, weight=4.0)


def _published(preset: str, name: str, share: float, weight: float) -> Recipe:
  model = PRESETS[preset]
  rate = model.sample_rate_hz
  data = sound_crops(
    "train", rate, 1.0, "audio:data/sounds", channels=2 if model.channels == 2 else 1
  )
  held_out = dataclasses.replace(data, split="test", repeat=1, shuffle=False)
  optimizer = Optimizer(name="adam", peak_lr=3e-4, schedule="constant", b1=0.5, b2=0.9)
  return Recipe(
    system=SYSTEM,
    name=name,
    task=SoundReconstruction(
      model=model,
      l1=0.1,
      mel=spectral.encodec(rate),
      weights={"commitment": 1.0},
      adversary=SoundAdversary(
        network=MSSTFT(),
        weight=weight,
        feature_weight=weight,
        loss="hinge",
        over="mean",
        features="relative",
        share=share,
      ),
      balance=0.999,
    ),
    data=dataclasses.replace(data, threads=32, prefetch=8),
    batch_size=64,
    steps=600_000,
    optimizers={"model": optimizer, "discriminator": optimizer},
    evaluators={"held_out": Evaluator(data=held_out, every=10_000, batches=10)},
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_000,
    log_every=100,
  )


RECIPES = {
  "nano": nano,
  "speech-nano": speech_nano,
  "24khz": khz24,
  "48khz": khz48,
}
