"""DM-Codec (arXiv 2410.15017): SpeechTokenizer distilled from a language model as well.

  tokzoo train experiments/audio/dm_codec.py --recipe nano

Lab record
  nano          synthesised tones at 16 kHz, 2 CPU cores
  librispeech   the published configuration, 3 s of LibriSpeech train-clean-100; without the
                distillation, which needs the teachers' features in the batches

The schedule's numbers are not checked against the authors' own.
"""

import dataclasses

from tokzoo.data.packaged import sound_crops
from tokzoo.losses import spectral
from tokzoo.nn.seanet import SEANet
from tokzoo.nn.sound_critics import MSSTFT, Critics, MultiPeriod, MultiScale
from tokzoo.tokenizers.audio.dm_codec import PRESETS, Config
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.sound import SoundAdversary, SoundReconstruction

SYSTEM = "dm-codec"

SMALL = Config(
  sample_rate_hz=16_000,
  net=SEANet(
    filters=8,
    dim=32,
    ratios=(8, 5, 4),
    lstm_layers=1,
    is_causal=False,
    is_bidirectional=True,
  ),
  num_codebooks=4,
  num_codes=64,
  semantic_dim=32,
  reset_below=0.2,
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


def librispeech() -> Recipe:
  """LibriSpeech train-clean-100, 100 epochs of 28,539 utterances, 6 a batch on 2 GPUs."""
  model = PRESETS["dm-codec"]
  rate = model.sample_rate_hz
  data = sound_crops("train", rate, 3.0, "audio:data/sounds")
  held_out = dataclasses.replace(data, split="test", repeat=1, shuffle=False)
  optimizer = Optimizer(name="adam", peak_lr=1e-4, b1=0.9, b2=0.99)
  return Recipe(
    system=SYSTEM,
    name="librispeech",
    task=SoundReconstruction(
      model=model,
      l1=500.0,
      mel=spectral.speechtokenizer(rate),
      weights={"commitment": 10.0},
      adversary=SoundAdversary(
        network=Critics(
          (
            MultiPeriod(),
            MultiScale(),
            MSSTFT(n_ffts=(1024, 2048, 512, 256, 128)),
          )
        ),
        feature_factor=2.0,
      ),
    ),
    data=dataclasses.replace(data, threads=32, prefetch=8),
    batch_size=12,
    steps=238_000,
    optimizers={"model": optimizer, "discriminator": optimizer},
    evaluators={"held_out": Evaluator(data=held_out, every=10_000, batches=10)},
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_000,
    log_every=100,
  )


RECIPES = {"nano": nano, "librispeech": librispeech}
