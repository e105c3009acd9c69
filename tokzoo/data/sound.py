"""Sound files: read, resampled and mixed for a model, written whole or not at all.

Samples are float32[T, C], channels last, in [-1, 1]. Files are read by libsndfile (the package
soundfile) and resampled by soxr at its quality HQ; both are the extra `audio`.

What comes of recordings that are not as a model wants them:

  another rate            resampled, and said
  more channels           mixed to mono by their mean, and said; to stereo only from mono
  fewer channels          mono is repeated, and said
  8 bits                  read as they are, and said: the noise is about 50 dB below full scale
  clipped                 read as they are; how many samples stand at full scale is said
  floats beyond [-1, 1]   cut off at full scale, and said; beyond 4 they are refused
  silence, one sample     read as they are; silence is said
  empty, NaN, no sound    refused, in one sentence each
  cut short               refused where the file says how long it is: wav, flac, ogg. An mp3
                          does not: it is read up to the cut

Long files are read in blocks, so that an hour never lies in memory at its own rate.
"""

import contextlib
import dataclasses
import io
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tokzoo.errors import TokzooError, missing_extra

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
"""File names that are taken for sound, in lower case."""

BLOCK_SECONDS = 10.0
"""Of a long file that are read at a time."""

_LOUDEST = 4.0
"""Floats beyond are of another scale (16-bit integers, say), not a little too loud."""

_END = 131_072
"""Bytes at the end of a file in which an ogg's last page begins: a page has at most 65,307."""

Say = Callable[[str], None]
"""Is told, in a sentence each, what was done to a recording."""


class BadSound(Exception):
  """Why a file cannot be read, without its name."""


@dataclasses.dataclass(frozen=True)
class SoundInfo:
  """What a sound file says of itself.

  rate_hz:   samples a second of each channel
  channels:  their number
  frames:    samples of each channel
  coding:    libsndfile's name: PCM_16, PCM_U8, FLOAT, VORBIS, ...
  """

  rate_hz: int
  channels: int
  frames: int
  coding: str

  @property
  def seconds(self) -> float:
    return self.frames / self.rate_hz


@dataclasses.dataclass(frozen=True)
class Sound:
  """A whole recording.

  samples:  float32[T, C] in [-1, 1]
  info:     of its file
  """

  samples: Float[np.ndarray, "T C"]
  info: SoundInfo


def decode_sound(data: bytes) -> Sound:
  """The bytes of a sound file, at its own rate and channels.

  Raises:
    BadSound: not a sound file, empty, cut short, or with NaN.
    TokzooError: the extra `audio` is not installed.
  """
  with _opened(io.BytesIO(data), _Whole(data[:16], data[-_END:], len(data))) as file:
    info = _info(file)
    samples = file.read(dtype="float32", always_2d=True)
  checked = _Checks(lambda text: None)
  samples = checked.block(samples)
  if len(samples) < info.frames:
    raise BadSound(_cut(len(samples), info))
  return Sound(samples, info)


def sound_info(path: str | Path) -> SoundInfo:
  """What a file says of itself, without its samples.

  Raises:
    TokzooError: as `read_sound`.
  """
  with _named(path), _open_path(path) as file:
    return _info(file)


def read_sound(
  path: str | Path,
  rate_hz: int | None = None,
  channels: int | None = None,
  say: Say = lambda text: None,
) -> Float[np.ndarray, "T C"]:
  """A sound file as float32[T, C] in [-1, 1].

  Args:
    path: a wav, flac, ogg or mp3 file.
    rate_hz: samples a second to arrive at; None: its own.
    channels: to arrive at; None: its own.
    say: is told of resampling, mixing and flaws.

  Raises:
    TokzooError: a file that is none, one that cannot be read, or the extra `audio` lacks.
  """
  return np.concatenate(list(sound_blocks(path, rate_hz, channels, say)))


def sound_blocks(
  path: str | Path,
  rate_hz: int | None = None,
  channels: int | None = None,
  say: Say = lambda text: None,
  seconds: float = BLOCK_SECONDS,
) -> Iterator[Float[np.ndarray, "n C"]]:
  """As `read_sound`, block by block: together they are the whole file, the same bits."""
  name = Path(path).name
  with _named(path), _open_path(path) as file:
    info = _info(file)
    checks = _Checks(lambda text: say(f"{name}: {text}"))
    checks.coding(info)
    mix = mixer(info.channels, channels, lambda text: say(f"{name}: {text}"))
    change = resampler(info.rate_hz, rate_hz, channels or info.channels)
    if rate_hz is not None and rate_hz != info.rate_hz:
      say(f"{name}: resampled from {info.rate_hz} to {rate_hz} Hz.")
    read, size = 0, max(int(seconds * info.rate_hz), 1)
    while read < info.frames:
      block = file.read(size, dtype="float32", always_2d=True)
      read += len(block)
      if not len(block):
        raise BadSound(_cut(read, info))
      made = change(mix(checks.block(block)), read >= info.frames)
      if len(made):
        yield made
    checks.end(info)


def write_sound(
  path: str | Path, samples: Float[np.ndarray, "T C"], rate_hz: int
) -> None:
  """Writes float32[T, C] in [-1, 1] as 16 bits (wav, flac) or compressed (ogg, mp3).

  Samples beyond full scale are cut off. Whole or not at all.

  Raises:
    TokzooError: an ending that is no sound format, a rate or number of channels that the
      format does not have, NaN, or a path that cannot be written.
  """
  with sound_writer(path, rate_hz, samples.shape[1]) as write:
    write(samples)


@contextlib.contextmanager
def sound_writer(
  path: str | Path, rate_hz: int, channels: int
) -> Iterator[Callable[[Float[np.ndarray, "n C"]], None]]:
  """As `write_sound`, block by block: gives the function that writes the next block.

  The file grows beside `path` and takes its name at the end; an error leaves none.
  """
  soundfile = _soundfile()
  path = Path(path)
  kind = path.suffix.lower()
  if kind not in SOUND_SUFFIXES:
    raise TokzooError(
      f"{path.name} has the ending {path.suffix!r}; sound is written as "
      f"{', '.join(SOUND_SUFFIXES)}."
    )
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  except OSError as error:
    raise TokzooError(
      f"cannot write {path}: {error.strerror}; name a folder that you may write to."
    ) from error
  try:
    with os.fdopen(handle, "wb") as raw:
      with _created(path, raw, rate_hz, channels, kind) as file:

        def write(block: np.ndarray) -> None:
          block = np.asarray(block, np.float32)
          if not np.isfinite(block).all():
            raise TokzooError(
              f"{path.name} would hold NaN or infinity: it is not written."
            )
          is_exact = kind in (".wav", ".flac")
          file.write(to_int16(block) if is_exact else np.clip(block, -1, 1))

        yield write
      raw.flush()
      os.fsync(raw.fileno())
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes private files
    os.replace(temporary, path)
  except (OSError, soundfile.LibsndfileError) as error:
    raise TokzooError(
      f"cannot write {path}: {error}; free some space or name another folder."
    ) from error
  finally:
    Path(temporary).unlink(missing_ok=True)


def _created(path: Path, raw: Any, rate_hz: int, channels: int, kind: str) -> Any:
  """libsndfile's file in an open one."""
  soundfile = _soundfile()
  try:
    return soundfile.SoundFile(raw, "w", rate_hz, channels, format=kind[1:].upper())
  except (soundfile.LibsndfileError, ValueError, TypeError) as error:
    raise TokzooError(
      f"{path.name} cannot hold {channels} channels at {rate_hz} Hz ({error}): write a .wav."
    ) from error


def encode_flac(samples: Float[np.ndarray, "T C"], rate_hz: int) -> bytes:
  """The bytes of a flac file of 16 bits: lossless for samples that are k / 32768."""
  file = io.BytesIO()
  _soundfile().write(file, to_int16(samples), rate_hz, format="FLAC")
  return file.getvalue()


def to_int16(samples: Float[np.ndarray, "T C"]) -> np.ndarray:
  """float in [-1, 1] -> int16, the nearest of k / 32768; 1.0 becomes 32767."""
  # libsndfile writes floats times 32767 and reads them over 32768: not what was there.
  return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def mixer(
  found: int, wanted: int | None, say: Say = lambda text: None
) -> Callable[[np.ndarray], np.ndarray]:
  """The function from blocks of `found` channels to blocks of `wanted`; `say` is told.

  Raises:
    BadSound: more than two channels where two are wanted.
  """
  if wanted is None or found == wanted:
    return lambda block: block
  if wanted == 1:
    say(f"its {found} channels are mixed to one, their mean.")
    return lambda block: block.mean(1, keepdims=True, dtype=np.float32)
  if found == 1:
    say(f"its one channel is repeated {wanted} times.")
    return lambda block: np.repeat(block, wanted, 1)
  raise BadSound(
    f"it has {found} channels and the model takes {wanted}: mix it down first"
  )


def resampler(
  found_hz: int, wanted_hz: int | None, channels: int
) -> Callable[[np.ndarray, bool], np.ndarray]:
  """The function (block, is it the last) -> block at the wanted rate, clipped to [-1, 1].

  It remembers what a filter needs from block to block. Together the blocks have
  round(T * wanted / found) samples, at least one.

  Raises:
    TokzooError: the extra `audio` is not installed, and the rates differ.
  """
  if wanted_hz is None or found_hz == wanted_hz:
    return lambda block, last: block
  soxr = _soxr()
  stream = soxr.ResampleStream(found_hz, wanted_hz, channels, dtype="float32")
  taken, given = 0, 0

  def change(block: np.ndarray, last: bool) -> np.ndarray:
    nonlocal taken, given
    made = stream.resample_chunk(np.ascontiguousarray(block), last=last)
    made = made.reshape(-1, channels)
    taken += len(block)
    if last:
      whole = max(math.floor(taken * wanted_hz / found_hz + 0.5), 1)
      missing = whole - given - len(made)
      made = np.pad(made, ((0, max(missing, 0)), (0, 0)))
      made = made[: max(whole - given, 0)]
    given += len(made)
    # A filter overshoots at edges, by little.
    return np.clip(made, -1.0, 1.0)

  return change


def resampled(
  samples: Float[np.ndarray, "T C"], found_hz: int, wanted_hz: int
) -> Float[np.ndarray, "t C"]:
  """A whole recording at another rate: round(T * wanted / found) samples, at least one."""
  return resampler(found_hz, wanted_hz, samples.shape[1])(samples, True)


class _Checks:
  """What is looked for in every block, and what is said at the end."""

  def __init__(self, say: Say):
    self._say = say
    self._full, self._beyond, self._loudest, self._frames = 0, 0, 0.0, 0

  def coding(self, info: SoundInfo) -> None:
    if info.coding in ("PCM_U8", "PCM_S8"):
      self._say("it has 8 bits a sample, whose noise stays in it.")

  def block(self, samples: np.ndarray) -> np.ndarray:
    if bad := int((~np.isfinite(samples)).sum()):
      raise BadSound(f"{bad} of its samples are NaN or infinite: mend them first")
    self._frames += len(samples)
    loud = np.abs(samples)
    highest = float(loud.max(initial=0.0))
    self._loudest = max(self._loudest, highest)
    if highest > _LOUDEST:
      raise BadSound(
        f"its samples reach {highest:.4g}, where full scale is 1: scale them first"
      )
    self._full += int((loud >= 32767 / 32768).sum())
    if highest > 1.0:
      self._beyond += int((loud > 1.0).sum())
      samples = np.clip(samples, -1.0, 1.0)
    return samples

  def end(self, info: SoundInfo) -> None:
    if self._beyond:
      self._say(
        f"{self._beyond} samples beyond full scale (up to {self._loudest:.3g}) are cut off."
      )
    elif self._full > 2:
      self._say(f"{self._full} samples stand at full scale: it is clipped.")
    if self._loudest == 0.0:
      self._say("it is silent.")


@dataclasses.dataclass(frozen=True)
class _Whole:
  """What tells whether a file was cut short: its first bytes, its last ones, its size."""

  start: bytes
  end: bytes
  size: int

  def check(self) -> None:
    """Raises BadSound if the file says that it was longer.

    libsndfile reads a wav or ogg that was cut short as if it ended there."""
    if self.start[:4] == b"RIFF":
      told = int.from_bytes(self.start[4:8], "little")
      # Programs that write to a pipe leave 0 or the largest number there.
      if told not in (0, 2**32 - 1, 2**31 - 1) and told < 2**32 - 64:
        missing = told + 8 - self.size
        if missing > 1:  # some leave out the padding byte of an odd chunk
          raise BadSound(f"it was cut short: {missing} of its {told + 8} bytes lack")
    if self.start[:4] == b"OggS":
      page = self.end[max(self.end.rfind(b"OggS"), 0) :]
      # Flags, the number of segments, their lengths.
      lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
      is_last = page[:4] == b"OggS" and len(page) > 26 and page[5] & 4
      if not is_last or len(page) < 27 + len(lengths) + sum(lengths):
        raise BadSound("it was cut short: its last page lacks")


@contextlib.contextmanager
def _named(path: str | Path) -> Iterator[None]:
  """Names the file in what goes wrong."""
  try:
    yield
  except BadSound as error:
    raise TokzooError(f"cannot read {path}: {error}.") from error


@contextlib.contextmanager
def _open_path(path: str | Path) -> Iterator[Any]:
  path = Path(path)
  if not path.is_file():
    raise TokzooError(f"there is no sound file at {path}: check the path.")
  with open(path, "rb") as file:
    start, size = file.read(16), path.stat().st_size
    file.seek(max(size - _END, 0))
    end = file.read()
    file.seek(0)
    with _opened(file, _Whole(start, end, size)) as sound:
      yield sound


@contextlib.contextmanager
def _opened(file: Any, whole: _Whole) -> Iterator[Any]:
  """libsndfile's view of an open file."""
  soundfile = _soundfile()
  if whole.size == 0:
    raise BadSound("it is empty")
  try:
    sound = soundfile.SoundFile(file)
  except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
    raise BadSound(
      f"it is not a sound file that libsndfile knows ({', '.join(SOUND_SUFFIXES)}), whatever "
      "its name says"
    ) from error
  with sound:
    whole.check()
    if sound.frames == 0:
      raise BadSound("it holds no samples")
    try:
      yield sound
    except soundfile.LibsndfileError as error:
      raise BadSound(f"it is damaged ({error})") from error


def _info(file: Any) -> SoundInfo:
  return SoundInfo(file.samplerate, file.channels, file.frames, file.subtype)


def _cut(read: int, info: SoundInfo) -> str:
  return f"it was cut short: {read} of its {info.frames} samples are there"


def _soundfile() -> Any:
  try:
    import soundfile
  except (ImportError, OSError) as error:  # OSError: without libsndfile
    raise missing_extra("soundfile", "audio", "reading and writing sound") from error
  return soundfile


def _soxr() -> Any:
  try:
    import soxr
  except ImportError as error:
    raise missing_extra("soxr", "audio", "resampling") from error
  return soxr
