"""Weight normalisation, folded into the weights that it gives.

Salimans and Kingma (arXiv 1602.07868): w = g v / |v|, the norm over all axes but the first
(or but the one that g keeps). torch writes it in two forms,

  weight_g, weight_v                                       (torch.nn.utils.weight_norm)
  parametrizations.weight.original0, .original1            (torch.nn.utils.parametrizations)

and both are read wherever they stand. On the way back w is v and |w| is g.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

import numpy as np

_FORMS = {
  "g_v": ("weight_g", "weight_v"),
  "parametrizations": (
    "parametrizations.weight.original0",
    "parametrizations.weight.original1",
  ),
}


@dataclasses.dataclass(frozen=True)
class WeightNorm:
  """A step of a `Table`: folds weight norm on the way in, unfolds it on the way out.

  weights:  regular expression over whole keys "....weight" that published files hold in two
            parts; None: the published file is read as it comes, and written folded
  form:     how they are written
  unless:   nothing is unfolded if any key matches this: a model of the same table that has
            other norms
  """

  weights: str | None = None
  form: Literal["g_v", "parametrizations"] = "g_v"
  unless: str | None = None

  def to_ours(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state with each g and v replaced by their weight; a lone one stays as it is."""
    folded = dict(state)
    for gain, direction in _FORMS.values():
      for key in state:
        stem = key.removesuffix(direction)
        if stem == key or stem + gain not in state:
          continue
        g, v = folded.pop(stem + gain), folded.pop(key)
        folded[stem + "weight"] = _fold(g, v)
    return folded

  def to_authors(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse, for the keys that `weights` names."""
    told = dict(state)
    skip = self.unless and any(re.fullmatch(self.unless, key) for key in state)
    if self.weights is None or skip:
      return told
    gain, direction = _FORMS[self.form]
    for key in state:
      if re.fullmatch(self.weights, key):
        w, stem = told.pop(key), key.removesuffix("weight")
        told[stem + gain] = _norm(w, tuple(range(1, w.ndim))).astype(w.dtype)
        told[stem + direction] = w
    return told


def _fold(g: np.ndarray, v: np.ndarray) -> np.ndarray:
  # The axes that g does not keep; where it keeps none, an axis of one entry is no matter.
  axes = tuple(i for i, size in enumerate(g.shape) if size == 1)
  norm = _norm(v, axes)
  scale = np.where(norm > 0, g / np.where(norm > 0, norm, 1), 0)
  return (v * scale).astype(v.dtype)


def _norm(v: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
  return np.sqrt(np.sum(np.square(v.astype(np.float64)), axis=axes, keepdims=True))
