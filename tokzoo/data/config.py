"""What to read and how to turn it into a batch: one frozen dataclass."""

import dataclasses
from typing import Literal

Filter = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Crop = Literal["random", "center", "none", "ten", "pieces"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """A source and its transforms, applied in the order of the fields.

  Of sound hold `channels`, `crop`, `repeat` and all from `sample_rate_hz` on; of pictures all but
  those."""

  source: str = "photos"
  """photos, digits, fashion-mnist[:PATH], folder:PATH, arrayrecord:PATH, tfds:NAME or
  webdataset:PATH; of sound tones[:HZ], taught-tones[:HZ],
  speech-prompts[:PATH], audio:PATH or arrayrecord:PATH."""
  split: str = "train"
  """train, test, or what the source calls its parts."""
  skip_bad: bool = False
  """Leave out files that cannot be decoded, naming them in a warning; all are read to know."""
  channels: Literal[1, 2, 3] = 3
  """Colour (3) or grey (1); pictures are converted. Of sound: mono (1) or stereo (2)."""
  resize: int | None = None
  """Length in pixels that the shorter side is resized to; None: as stored."""
  filter: Filter = "bicubic"
  """Resampling filter of `resize`."""
  antialias: bool = True
  """Widen the filter when shrinking, as Pillow does."""
  crop: Crop = "none"
  """Where the square of `size` pixels is cut from, or the `seconds` of a sound; ten: the corners and
  the centre of the largest centred square, then their mirror images, one in each of ten views
  (`repeat`); pieces: all of a sound,
  one piece after another, each a record."""
  size: int | None = None
  """Side in pixels of the square crop; None: the whole picture (all must be of one size)."""
  flip: bool = False
  """Mirror left to right with probability one half."""
  repeat: int = 1
  """Views of a record in one epoch: a large photograph holds many different crops."""
  shuffle: bool = True
  """Global shuffle from the recipe's seed, anew every epoch."""
  threads: int = 4
  """Threads that read and decode; 0 reads in the calling thread."""
  prefetch: int = 4
  """Batches made ahead of the step."""
  sample_rate_hz: int | None = None
  """Samples a second that sounds are resampled to; None: as stored."""
  seconds: float | None = None
  """Length that sounds are cut to; shorter ones are filled up with silence. None: as stored."""
  softest_db: float | None = None
  """LUFS that a random crop of a sound must be above, else it is drawn again; None: any will do."""
  loudness_db: float | None = None
  """LUFS that every crop of a sound is brought to, its peak no higher than 1; None: as it is."""
  shift_phase: bool = False
  """Move the phase of all frequencies of a crop by one random angle."""
