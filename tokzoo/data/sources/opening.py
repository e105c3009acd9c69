"""From a name to a source."""

import warnings
from concurrent.futures import ThreadPoolExecutor

from tokzoo.data.config import DataConfig
from tokzoo.data.sound import SOUND_SUFFIXES
from tokzoo.data.sources.arrayrecord import MANIFEST, ArrayRecordSource
from tokzoo.data.sources.base import BadRecord, Encoded, Record, Source
from tokzoo.data.sources.fashion_mnist import fashion_mnist
from tokzoo.data.sources.folder import Folder, SoundFolder
from tokzoo.data.sources.packaged import Photos, digits
from tokzoo.data.sources.pieces import Pieces
from tokzoo.data.sources.speech_prompts import speech_prompts
from tokzoo.data.sources.tokens import TokenSource
from tokzoo.data.sources.tones import Tones
from tokzoo.data.sources.webdataset import WebDataset
from tokzoo.errors import TokzooError, unknown
from tokzoo.remote import located

KINDS = (
  "photos",
  "digits",
  "fashion-mnist",
  "folder",
  "arrayrecord",
  "tfds",
  "webdataset",
  "tokens",
  "audio",
  "tones",
  "taught-tones",
  "speech-prompts",
)


def open_source(config: DataConfig) -> Source:
  """Opens the source that a config names.

  Args:
    config: of which `source`, `split`, `skip_bad`, `threads`, and for pieces of sound `crop` and
      `seconds` are read.

  Returns:
    The source; it has at least one record.

  Raises:
    TokzooError: no such source, path or split, or nothing in it.
  """
  source = _open(config.source, config.split)
  if len(source) == 0:
    raise TokzooError(f"{config.source} has no records in its split {config.split!r}.")
  if config.skip_bad:
    source = _without_bad(source, config.threads)
  if config.crop == "pieces":
    return Pieces(source, config.seconds, config.threads)
  return source


def guess_source(path: str) -> str:
  """The name of what lies at a path: what a user means who only names a folder.

  A known name stays as it is. A folder with a manifest is `arrayrecord:`, with tar files
  `webdataset:`, with IDX files `fashion-mnist:`, with TFDS's description `tfds:`, with sounds at
  its top (or in its part `train`) `audio:`, any other `folder:`.

  Raises:
    TokzooError: neither a name nor a path, or a source of tokens.
  """
  kind = path.partition(":")[0]
  if kind == "tokens":
    raise TokzooError(f"{path} holds tokens: name a source of pictures instead.")
  if kind in KINDS:
    return path
  place = located(path)
  if place.suffix == ".tar" and place.is_file():
    return f"webdataset:{path}"
  if not place.is_dir():
    raise TokzooError(
      f"{path!r} is neither a folder, a tar file nor a source ({', '.join(KINDS)}): check "
      "the path."
    )
  for kind, pattern in (
    ("arrayrecord", MANIFEST),
    ("webdataset", "*.tar"),
    ("webdataset", "train/*.tar"),
    ("fashion-mnist", "train-images-idx3-ubyte*"),
    ("tfds", "dataset_info.json"),
    *(
      ("audio", f"{part}*{suffix}")
      for part in ("", "train/")
      for suffix in SOUND_SUFFIXES
    ),
  ):
    if next(place.glob(pattern), None):
      return f"{kind}:{path}"
  return f"folder:{path}"


def _open(name: str, split: str) -> Source:
  kind, _, path = name.partition(":")
  if kind in ("photos", "digits") and path:
    raise TokzooError(f"the source {kind} takes no path: write {kind}, not {name}.")
  match kind:
    case "photos":
      return Photos(split)
    case "digits":
      return digits(split)
    case "fashion-mnist":
      return fashion_mnist(path, split)
    case "folder":
      return Folder(path, split)
    case "arrayrecord":
      return ArrayRecordSource(path, split)
    case "tfds":
      from tokzoo.data.sources.tfds import TfdsSource  # takes a second to import

      return TfdsSource(path, split)
    case "webdataset":
      return WebDataset(path, split)
    case "tokens":
      return TokenSource(path, split)
    case "audio":
      return SoundFolder(path, split)
    case "tones":
      return Tones(path, split)
    case "taught-tones":
      return Tones(path, split, is_taught=True)
    case "speech-prompts":
      return speech_prompts(path, split)
  raise unknown("source", kind, KINDS)


class _Chosen(Source):
  """Some of the records of another source."""

  def __init__(self, source: Source, indices: list[int]):
    self.info = source.info
    self._source = source
    self._indices = indices

  def __len__(self) -> int:
    return len(self._indices)

  def encoded(self, index: int) -> Encoded:
    return self._source.encoded(self._indices[index])

  def __getitem__(self, index: int) -> Record:
    return self._source[self._indices[index]]


def _without_bad(source: Source, threads: int) -> Source:
  """The source without the records that cannot be decoded, which a warning names.

  Every record is decoded, since the header of a file that was cut short looks well.
  """

  def problem(index: int) -> BadRecord | None:
    try:
      source[index]
    except BadRecord as error:
      return error
    return None

  with ThreadPoolExecutor(max(threads, 1)) as pool:
    problems = list(pool.map(problem, range(len(source))))
  bad = [error for error in problems if error is not None]
  if not bad:
    return source
  listed = "; ".join(f"{error.key}: {error.reason}" for error in bad)
  if len(bad) == len(source):
    raise TokzooError(f"none of the {len(bad)} records can be decoded ({listed}).")
  warnings.warn(
    f"left out {len(bad)} of {len(source)} records that cannot be decoded: {listed}",
    stacklevel=3,
  )
  return _Chosen(source, [i for i, error in enumerate(problems) if error is None])
