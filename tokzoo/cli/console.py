"""What the commands share: arguments, tables, JSON, pictures on disk."""

import contextlib
import dataclasses
import functools
import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokzoo.data.sources.base import BadRecord, decode_image
from tokzoo.data.transforms import resize_shorter, to_channels
from tokzoo.errors import TokzooError
from tokzoo.files import write_atomic
from tokzoo.hub.pretrained import one_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def parse(function: Callable[..., Any], command: str, arguments: Sequence[str]) -> Any:
  """Calls `function` with typed arguments from the command line.

  Raises:
    TokzooError: an option that it does not have, or a value of another type.
  """

  # Bound first and called afterwards: what it prints is no error of the arguments.
  @functools.wraps(function)
  def bind(*args: Any, **kwargs: Any) -> Callable[[], Any]:
    return functools.partial(function, *args, **kwargs)

  return read_arguments(bind, f"tokzoo {command}", arguments)()


def read_arguments(what: Any, prog: str, arguments: Sequence[str], **more: Any) -> Any:
  """`tyro.cli`, whose framed errors become one sentence.

  Args:
    what: a function or a dataclass.
    prog: the command as it was typed.
    arguments: what follows it.
    more: settings of `tyro.cli`.

  Raises:
    TokzooError: an option that there is not (the nearest is named), or a value missing or of
      another type.
  """
  heard = io.StringIO()
  try:
    with contextlib.redirect_stderr(heard):
      return tyro.cli(
        what,
        prog=prog,
        args=list(arguments),
        config=(tyro.conf.AvoidSubcommands,),
        **more,
      )
  except SystemExit as stop:
    if stop.code == 0:  # --help
      raise
    raise TokzooError(_one_sentence(heard.getvalue(), prog)) from stop


def emit(data: Any, as_json: bool, render: Callable[[Console], None]) -> None:
  """Prints `data` as JSON, or lets `render` show it to a person."""
  if as_json:
    print(json.dumps(data, indent=2, default=_plain))
  else:
    render(Console())


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
  """A table whose numbers are rounded for reading."""
  made = Table(title=escape(title), title_justify="left", title_style="bold")
  numeric = [
    all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))
  ]
  for column, right in zip(columns, numeric, strict=True):
    justify = "right" if right and rows else "left"
    made.add_column(column, justify=justify, overflow="fold")
  for row in rows:
    made.add_row(*(escape(shown(value)) for value in row))
  return made


def shown(value: Any) -> str:
  """A value as people read it."""
  if isinstance(value, float):
    return f"{value:.4g}"
  if isinstance(value, Mapping):
    return ", ".join(f"{name} {shown(item)}" for name, item in value.items())
  if isinstance(value, list | tuple):
    return ", ".join(shown(item) for item in value)
  return "" if value is None else str(value)


def facts(title: str, values: Mapping[str, Any]) -> Table:
  """Names and values, one a line."""
  return table(
    title, ("", ""), [(name, shown(value)) for name, value in values.items()]
  )


def read_picture(
  path: str | Path, channels: int, size: int | None = None
) -> np.ndarray:
  """A picture file as uint8[H, W, channels].

  The camera's orientation is applied, transparency laid over white, 16 bits become 8, and
  grey and colour are converted; of an animation it is the first frame. An array (.npy) is
  taken as it is: uint8 in 0..255 or float in [-1, 1], rounded to 8 bits.

  Args:
    path: the file.
    channels: 1 or 3.
    size: None, or the side of the square that the picture is resized (the shorter side,
      bicubic) and cut to (the centre).

  Raises:
    TokzooError: no such file, not a picture, one that is damaged, or an array of another
      shape, dtype or range.
  """
  image = _read_picture(path, channels)
  if size is None:
    return image
  if size < 1:
    raise TokzooError(f"--size {size} came: a picture has at least 1 pixel a side.")
  image = resize_shorter(image, size, "bicubic")
  top, left = ((side - size) // 2 for side in image.shape[:2])
  return image[top : top + size, left : left + size]


def _read_picture(path: str | Path, channels: int) -> np.ndarray:
  path = Path(path)
  if not path.is_file():
    raise TokzooError(f"there is no picture at {path}: check the path.")
  try:
    if path.suffix == ".npy":
      array = np.load(path, allow_pickle=False)
      return to_uint8(one_picture(array, channels))
    return to_channels(decode_image(path.read_bytes(), path.name), channels)
  except (BadRecord, OSError, ValueError) as error:
    reason = error.reason if isinstance(error, BadRecord) else error
    raise TokzooError(
      f"{path} is not a picture that can be read ({reason}): convert it to PNG or JPEG."
    ) from error


def find_pictures(path: str | Path) -> list[Path]:
  """The picture files at a path: the file itself, or all in a folder.

  Raises:
    TokzooError: no such path, or a folder without pictures.
  """
  path = Path(path)
  if path.is_file():
    return [path]
  if not path.is_dir():
    raise TokzooError(
      f"there is nothing at {path}: name a picture or a folder of them."
    )
  found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES)
  if not found:
    raise TokzooError(
      f"the folder {path} holds no pictures ({', '.join(PICTURES)}): name another."
    )
  return found


def to_uint8(image: np.ndarray) -> np.ndarray:
  """float in [-1, 1] -> uint8, rounded."""
  return np.clip(np.round((np.asarray(image) + 1) * 127.5), 0, 255).astype(np.uint8)


def write_picture(path: str | Path, image: np.ndarray) -> None:
  """Writes float[H, W, C] in [-1, 1] or uint8 as a picture file, whole or not at all.

  Raises:
    TokzooError: an ending that is no picture format, or a path that cannot be written.
  """
  path = Path(path)
  if path.suffix.lower() not in PICTURES:
    raise TokzooError(
      f"{path.name} has the ending {path.suffix!r}; pictures are written as "
      f"{', '.join(PICTURES)}."
    )
  array = image if image.dtype == np.uint8 else to_uint8(image)
  picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
  buffer = io.BytesIO()
  Image.init()
  picture.save(buffer, format=Image.registered_extensions()[path.suffix.lower()])
  write_atomic(path, buffer.getvalue())


def write_json(path: str | Path, data: Any) -> None:
  """Writes `data` as JSON for people and programs, whole or not at all.

  Raises:
    TokzooError: the path cannot be written.
  """
  text = json.dumps(data, indent=2, default=_plain)
  write_atomic(path, f"{text}\n".encode())


def note(text: str) -> None:
  """Says something on stderr, so that stdout stays parseable."""
  print(text, file=sys.stderr)


def _one_sentence(framed: str, prog: str) -> str:
  """What tyro says in a frame of lines: its first part, and the option it suggests."""
  lines = [line.strip("│ ") for line in framed.splitlines()]
  lines = [line for line in lines if not line.startswith(("╭", "╰"))]
  parts = [[]]
  for line in lines:
    if line.startswith("─"):
      parts.append([])
    elif line:
      parts[-1].append(line)
  what = re.split(r"\s*Got errors:", " ".join(parts[0]))[0].rstrip(" .:")
  what = what.replace(". ", "; ")
  hint = ""
  for part in parts[1:]:
    options = [word for line in part for word in line.split() if word.startswith("--")]
    if part and part[0].startswith("Perhaps you meant") and options:
      hint = f"did you mean {options[0].rstrip(',')}? "
  return f"{what[:1].lower()}{what[1:]}: {hint}see {prog} --help."


def _plain(value: Any) -> Any:
  """What json does not know: dataclasses, NumPy, paths."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return dataclasses.asdict(value)
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, np.ndarray):
    return value.tolist()
  return str(value)
