"""X-Codec (arXiv 2408.17175): acoustic and semantic latents quantized together.

  tokzoo train experiments/audio/xcodec.py --recipe nano

Lab record
  nano          synthesised tones at 16 kHz, 2 CPU cores
  librispeech   the published network with DAC's objective; the authors' own weights of the losses
                and their semantic reconstruction are not here

The schedule's numbers are not checked against the authors' own.
"""

import dataclasses

from tokzoo.data.packaged import sound_crops
from tokzoo.losses import spectral
from tokzoo.nn.hubert import HuBERT
from tokzoo.nn.sound_critics import MSSTFT, Critics, MultiPeriod
from tokzoo.tokenizers.audio.xcodec import PRESETS, Config
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.sound import SoundAdversary, SoundReconstruction

SYSTEM = "xcodec"

SMALL = Config(
  sample_rate_hz=16_000,
  net=dataclasses.replace(
    Config().net,
    encoder_dim=8,
    rates=(8, 5, 4),
    decoder_rates=(8, 5, 4),
    latent_dim=16,
    decoder_dim=64,
  ),
  semantic=HuBERT(
    dim=32,
    layers=1,
    heads=2,
    hidden=64,
    conv_dims=(32,) * 4,
    conv_strides=(5, 4, 4, 2),
    conv_kernels=(10, 4, 4, 2),
    position_kernel=16,
    position_groups=4,
  ),
  num_codebooks=4,
  num_codes=64,
  bandwidths_kbps=(0.6, 1.2, 2.4),
  reset_below=0.2,
)
"""Hop 160: 100 frames a second of 6 bits a codebook; an untrained HuBERT."""


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
  """LibriSpeech; the semantic model must be loaded, and its loss is not in the task."""
  model = PRESETS["xcodec-hubert-librispeech"]
  rate = model.sample_rate_hz
  data = sound_crops("train", rate, 1.0, "audio:data/sounds")
  held_out = dataclasses.replace(data, split="test", repeat=1, shuffle=False)
  optimizer = Optimizer(peak_lr=1e-4, b1=0.8, b2=0.9)
  return Recipe(
    system=SYSTEM,
    name="librispeech",
    task=SoundReconstruction(
      model=model,
      l1=0.0,
      mel=spectral.dac(rate),
      mel_weight=15.0,
      weights={"commitment": 0.25},
      adversary=SoundAdversary(
        network=Critics((MultiPeriod(), MSSTFT())), feature_weight=2.0
      ),
    ),
    data=dataclasses.replace(data, threads=32, prefetch=8),
    batch_size=32,
    steps=400_000,
    optimizers={"model": optimizer, "discriminator": optimizer},
    evaluators={"held_out": Evaluator(data=held_out, every=10_000, batches=10)},
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_000,
    log_every=100,
  )


RECIPES = {"nano": nano, "librispeech": librispeech}
