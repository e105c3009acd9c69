"""SpeechTokenizer (arXiv 2308.16692): a speech codec whose first codebook is distilled.

  tokzoo train experiments/audio/speechtokenizer.py --recipe nano

Lab record
  nano          synthesised tones at 16 kHz with a made-up teacher of their units, 2 CPU cores
  speech-nano   one speaker, no teacher, 400 steps, two minutes on a CPU: 3.0 dB SI-SNR at 3.2 kbps
  speech-gan-nano   the whole objective with small critics, on from there for 200 steps: held-out half
                seconds come back at 6.1 dB
  librispeech   the published configuration, 3 s of LibriSpeech; HuBERT's features (its hidden
                states' mean) lie beside each NAME.flac as NAME.teacher.npy. The paper: 6 a batch on
                2 GPUs; the script that was published later: on 4 GPUs, 1,500 files held out

What distillation does is measured with DM-Codec, whose model is the same: tokzoo reproduce dm-codec.

The losses' weights are config/spt_base_cfg.json's; the rest of the schedule is not checked.
"""

import dataclasses

from tokzoo.data.packaged import sound_crops
from tokzoo.data.sources.tones import TEACHER_DIM
from tokzoo.losses import spectral
from tokzoo.nn.seanet import SEANet
from tokzoo.tokenizers.audio.speechtokenizer import PRESETS, Config
from tokzoo.train import Evaluator, Optimizer, Recipe
from tokzoo.train.sound import Distillation, SoundReconstruction
from tokzoo.train.sound_recipes import THREE_KINDS, at_scale, speech, with_critics

SYSTEM = "speechtokenizer"

SMALL = Config(
  sample_rate_hz=16_000,
  net=SEANet(
    filters=8,
    dim=32,
    ratios=(8, 8, 5),
    lstm_layers=1,
    is_causal=False,
    is_bidirectional=True,
  ),
  num_codebooks=4,
  num_codes=64,
  semantic_dim=TEACHER_DIM,
  reset_below=0.2,
)
"""Hop 320: 50 frames a second, the teacher's rate, of 6 bits a codebook."""


SPEECH = dataclasses.replace(
  SMALL,
  net=dataclasses.replace(SMALL.net, filters=10),
  num_codebooks=8,
  num_codes=256,
  reset_below=0.4,
)
"""0.4 to 3.2 kbps."""


def nano() -> Recipe:
  """Half-second crops, spectra and waves, a teacher, without critics."""
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
      distillation=Distillation(weight=1.0),
    ),
    data=sound_crops("train", 16_000, 0.5, "taught-tones"),
    batch_size=8,
    steps=200,
    optimizers={"model": optimizer},
    evaluators={
      "held_out": Evaluator(
        data=sound_crops("test", 16_000, 0.5, "taught-tones"), batches=4
      )
    },
    save_every=200,
  )


def speech_nano() -> Recipe:
  """Half seconds of speech, without critics and without a teacher, whose features the prompts lack."""
  return speech(SYSTEM, SPEECH, {"commitment": 1.0}, steps=400)


def speech_gan_nano() -> Recipe:
  """Half seconds of speech with the whole objective, on from the packaged codec."""
  return with_critics(speech_nano(), THREE_KINDS, "speechtokenizer-speech-nano")


def librispeech() -> Recipe:
  """LibriSpeech, 10 epochs of 281,241 utterances, 6 a batch on 2 GPUs [as far as known]."""
  model = PRESETS["speechtokenizer-hubert-avg"]
  rate = model.sample_rate_hz
  optimizer = Optimizer(name="adam", peak_lr=1e-4, b1=0.9, b2=0.99)
  task = SoundReconstruction(
    model=model,
    l1=500.0,
    mel=spectral.speechtokenizer(rate),
    weights={"commitment": 10.0},
    adversary=THREE_KINDS,
    distillation=Distillation(weight=120.0),
  )
  return at_scale(
    SYSTEM,
    "librispeech",
    task,
    seconds=3.0,
    batch_size=12,
    steps=234_000,
    optimizer=optimizer,
  )


RECIPES = {
  "nano": nano,
  "speech-nano": speech_nano,
  "speech-gan-nano": speech_gan_nano,
  "librispeech": librispeech,
}
