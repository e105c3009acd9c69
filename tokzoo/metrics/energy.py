"""Distances of samples to data by the distances of their points (Szekely and Rizzo 2013).

NumPy, on the host: for evaluations of generators of continuous tokens.
"""

import numpy as np
from jaxtyping import Float

_ROWS = 1_000
"""Of a block of a matrix of distances."""


def energy_distance(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]) -> float:
  """2 E|X - Y| - E|X - X'| - E|Y - Y'|, 0 where both are alike; never below 0, and too large by
  about (E|X - X'| + E|Y - Y'|) / N, since points are compared with themselves as well."""
  return 2 * _mean(x, y) - _mean(x, x) - _mean(y, y)


def unbiased_distance(
  made: Float[np.ndarray, "N D"], data: Float[np.ndarray, "M D"], is_matched: bool
) -> float:
  """The same without bias: no point is compared with itself, and the result may be below 0.

  Args:
    made: points.
    data: those that they should be like.
    is_matched: row i of both stands at the same place; they are then not compared with each
      other, so that the distance of points to themselves is 0.
  """
  between = _mean(made, data, is_matched)
  return 2 * between - _mean(made, made, True) - _mean(data, data, True)


def energy_score(
  made: Float[np.ndarray, "S N D"], data: Float[np.ndarray, "N D"]
) -> float:
  """Mean of |X - y| - |X - X'| / 2 over N places with S draws each (Gneiting and Raftery 2007).

  Lowest where the draws X are those of y's distribution given what comes before: unlike a
  distance of all points to all others it sees whether a point is right where it stands.
  """
  near = np.linalg.norm(made - data[None], axis=-1).mean()
  apart = np.linalg.norm(made[:, None] - made[None], axis=-1).mean(-1).sum()
  return float(near - apart / (len(made) * (len(made) - 1)) / 2)


def _mean(a: np.ndarray, b: np.ndarray, skips_own: bool = False) -> float:
  """Mean distance of the rows of both, those at the same place left out if `skips_own`."""
  b = b.astype(np.float64)
  total, squares = 0.0, np.square(b).sum(1)[None]
  for start in range(0, len(a), _ROWS):
    part = a[start : start + _ROWS].astype(np.float64)
    square = np.square(part).sum(1)[:, None] + squares - 2 * part @ b.T
    near = np.sqrt(np.maximum(square, 0))
    if skips_own:
      near[np.arange(len(part)), start + np.arange(len(part))] = 0
    total += near.sum()
  return total / (len(a) * (len(b) - 1) if skips_own else len(a) * len(b))
