"""`tones`, `tones:HZ`: synthesised sounds (`tokzoo/data/synthesis.py`), the same every time.

`taught-tones`, `taught-tones:HZ`: the same with the features of two made-up teachers, 50 frames a
second: `teacher` float32[M, 16] of the units, as a speech model would tell them, and `teacher_lm`
float32[M, 16] of the pitch, which has nothing to do with them.

They need no package and no download. They are no speech: what is measured on them says so.
256 utterances of a second to train on and 32 others to test on, at HZ samples a second (24,000
by default). The label is that of the pitch: low (90 to 125 Hz), middle, high (173 to 240 Hz).
"""

import functools

import numpy as np

from tokzoo.data.sound import encode_flac
from tokzoo.data.sources.base import (
  Encoded,
  Record,
  Source,
  SourceInfo,
  require_split,
)
from tokzoo.data.synthesis import (
  NUM_PITCHES,
  VOWELS_HZ,
  Utterance,
  teacher,
  utterance,
)
from tokzoo.errors import TokzooError

SECONDS = 1.0
"""Of every utterance."""

TEACHER_HZ = 50
"""Frames a second of the teachers."""

TEACHER_DIM = 16

_COUNTS = {"train": 256, "test": 32}
_SEEDS = {"train": 1, "test": 2}
PITCHES = ("low", "middle", "high")
_BORDERS_HZ = (124.8, 173.1)
"""Thirds of 90 to 240 Hz, on a scale of octaves."""


class Tones(Source):
  """Each utterance is synthesised when it is first read, from its own seed, and kept."""

  def __init__(self, path: str, split: str, is_taught: bool = False):
    name = "taught-tones" if is_taught else "tones"
    require_split(name, split, tuple(_COUNTS))
    if path and not path.isdecimal():
      raise TokzooError(
        f"{name}:{path} was asked for: after the colon stands the rate in Hz, as in {name}:16000."
      )
    self._rate_hz = int(path or 24_000)
    if not 2_000 <= self._rate_hz <= 192_000:
      raise TokzooError(
        f"{name}:{path} was asked for: the rate is 2,000 to 192,000 samples a second."
      )
    self._split = split
    self._is_taught = is_taught
    self._utterance = functools.cache(self._made)
    self.info = SourceInfo(
      name=name,
      split=split,
      splits=tuple(_COUNTS),
      description=f"synthesised vowel-like sounds of {SECONDS:g} s at {self._rate_hz} Hz, "
      "no speech",
      licence="made by tokzoo: Apache-2.0",
      version="1",
      classes=PITCHES,
      media="sound",
    )

  def __len__(self) -> int:
    return _COUNTS[self._split]

  def __getitem__(self, index: int) -> Record:
    made = self._utterance(index)
    frames = {"frames": teachers(made)} if self._is_taught else {}
    return frames | {
      "audio": made.samples,
      "rate_hz": self._rate_hz,
      "label": np.int32(np.searchsorted(_BORDERS_HZ, made.pitch_hz)),
      "key": f"tones/{self._split}/{index}",
    }

  def _made(self, index: int) -> Utterance:
    rng = np.random.default_rng((_SEEDS[self._split], index))
    return utterance(rng, self._rate_hz, SECONDS)

  def encoded(self, index: int) -> Encoded:
    if self._is_taught:
      raise TokzooError(
        "taught-tones are made, not copied: read them where they are wanted, or copy tones."
      )
    record = self[index]
    data = encode_flac(record["audio"], self._rate_hz)
    return Encoded(data, record["key"], int(record["label"]), media="sound")


def teachers(made: Utterance) -> dict[str, np.ndarray]:
  """Both teachers' features of a whole utterance, float32[M, 16] each."""
  count = round(len(made.samples) / made.rate_hz * TEACHER_HZ)
  times = (np.arange(count) + 0.5) / TEACHER_HZ
  units, pitches = made.units_at(times), made.pitches_at(times)
  return {
    "teacher": teacher(units, len(VOWELS_HZ), TEACHER_DIM, seed=11),
    "teacher_lm": teacher(pitches, NUM_PITCHES, TEACHER_DIM, seed=12),
  }
