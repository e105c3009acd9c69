"""X-Codec (arXiv 2408.17175): acoustic and semantic latents quantized together.

  tokzoo train experiments/audio/xcodec.py --recipe nano

Lab record
  nano          synthesised tones at 16 kHz, 2 CPU cores
  speech-nano   one speaker, 800 steps, six minutes on a CPU core (checkpoints/xcodec-speech-nano):
                held-out half seconds come back at 9.0 dB SI-SNR from 6.4 kbps, all codes in use.
                Its HuBERT is a small one of random weights, which do not learn
  speech-gan-nano   the whole objective with small critics, on from there for 200 steps: 9.3 dB
  librispeech   the published network with DAC's objective; the authors' own weights of the losses
                and their semantic reconstruction are not here

The schedule's numbers are not checked against the authors' own.
"""

import dataclasses

from tokzoo.losses import spectral
from tokzoo.nn.hubert import HuBERT
from tokzoo.nn.sound_critics import MSSTFT, Critics, MultiPeriod
from tokzoo.tokenizers.audio.xcodec import PRESETS, Config
from tokzoo.train import Optimizer, Recipe
from tokzoo.train.sound import SoundAdversary, SoundReconstruction
from tokzoo.train.sound_recipes import at_scale, small, speech, with_critics

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


SPEECH = dataclasses.replace(
  SMALL,
  net=dataclasses.replace(SMALL.net, encoder_dim=10, latent_dim=24, decoder_dim=80),
  semantic=dataclasses.replace(SMALL.semantic, dim=16, conv_dims=(16,) * 4, hidden=32),
  num_codebooks=8,
  num_codes=256,
  bandwidths_kbps=(0.8, 1.6, 3.2, 6.4),
  reset_below=0.5,
)


def nano() -> Recipe:
  """Half-second crops, spectra and waves, without critics."""
  return small(SYSTEM, SMALL, {"commitment": 1.0})


def speech_nano() -> Recipe:
  """Half seconds of speech, without critics."""
  return speech(SYSTEM, SPEECH, {"commitment": 1.0}, steps=800)


_ADVERSARY = SoundAdversary(
  network=Critics((MultiPeriod(), MSSTFT())), feature_weight=2.0
)


def speech_gan_nano() -> Recipe:
  """Half seconds of speech with the whole objective, on from the packaged codec."""
  return with_critics(speech_nano(), _ADVERSARY, "xcodec-speech-nano")


def librispeech() -> Recipe:
  """LibriSpeech; the semantic model must be loaded, and its loss is not in the task."""
  model = PRESETS["xcodec-hubert-librispeech"]
  rate = model.sample_rate_hz
  optimizer = Optimizer(peak_lr=1e-4, b1=0.8, b2=0.9)
  task = SoundReconstruction(
    model=model,
    l1=0.0,
    mel=spectral.dac(rate),
    mel_weight=15.0,
    weights={"commitment": 0.25},
    adversary=_ADVERSARY,
  )
  return at_scale(
    SYSTEM,
    "librispeech",
    task,
    seconds=1.0,
    batch_size=32,
    steps=400_000,
    optimizer=optimizer,
  )


RECIPES = {
  "nano": nano,
  "speech-nano": speech_nano,
  "speech-gan-nano": speech_gan_nano,
  "librispeech": librispeech,
}
