"""The report: one HTML page that carries its pictures."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; }
td, th { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; display: block; margin: .6rem 0; }
p.small { color: #555; font-size: .9rem; }
.pass { color: #2f7d46; } .fail { color: #b03a2e; }
"""


class Page:
  """A page that is written from top to bottom."""

  def __init__(self, title: str):
    self._title = title
    self._parts = [f"<h1>{html.escape(title)}</h1>"]

  def heading(self, text: str) -> None:
    self._parts.append(f"<h2>{html.escape(text)}</h2>")

  def text(self, text: str, small: bool = False) -> None:
    kind = ' class="small"' if small else ""
    self._parts.append(f"<p{kind}>{html.escape(text)}</p>")

  def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(_cell(v) for v in row)}</tr>" for row in rows)
    self._parts.append(f"<table><tr>{head}</tr>{body}</table>")

  def picture(self, image: np.ndarray, alt: str, width: int | None = None) -> None:
    """A picture inside the page: uint8[H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f' width="{width}"' if width else ""
    self._parts.append(
      f'<img alt="{html.escape(alt)}"{size} src="data:image/png;base64,{data}">'
    )

  def to_html(self) -> bytes:
    body = "\n".join(self._parts)
    page = (
      "<!doctype html>\n"
      f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(self._title)}</title>'
      f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
    return page.encode()


def _cell(value: Any) -> str:
  if isinstance(value, bool):
    text, kind = ("yes", "pass") if value else ("no", "fail")
    return f'<td class="{kind}">{text}</td>'
  if isinstance(value, int | float):
    return f'<td class="number">{value:.4g}</td>'
  return f"<td>{html.escape('' if value is None else str(value))}</td>"
