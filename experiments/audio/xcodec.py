"""X-Codec (arXiv 2408.17175): acoustic and semantic latents quantized together.

  tokzoo train experiments/audio/xcodec.py --recipe nano

Lab record
  nano          synthesised tones at 16 kHz, 2 CPU cores
  speech-nano   one speaker, 800 steps, six minutes on a CPU core (checkpoints/xcodec-speech-nano):
                held-out half seconds come back at 9.0 dB SI-SNR from 6.4 kbps, all codes in use.
                Its HuBERT is a small one of random weights, which do not learn
                Trained while the commitment of a drawn rate was divided by all codebooks, not by
                those in use
  speech-gan-nano   the whole objective with small critics, on from there for 200 steps: 9.3 dB
  librispeech   the published network and objective (config/codec_16k_6kbps_v3_vqdp.yaml at a2e52d3):
                HuBERT's states are to be decoded again, weight 100, commitment 1, spectra of the
                full band; 64 crops of 3 s on 8 GPUs

Not here: the authors' critic of six spectra (MultiFrequencyDiscriminator), for which EnCodec's of as
many windows stands; their spectra of six sub-bands (PQMF); the sound times 0.95. Their run has no end
of its own (5,000 epochs are allowed): the steps are a guess.
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


_WINDOWS = (128, 256, 512, 1024, 2048, 4096)

_SPECTRA = spectral.STFTLoss(
  (
    spectral.Resolution(512, 120, 480),
    spectral.Resolution(1024, 240, 960),
    spectral.Resolution(2048, 300, 1200),
  )
)

_EPOCH = 281_241 / 64
"""Steps."""


def librispeech() -> Recipe:
  """LibriSpeech; the semantic model must be loaded (`init_from`) and stays as it is."""
  # torch's AdamW decays weights by 0.01 unless it is told otherwise, and is not.
  optimizer = Optimizer(
    peak_lr=2e-4,
    schedule="exponential",
    decay=0.999 ** (1 / _EPOCH),
    b1=0.8,
    b2=0.99,
    eps=1e-6,
    weight_decay=0.01,
    decay_axes=1,
    clip_norm=2.0,
  )
  network = MSSTFT(n_ffts=_WINDOWS)
  # Of every window five maps, over all of which the authors take the mean.
  maps = len(_WINDOWS) * (2 + len(network.dilations))
  task = SoundReconstruction(
    model=PRESETS["xcodec-hubert-librispeech"],
    l1=0.0,
    stft=_SPECTRA,
    weights={"commitment": 1.0, "semantic": 100.0},
    adversary=SoundAdversary(network, over="mean", feature_weight=20 / maps),
  )
  recipe = at_scale(
    SYSTEM,
    "librispeech",
    task,
    seconds=3.0,
    batch_size=64,
    steps=400_000,
    optimizer=optimizer,
  )
  return dataclasses.replace(recipe, freeze=("^semantic_model/",))


RECIPES = {
  "nano": nano,
  "speech-nano": speech_nano,
  "speech-gan-nano": speech_gan_nano,
  "librispeech": librispeech,
}
