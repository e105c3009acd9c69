"""Figures drawn with Pillow: lines, points and sheets of pictures, without a plotting library.

Colours follow one order in all figures; text is the font that Pillow carries.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = (
  *("#1f5fa8", "#c4472b", "#2f8a4c", "#8a5aa8", "#b08020", "#4d4d4d"),
  *("#3aa6a6", "#d0649a"),
)
_INK, _GRID, _SCALE = "#222222", "#dddddd", 2


@dataclasses.dataclass(frozen=True)
class Series:
  """One line or set of points of a figure.

  label:  for the legend; "" stays out of it
  x, y:   of the same length
  line:   join the points
  dots:   mark the points
  """

  label: str
  x: Sequence[float]
  y: Sequence[float]
  line: bool = True
  dots: bool = False


def plot(
  series: Sequence[Series],
  title: str,
  x_label: str,
  y_label: str,
  size: tuple[int, int] = (560, 360),
  log_y: bool = False,
) -> np.ndarray:
  """Draws series over common axes.

  Args:
    series: in the order of the legend.
    title: over the figure.
    x_label, y_label: with units.
    size: width and height in points; the picture has twice as many pixels.
    log_y: logarithmic y axis; values of 0 or less are left out.

  Returns:
    uint8[H, W, 3].
  """
  width, height = (side * _SCALE for side in size)
  image = Image.new("RGB", (width, height), "white")
  draw = ImageDraw.Draw(image)
  font, small = _font(13), _font(11)
  left, top, right, bottom = (
    64 * _SCALE,
    34 * _SCALE,
    width - 16 * _SCALE,
    height - 46 * _SCALE,
  )
  points = [_finite(s, log_y) for s in series]
  xs = np.concatenate([p[0] for p in points]) if points else np.zeros(0)
  ys = np.concatenate([p[1] for p in points]) if points else np.zeros(0)
  if not len(xs):
    xs, ys = np.array([0.0, 1.0]), np.array([0.0, 1.0])
  x_ticks, y_ticks = _ticks(xs), _ticks(ys)
  x_low, x_high = min(xs.min(), x_ticks[0]), max(xs.max(), x_ticks[-1])
  y_low, y_high = min(ys.min(), y_ticks[0]), max(ys.max(), y_ticks[-1])

  def place(x: float, y: float) -> tuple[float, float]:
    return (
      left + (x - x_low) / (x_high - x_low) * (right - left),
      bottom - (y - y_low) / (y_high - y_low) * (bottom - top),
    )

  for tick in x_ticks:
    x, _ = place(tick, y_low)
    draw.line([(x, top), (x, bottom)], fill=_GRID, width=_SCALE)
    draw.text((x, bottom + 5 * _SCALE), _number(tick), _INK, small, anchor="ma")
  for tick in y_ticks:
    _, y = place(x_low, tick)
    draw.line([(left, y), (right, y)], fill=_GRID, width=_SCALE)
    text = _number(10**tick if log_y else tick)
    draw.text((left - 6 * _SCALE, y), text, _INK, small, anchor="rm")
  for colour, one, (x_values, y_values) in zip(_cycle(series), series, points):
    path = [place(x, y) for x, y in zip(x_values, y_values)]
    if one.line and len(path) > 1:
      draw.line(path, fill=colour, width=2 * _SCALE, joint="curve")
    if one.dots or len(path) == 1:
      for x, y in path:
        radius = 4 * _SCALE
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
  draw.text((left, 10 * _SCALE), title, _INK, font, anchor="la")
  draw.text(
    ((left + right) / 2, height - 8 * _SCALE), x_label, _INK, small, anchor="ms"
  )
  _vertical(image, y_label, small, (top + bottom) // 2)
  _legend(draw, series, small, right, top)
  draw.rectangle([left, top, right, bottom], outline=_INK, width=_SCALE)
  return np.asarray(image)


def dot_plot(
  title: str, names: Sequence[str], values: Sequence[Sequence[float]], width: int = 560
) -> np.ndarray:
  """One line a name, one dot a value (a seed), a stroke at the mean.

  Args:
    title: over the figure.
    names: of the lines, from the top.
    values: numbers of each line; all lines share one axis, which starts at 0 unless some
      number is below it.
    width: in points.

  Returns:
    uint8[H, W, 3].
  """
  step, top, bottom = 26 * _SCALE, 40 * _SCALE, 30 * _SCALE
  image = Image.new("RGB", (width * _SCALE, top + step * len(names) + bottom), "white")
  draw = ImageDraw.Draw(image)
  font, small = _font(13), _font(11)
  left = int(max(draw.textlength(name, small) for name in names)) + 16 * _SCALE
  right = width * _SCALE - 24 * _SCALE
  ticks = _ticks(np.array([0.0, *(v for line in values for v in line)]))
  low, high = ticks[0], ticks[-1]

  def place(value: float) -> float:
    return left + (value - low) / (high - low) * (right - left)

  foot = top + step * len(names)
  for tick in ticks:
    draw.line([(place(tick), top - 6 * _SCALE), (place(tick), foot)], _GRID, _SCALE)
    draw.text((place(tick), foot + 4 * _SCALE), _number(tick), _INK, small, anchor="ma")
  for index, (name, line) in enumerate(zip(names, values, strict=True)):
    y = top + step * (index + 0.5)
    colour = COLOURS[index % len(COLOURS)]
    draw.text((left - 10 * _SCALE, y), name, _INK, small, anchor="rm")
    mean, half = place(float(np.mean(line))), 9 * _SCALE
    draw.line([(mean, y - half), (mean, y + half)], colour, 2 * _SCALE)
    for value in line:
      x, radius = place(value), 4 * _SCALE
      draw.ellipse(
        [x - radius, y - radius, x + radius, y + radius], outline=colour, width=3
      )
  draw.text((12 * _SCALE, 8 * _SCALE), title, _INK, font, anchor="la")
  return np.asarray(image)


def stack(figures: Sequence[np.ndarray]) -> np.ndarray:
  """Figures one below the other, on white."""
  widest = max(figure.shape[1] for figure in figures)
  return np.concatenate(
    [
      np.pad(f, ((0, 16), (0, widest - f.shape[1]), (0, 0)), constant_values=255)
      for f in figures
    ]
  )


def sheet(
  pictures: Sequence[Sequence[np.ndarray]],
  rows: Sequence[str] = (),
  columns: Sequence[str] = (),
  side: int = 64,
) -> np.ndarray:
  """A grid of pictures with names for rows and columns.

  Args:
    pictures: rows of uint8[H, W, C]; each is scaled to the height `side`, nearest pixel when
      enlarged (a tiny picture stays sharp).
    rows, columns: names, or none.
    side: height of a cell in pixels.

  Returns:
    uint8[H, W, 3].
  """
  gap, margin = 4, 18 if columns else 0
  font = _font(7)
  names = 8 * max((len(name) for name in rows), default=0) + 10 if rows else 0
  scaled = [[_scaled(picture, side) for picture in row] for row in pictures]
  widths = [
    max(row[i].width for row in scaled if i < len(row))
    for i in range(max(len(row) for row in scaled))
  ]
  total = (names + sum(widths) + gap * len(widths), margin + (side + gap) * len(scaled))
  image = Image.new("RGB", total, "white")
  draw = ImageDraw.Draw(image)
  for r, row in enumerate(scaled):
    y, x = margin + r * (side + gap), names
    if rows:
      draw.text((4, y + side / 2), rows[r], _INK, font, anchor="lm")
    for c, picture in enumerate(row):
      if columns and r == 0:
        draw.text((x + widths[c] / 2, margin - 5), columns[c], _INK, font, anchor="ms")
      image.paste(picture, (x, y))
      x += widths[c] + gap
  return np.asarray(image)


def _scaled(picture: np.ndarray, side: int) -> Image.Image:
  flat = picture[..., 0] if picture.shape[-1] == 1 else picture
  image = Image.fromarray(flat).convert("RGB")
  width = max(1, round(image.width * side / image.height))
  enlarge = side >= image.height
  kind = Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS
  return image.resize((width, side), kind)


def _finite(series: Series, log_y: bool) -> tuple[np.ndarray, np.ndarray]:
  x, y = np.asarray(series.x, float), np.asarray(series.y, float)
  keep = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log_y))
  return x[keep], np.log10(y[keep]) if log_y else y[keep]


def _ticks(values: np.ndarray, most: int = 6) -> list[float]:
  """Round numbers that cover the values."""
  low, high = float(values.min()), float(values.max())
  if high <= low:
    low, high = low - 0.5, high + 0.5
  raw = (high - low) / most
  power = 10.0 ** np.floor(np.log10(raw))
  step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
  first, last = np.floor(low / step), np.ceil(high / step)
  return [float(step * i) for i in np.arange(first, last + 1)]


def _number(value: float) -> str:
  if value == 0 or 1e-3 <= abs(value) < 1e5:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
  return f"{value:.0e}"


def _legend(draw, series: Sequence[Series], font, right: float, top: float) -> None:
  y = top + 8 * _SCALE
  for colour, one in zip(_cycle(series), series):
    if not one.label:
      continue
    length = draw.textlength(one.label, font)
    x = right - 10 * _SCALE - length
    draw.rectangle(
      [x - 26 * _SCALE, y - 8 * _SCALE, right - 6 * _SCALE, y + 8 * _SCALE],
      fill="white",
    )
    draw.line(
      [(x - 22 * _SCALE, y), (x - 6 * _SCALE, y)], fill=colour, width=3 * _SCALE
    )
    draw.text((x, y), one.label, _INK, font, anchor="lm")
    y += 16 * _SCALE


def _vertical(image: Image.Image, text: str, font, middle: int) -> None:
  length = int(ImageDraw.Draw(image).textlength(text, font))
  label = Image.new("RGB", (length + 4, 18 * _SCALE), "white")
  ImageDraw.Draw(label).text((0, 0), text, _INK, font)
  turned = label.rotate(90, expand=True)
  image.paste(turned, (2 * _SCALE, middle - turned.height // 2))


def _cycle(series: Sequence[Series]) -> list[str]:
  return [COLOURS[i % len(COLOURS)] for i in range(len(series))]


def _font(points: int):
  return ImageFont.load_default(points * _SCALE)
