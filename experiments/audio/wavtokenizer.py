"""WavTokenizer (arXiv 2408.16532): one codebook, 40 or 75 tokens a second.

  tokzoo train experiments/audio/wavtokenizer.py --recipe nano

Lab record
  nano          synthesised tones at 16 kHz, 2 CPU cores; in a pilot (wave weighed 10) 183 of 256 codes
                were in use after 200 steps.
                Codes that start anew below 0.2 of 1.6 tokens a step left one in use: in the first
                steps the latents drift away from all codes but the outermost, and two hundred steps
                of averaging pass before the others count as dead. Below 1.0 it takes fifty.
  speech-nano   one speaker, 2,000 steps of 41 ms on an H200: 1.4 dB SI-SNR. With EnCodec's spectra
                400 steps of 8 on a CPU came to -0.3 dB on training prompts
  speech-gan-nano   the whole objective with small critics, on from there for 200 steps of 8 on a CPU:
                held-out half seconds come back at 6.6 dB (with DAC's critics it was 6.5)
  75, 40        the published configurations (decoder/experiment.py at 5cf440d): the critics of waves
                and of magnitudes are those of Vocos, told the entry that the step draws. The
                authors' third, DAC's, does not learn and is left out

Differences of the published recipes from the authors': one draw of the entry serves both players,
where each has its own; their data is scaled to a peak of -1 to -6 dB, drawn anew for each crop, and a
file shorter than a crop is repeated, where here silence fills it up. Their third critic gets an
optimizer after it was replaced by another one of its name: the one that judges stays random.
"""

import dataclasses

from tokzoo.losses import spectral
from tokzoo.nn.seanet import SEANet
from tokzoo.nn.sound_critics import Critics, MultiPeriod, MultiResolution
from tokzoo.nn.vocos import Vocos
from tokzoo.tokenizers.audio.wavtokenizer import PRESETS, Config
from tokzoo.train import Optimizer, Recipe
from tokzoo.train.sound import SoundAdversary, SoundReconstruction
from tokzoo.train.sound_recipes import at_scale, small, speech, with_critics

SYSTEM = "wavtokenizer"

SMALL = Config(
  sample_rate_hz=16_000,
  net=SEANet(filters=8, dim=32, ratios=(8, 5, 4), lstm_layers=1, is_causal=False),
  vocos=Vocos(dim=64, hidden=128, layers=2, groups=8, n_fft=640, hop=160),
  num_codes=256,
  draws_entry=False,
  reset_below=1.0,
)
"""Hop 160: 100 tokens a second of 8 bits."""


SPEECH = dataclasses.replace(
  SMALL,
  net=dataclasses.replace(SMALL.net, filters=10),
  vocos=dataclasses.replace(SMALL.vocos, dim=64, hidden=128, layers=3),
  num_codes=1024,
  draws_entry=False,
  reset_below=0.25,
)
"""1 kbps, a short training for one entry of the conditional norms."""


def nano() -> Recipe:
  """Half-second crops, spectra and waves, without critics."""
  return small(SYSTEM, SMALL, {"commitment": 10.0})


def speech_nano() -> Recipe:
  """Half seconds of speech, without critics, on a GPU: 16 at a time, the spectra logarithms."""
  recipe = speech(SYSTEM, SPEECH, {"commitment": 10.0}, steps=2_000)
  mel = spectral.dac(SPEECH.sample_rate_hz, longest=5)
  task = dataclasses.replace(recipe.task, l1=20.0, mel=mel, mel_weight=0.01)
  optimizer = dataclasses.replace(
    recipe.optimizers["model"], warmup_steps=100, b1=0.9, weight_decay=0.01
  )
  return dataclasses.replace(
    recipe, task=task, batch_size=16, optimizers={"model": optimizer}
  )


_ENTRIES = Config().vocos.bandwidths

_ADVERSARY = SoundAdversary(
  network=Critics(
    (
      MultiPeriod(skips_first=True, conditions=_ENTRIES),
      MultiResolution(conditions=_ENTRIES),
    )
  ),
  loss="hinge",
  over="kinds",
)


def speech_gan_nano() -> Recipe:
  """Half seconds of speech with the whole objective, on from the packaged codec."""
  return with_critics(speech_nano(), _ADVERSARY, "wavtokenizer-speech-nano")


def _published(rate_name: str) -> Recipe:
  """3 s, 320 a step."""
  model = PRESETS[f"wavtokenizer-{rate_name}"]
  rate = model.sample_rate_hz
  # torch's AdamW as it is unless told otherwise.
  optimizer = Optimizer(peak_lr=2e-4, weight_decay=0.01, decay_axes=1)
  task = SoundReconstruction(
    model=model,
    l1=0.0,
    mel=spectral.wavtokenizer(rate),
    mel_weight=45.0,
    weights={"commitment": 1000.0},
    adversary=_ADVERSARY,
  )
  return at_scale(
    SYSTEM,
    rate_name,
    task,
    seconds=3.0,
    batch_size=320,
    steps=1_000_000,
    optimizer=optimizer,
  )


def tokens_75() -> Recipe:
  """75 tokens a second."""
  return _published("75")


def tokens_40() -> Recipe:
  """40 tokens a second."""
  return _published("40")


RECIPES = {
  "nano": nano,
  "speech-nano": speech_nano,
  "speech-gan-nano": speech_gan_nano,
  "75": tokens_75,
  "40": tokens_40,
}
