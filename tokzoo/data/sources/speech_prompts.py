"""`speech-prompts`, `speech-prompts:PATH`: the telephone prompts of Asterisk, one speaker.

Debian's package asterisk-core-sounds-en-g722: 568 prompts, 25 minutes, one professional speaker
(Allison Smith), 16 kHz, CC-BY-SA-3.0. Every tenth prompt, in the order of their names, is in
the split `test`.

  speech-prompts               as `tokzoo data prepare speech-prompts` left them in the cache
  speech-prompts:FILE.deb      straight out of the package
  speech-prompts:FOLDER        what `tokzoo data prepare --out FOLDER` wrote

The package holds G.722, which PyAV decodes (the extra `g722`) to 16 bits, kept as flac.
"""

import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tokzoo.data.sound import encode_flac
from tokzoo.data.sources.arrayrecord import MANIFEST, ArrayRecordSource
from tokzoo.data.sources.base import Encoded, Source, SourceInfo, require_split
from tokzoo.errors import TokzooError, missing_extra
from tokzoo.places import cache_dir

PACKAGE = "asterisk-core-sounds-en-g722"
RATE_HZ = 16_000


def kept_at() -> Path:
  """The folder in the cache where the prepared prompts lie."""
  return cache_dir() / "data" / "speech-prompts"


def speech_prompts(path: str, split: str) -> Source:
  """The prompts of a split.

  Raises:
    TokzooError: they are not there, or `path` is something else.
  """
  place = Path(path).expanduser() if path else kept_at()
  if place.suffix == ".deb":
    return PackagedPrompts(place, split)
  if not (place / MANIFEST).is_file():
    where = f"at {place}" if path else "in the cache"
    raise TokzooError(
      f"the speech prompts are not {where}: run  tokzoo data prepare speech-prompts  where apt "
      f"is, or download Debian's {PACKAGE} and name its file: speech-prompts:FILE.deb."
    )
  return ArrayRecordSource(str(place), split)


def fetch_package(folder: Path) -> Path:
  """Downloads the Debian package with apt, without installing it.

  Raises:
    TokzooError: there is no apt, or it fails.
  """
  advice = f"download {PACKAGE} from packages.debian.org and name its file: speech-prompts:FILE.deb."
  if shutil.which("apt-get") is None:
    raise TokzooError(f"apt-get, which fetches the prompts, is not here: {advice}")
  command = ["apt-get", "download", PACKAGE]
  done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  found = sorted(folder.glob(f"{PACKAGE}*.deb"))
  if done.returncode or not found:
    lines = done.stderr.strip().splitlines() or ["it says nothing"]
    raise TokzooError(f"apt-get download {PACKAGE} failed ({lines[-1]}): {advice}")
  return found[0]


class PackagedPrompts(Source):
  """The prompts of a split, out of the Debian package; the key is the prompt's name."""

  def __init__(self, package: Path, split: str):
    splits = ("train", "test")
    require_split("speech-prompts", split, splits)
    files = dict(sorted(_members(package)))
    if not files:
      raise TokzooError(f"{package} holds no .g722 files: name Debian's {PACKAGE}.")
    self._prompts = [
      (name, data)
      for place, (name, data) in enumerate(files.values())
      if (place % 10 == 9) == (split == "test")
    ]
    self.info = SourceInfo(
      name="speech-prompts",
      split=split,
      splits=splits,
      description="Asterisk's English prompts, one speaker, 16 kHz",
      licence="CC-BY-SA-3.0",
      version=package.name,
      media="sound",
    )

  def __len__(self) -> int:
    return len(self._prompts)

  def encoded(self, index: int) -> Encoded:
    name, data = self._prompts[index]
    samples = decode_g722(data).astype(np.float32) / 32768.0
    return Encoded(encode_flac(samples[:, None], RATE_HZ), name, media="sound")


def decode_g722(data: bytes) -> np.ndarray:
  """int16[T] at 16 kHz of a G.722 stream at 64 kbit/s.

  Raises:
    TokzooError: PyAV is not installed.
  """
  try:
    import av
  except ImportError as error:
    raise missing_extra("av", "g722", "decoding G.722") from error
  with av.open(io.BytesIO(data), format="g722") as stream:
    decoded: Any = stream.decode(audio=0)  # pyright: ignore[reportAttributeAccessIssue]
    frames = [frame.to_ndarray().ravel() for frame in decoded]
  return np.concatenate(frames).astype(np.int16)


def _members(package: Path) -> Iterator[tuple[str, tuple[str, bytes]]]:
  """(path, (name, bytes)) of the G.722 files of a Debian package."""
  with _data_of(package) as archive:
    for member in archive:
      path = Path(member.name)
      if member.isfile() and path.suffix == ".g722":
        file = archive.extractfile(member)
        assert file is not None  # a plain file has contents
        yield member.name, ("/".join(path.parts[-2:])[:-5], file.read())


def _data_of(package: Path) -> Any:
  """The tar archive inside: a .deb is an `ar` archive of three files.

  Raises:
    TokzooError: not there, or no Debian package.
  """
  try:
    data = package.read_bytes()
  except OSError as error:
    raise TokzooError(
      f"cannot read {package}: {error.strerror}; check the path."
    ) from error
  start = 8
  while data[:8] == b"!<arch>\n" and start + 60 <= len(data):
    header = data[start : start + 60]
    name, size = header[:16].decode("ascii", "replace").strip(), header[48:58].strip()
    if not size.isdigit():
      break
    start += 60
    if name.startswith("data.tar"):
      try:
        return tarfile.open(fileobj=io.BytesIO(data[start : start + int(size)]))
      except tarfile.TarError as error:
        raise TokzooError(
          f"{package} is damaged ({error}): download it again."
        ) from error
    start += int(size) + int(size) % 2
  raise TokzooError(f"{package} is not a Debian package: name a .deb file.")
