"""Mimi (arXiv 2410.00037): Moshi's codec, causal, 12.5 frames a second.

  tokzoo train experiments/audio/mimi.py --recipe nano
  tokzoo reproduce mimi

Lab record
  nano           synthesised tones at 16 kHz, 2 CPU cores
  speech-nano    one speaker, no teacher, 600 steps, two minutes on a CPU: 4.9 dB SI-SNR at 6.4 kbps,
                 -4.0 dB from one codebook
                 (trained while the commitment was divided by all codebooks, not by those in use)
  speech-gan-nano   the whole objective with a small critic, on from there for 200 steps: held-out half
                 seconds come back at 8.5 dB
  published      the published configuration as the paper says it: weights of the transformers alone
                 decay, by 0.05, and averages of all weights (0.99) are kept. Its data (7 million
                 hours) is not public
  claims         both hold for three of three seeds, with weights as they start: no id changes before
                 the sound does, and pieces of 10 frames give the ids of the whole

Not here is the distillation of WavLM: the paper projects the semantic codebook's output to WavLM's
1,024 features and takes their plain cosine, where `Distillation` compares the output itself, by
log sigmoid of the cosine. So what `published` trains has no semantic codebook but in its place.

The schedule's numbers are the paper's; Moshi's repository has no training code of Mimi.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tokzoo.data import evaluation_batches
from tokzoo.data.packaged import sound_crops
from tokzoo.nn.sound_critics import MSSTFT
from tokzoo.tokenizers.audio.mimi import PRESETS, Config
from tokzoo.train import Optimizer, Recipe, sound_claims
from tokzoo.train.claims import Claim
from tokzoo.train.sound import SoundAdversary, SoundReconstruction
from tokzoo.train.sound_recipes import at_scale, small, speech, with_critics

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


SPEECH = dataclasses.replace(
  SMALL,
  net=dataclasses.replace(SMALL.net, filters=12, dim=48),
  heads=4,
  hidden=96,
  num_codebooks=8,
  num_codes=256,
  code_dim=32,
)
"""0.8 to 6.4 kbps."""


def nano() -> Recipe:
  """Half-second crops, spectra and waves, without critics."""
  return small(SYSTEM, SMALL, {"commitment": 1.0})


def speech_nano() -> Recipe:
  """Half seconds of speech, without critics."""
  return speech(SYSTEM, SPEECH, {"commitment": 1.0}, steps=600)


_ADVERSARY = SoundAdversary(
  network=MSSTFT(n_ffts=(1024, 2048, 512, 256, 128)),
  weight=4.0,
  feature_weight=4.0,
  loss="hinge",
  over="mean",
  features="relative",
)


def speech_gan_nano() -> Recipe:
  """Half seconds of speech with the whole objective, on from the packaged codec."""
  return with_critics(speech_nano(), _ADVERSARY, "mimi-speech-nano")


def published() -> Recipe:
  """Adversarial and feature losses alone, 12 s; 4M steps of 128 [from the paper]."""
  model = PRESETS["mimi"]
  optimizer = Optimizer(
    peak_lr=8e-4,
    schedule="constant",
    b1=0.5,
    b2=0.9,
    weight_decay=0.05,
    decay_axes=1,
    no_decay=(r"^(?!(en|de)coder_transformer/)",),
  )
  task = SoundReconstruction(
    model=model,
    l1=0.0,
    weights={"commitment": 1.0},
    adversary=_ADVERSARY,
  )
  recipe = at_scale(
    SYSTEM,
    "published",
    task,
    seconds=12.0,
    batch_size=128,
    steps=4_000_000,
    optimizer=optimizer,
  )
  return dataclasses.replace(recipe, ema=0.99)


RECIPES = {
  "nano": nano,
  "speech-nano": speech_nano,
  "speech-gan-nano": speech_gan_nano,
  "published": published,
}

# ---------------------------------------------------------------- claims


def _held_out() -> jax.Array:
  data = sound_crops("test", SMALL.sample_rate_hz, 0.5)
  return jnp.asarray(next(evaluation_batches(data, 4))["audio"])


def causality(seed: int) -> dict[str, float]:
  """Ids that change before a change of the sound, of the causal model and of one that looks ahead."""
  return sound_claims.causality(SMALL, seed, _held_out())


def streaming(seed: int) -> dict[str, float]:
  """Pieces of 10 frames, convolutions and attention with carried states, against the whole."""
  return sound_claims.streamed_against_whole(SMALL, seed, _held_out(), frames=10)


_SHEET = "sheet of the audio codecs, section 5; arXiv 2410.00037"
_SETTING = (
  "a network of 8 filters with 2 layers of attention on either side, as it starts, hop "
  f"{SMALL.hop}, codebooks from k-means, 4 half seconds of tones"
)

CLAIMS = (
  Claim(
    "Causal exactly: what comes after a frame does not change its codes, where convolutions that "
    "look ahead change them",
    source=_SHEET,
    measure=causality,
    holds=sound_claims.is_causal,
    setting=f"{_SETTING}, noise on their second half",
  ),
  Claim(
    "Streamed equals whole: the same tokens, and the same wave to 1e-4 of its largest value",
    source=_SHEET,
    measure=streaming,
    holds=sound_claims.is_streamed,
    setting=f"{_SETTING}, in pieces of 10 frames",
  ),
)
