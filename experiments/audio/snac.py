"""SNAC (arXiv 2410.14411): residual codebooks at several rates.

  tokzoo train experiments/audio/snac.py --recipe nano

Lab record
  nano                  synthesised tones at 16 kHz, 2 CPU cores
  speech-nano           one speaker, 1,000 steps, six minutes on a CPU core
                        (checkpoints/snac-speech-nano): held-out half seconds come back at 7.7 dB
                        SI-SNR from 1.75 kbps. With the quantizer's losses at their published
                        weights three of four seeds stayed at silence
  speech-gan-nano       the whole objective with small critics, on from there for 200 steps: 8.0 dB
  24khz, 32khz, 44khz   the published configurations, with DAC's objective; the authors published
                        neither training code nor data: any folder of audio

The schedule's numbers are not checked against the authors' own.
"""

import dataclasses

from tokzoo.losses import spectral
from tokzoo.nn.sound_critics import Critics, MultiBand, MultiPeriod
from tokzoo.tokenizers.audio.snac import PRESETS, Config
from tokzoo.train import Optimizer, Recipe
from tokzoo.train.sound import SoundAdversary, SoundReconstruction
from tokzoo.train.sound_recipes import LIGHT_VQ, at_scale, small, speech, with_critics

SYSTEM = "snac"

SMALL = Config(
  sample_rate_hz=16_000,
  net=dataclasses.replace(Config().net, encoder_dim=8, rates=(4, 5, 8), decoder_dim=64),
  num_codes=64,
)
"""25 coarse frames a second, 7 ids of 6 bits in each."""


SPEECH = dataclasses.replace(
  SMALL,
  net=dataclasses.replace(SMALL.net, encoder_dim=14, decoder_dim=112),
  num_codes=1024,
)
"""1.75 kbps."""

_VQ = {"commitment": 0.25, "codebook": 1.0}


def nano() -> Recipe:
  """Half-second crops, spectra and waves, without critics."""
  return small(SYSTEM, SMALL, _VQ)


def speech_nano() -> Recipe:
  """Half seconds of speech, without critics."""
  return speech(SYSTEM, SPEECH, LIGHT_VQ, steps=1000)


_ADVERSARY = SoundAdversary(
  network=Critics((MultiPeriod(always_pads=True), MultiBand()), peak=0.8),
  feature_weight=2.0,
  skips_logits=True,
)


def speech_gan_nano() -> Recipe:
  """Half seconds of speech with the whole objective, on from the packaged codec."""
  return with_critics(speech_nano(), _ADVERSARY, "snac-speech-nano")


def _published(rate_name: str) -> Recipe:
  """DAC's objective: SNAC's own recipe was not published."""
  model = PRESETS[f"snac-{rate_name}"]
  rate = model.sample_rate_hz
  optimizer = Optimizer(peak_lr=6e-4, schedule="constant", b1=0.8, b2=0.99)
  task = SoundReconstruction(
    model=model,
    l1=0.0,
    mel=spectral.dac(rate),
    mel_weight=15.0,
    weights=_VQ,
    adversary=_ADVERSARY,
  )
  return at_scale(
    SYSTEM,
    rate_name,
    task,
    seconds=1.5,
    batch_size=16,
    steps=800_000,
    optimizer=optimizer,
  )


def khz24() -> Recipe:
  """24 kHz speech."""
  return _published("24khz")


def khz32() -> Recipe:
  """32 kHz, music and effects."""
  return _published("32khz")


def khz44() -> Recipe:
  """44.1 kHz, music and effects."""
  return _published("44khz")


RECIPES = {
  "nano": nano,
  "speech-nano": speech_nano,
  "speech-gan-nano": speech_gan_nano,
  "24khz": khz24,
  "32khz": khz32,
  "44khz": khz44,
}
