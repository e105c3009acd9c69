"""DAC (arXiv 2306.06546): codes of 8 features searched by angle, 16, 24 and 44.1 kHz.

  tokzoo train experiments/audio/dac.py --recipe nano

Lab record
  nano                     synthesised tones at 16 kHz, 4 codebooks of 64 codes, 2 CPU cores
  speech-nano              one speaker, 1,000 steps, six minutes on a CPU core: held-out half
                           seconds come back at 8.2 dB SI-SNR from 6.4 kbps, all codes in use. With
                           the quantizer's losses at their published weights, 700 steps: 0.1 dB, 60 %
  speech-gan-nano          the whole objective with small critics, on from there for 200 steps: 8.6 dB
  16khz, 24khz, 44khz      the published configurations (conf/final/*.yml at c7cfc5d): 0.38 s crops;
                           their training data is not public as a set: any folder of audio

Optimizers are those of scripts/train.py, what is done to the data is conf/final's and audiotools':
crops softer than -40 LUFS are drawn again, up to eight times.
"""

import dataclasses

from tokzoo.losses import spectral
from tokzoo.nn.dac import DACNet
from tokzoo.nn.sound_critics import Critics, MultiBand, MultiPeriod
from tokzoo.tokenizers.audio.dac import PRESETS, Config
from tokzoo.train import Optimizer, Recipe
from tokzoo.train.sound import SoundAdversary, SoundReconstruction
from tokzoo.train.sound_recipes import LIGHT_VQ, at_scale, small, speech, with_critics

SYSTEM = "dac"

SMALL = Config(
  sample_rate_hz=16_000,
  net=DACNet(encoder_dim=8, rates=(4, 5, 8), decoder_dim=64),
  num_codebooks=4,
  num_codes=64,
)
"""Hop 160: 100 frames a second of 6 bits a codebook."""

SPEECH = dataclasses.replace(
  SMALL,
  net=dataclasses.replace(SMALL.net, encoder_dim=12, latent_dim=32, decoder_dim=96),
  num_codebooks=8,
  num_codes=256,
)
"""0.8 to 6.4 kbps."""

_VQ = {"commitment": 0.25, "codebook": 1.0}


def nano() -> Recipe:
  """Half-second crops, spectra and waves, without critics."""
  return small(SYSTEM, SMALL, _VQ)


def speech_nano() -> Recipe:
  """Half seconds of speech, without critics."""
  return speech(SYSTEM, SPEECH, LIGHT_VQ, steps=1000)


_ADVERSARY = SoundAdversary(
  network=Critics((MultiPeriod(always_pads=True), MultiBand()), peak=0.8),
  weight=1.0,
  feature_weight=2.0,
  skips_logits=True,
)


def speech_gan_nano() -> Recipe:
  """Half seconds of speech with the whole objective, on from the packaged codec."""
  return with_critics(speech_nano(), _ADVERSARY, "dac-speech-nano")


def _published(rate: str) -> Recipe:
  model = PRESETS[f"dac-{rate}"]
  # torch's AdamW decays weights by 0.01 unless it is told otherwise, and is not.
  optimizer = Optimizer(
    peak_lr=1e-4,
    schedule="exponential",
    decay=0.999996,
    b1=0.8,
    b2=0.99,
    weight_decay=0.01,
    decay_axes=1,
    clip_norm=1e3,
  )
  critic = dataclasses.replace(optimizer, clip_norm=10.0)
  task = SoundReconstruction(
    model=model,
    l1=0.0,
    mel=spectral.dac(model.sample_rate_hz),
    mel_weight=15.0,
    weights=_VQ,
    adversary=_ADVERSARY,
  )
  recipe = at_scale(
    SYSTEM,
    rate,
    task,
    seconds=0.38,
    batch_size=72,
    steps=400_000,
    optimizer=optimizer,
  )
  optimizers = {"model": optimizer, "discriminator": critic}
  heard = {"softest_db": -40.0, "loudness_db": -16.0, "shift_phase": True}
  evaluator = recipe.evaluators["held_out"]
  held_out = dataclasses.replace(evaluator.data, **heard)
  return dataclasses.replace(
    recipe,
    optimizers=optimizers,
    data=dataclasses.replace(recipe.data, **heard),
    evaluators={"held_out": dataclasses.replace(evaluator, data=held_out)},
  )


def khz16() -> Recipe:
  """16 kHz, 12 codebooks."""
  return _published("16khz")


def khz24() -> Recipe:
  """24 kHz, 32 codebooks."""
  return _published("24khz")


def khz44() -> Recipe:
  """44.1 kHz, 9 codebooks."""
  return _published("44khz")


RECIPES = {
  "nano": nano,
  "speech-nano": speech_nano,
  "speech-gan-nano": speech_gan_nano,
  "16khz": khz16,
  "24khz": khz24,
  "44khz": khz44,
}
