"""Schedules of masked-token and autoregressive samplers, as named functions.

Mask schedules say which share of the tokens is masked at a ratio r of the way, in [0, 1]: of
the decoding, or of the noise in training. Those of MaskGIT (arXiv 2202.04200) are clipped to
[1e-6, 1]; TiTok's (arXiv 2406.07550) is not. Guidance schedules say how strongly a step is
guided.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from tokzoo.errors import TokzooError, unknown

Ratio = Float[Array, "..."]
Total = int | Float[Array, "..."]


def cosine(r: Ratio, total: Total = 0) -> Ratio:
  """cos(pi r / 2), MaskGIT's default."""
  return _clipped(jnp.cos(jnp.pi / 2 * r))


def uniform(r: Ratio, total: Total = 0) -> Ratio:
  """1 - r."""
  return _clipped(1 - r)


def log(r: Ratio, total: Total) -> Ratio:
  """-log2(r) / log2(total), of `total` masked tokens."""
  return _clipped(-jnp.log2(r) / jnp.log2(total))


def exp(r: Ratio, total: Total) -> Ratio:
  """1 - 2^(-log2(total) (1 - r)), of `total` masked tokens."""
  return _clipped(1 - jnp.exp2(-jnp.log2(total) * (1 - r)))


def power(p: float) -> Callable[..., Ratio]:
  """1 - r^p."""

  def schedule(r: Ratio, total: Total = 0) -> Ratio:
    return _clipped(1 - r**p)

  return schedule


def arccos(r: Ratio) -> Ratio:
  """arccos(r) 2 / pi: TiTok's, in training and in sampling."""
  return jnp.arccos(r) / (jnp.pi / 2)


def mask_schedule(name: str) -> Callable[[Ratio, Total], Ratio]:
  """MaskGIT's schedule of that name: cosine, uniform, log, exp, or pow with an exponent
  ("pow2", "pow2.5").

  Raises:
    TokzooError: no such schedule.
  """
  known = {"cosine": cosine, "uniform": uniform, "log": log, "exp": exp}
  if name in known:
    return known[name]
  if name.startswith("pow"):
    try:
      return power(float(name.removeprefix("pow")))
    except ValueError:
      raise TokzooError(
        f"the mask schedule {name!r} came: pow is followed by a number, as in pow2.5."
      ) from None
  raise unknown("mask schedule", name, [*known, "pow2"])


def power_cosine(ratio: Ratio, scale: float, exponent: float) -> Ratio:
  """Guidance that rises from 1 to `scale`: 1 + (scale - 1) (1 - cos(pi ratio^exponent)) / 2.

  Exponent 0 is `scale` throughout, as 0^0 = 1.
  """
  rise = (1 - jnp.cos(jnp.pi * ratio**exponent)) / 2
  return 1 + (scale - 1) * rise


def _clipped(share: Ratio) -> Ratio:
  return jnp.clip(share, 1e-6, 1.0)
