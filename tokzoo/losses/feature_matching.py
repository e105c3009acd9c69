"""Distances between a discriminator's feature maps of originals and of reconstructions.

`real` and `fake` are lists of sub-discriminators, each a list of maps of any shape. Originals
get no gradient.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Maps = Sequence[Sequence[Array]]


def relative(real: Maps, fake: Maps) -> Float[Array, ""]:
  """EnCodec's: mean over all maps of mean |real - fake| / mean |real|."""
  each = [
    jnp.abs(r - f).mean() / jnp.maximum(jnp.abs(r).mean(), 1e-12)
    for r, f in _pairs(real, fake)
  ]
  return sum(each[1:], each[0]) / len(each)


def absolute(real: Maps, fake: Maps, factor: float = 1.0) -> Float[Array, ""]:
  """DAC's (factor 1), and HiFi-GAN's and SpeechTokenizer's (factor 2): sum of mean |real - fake|."""
  each = [jnp.abs(r - f).mean() for r, f in _pairs(real, fake)]
  return factor * sum(each[1:], each[0])


def _pairs(real: Maps, fake: Maps) -> list[tuple[Array, Array]]:
  return [
    (jax.lax.stop_gradient(r).astype(jnp.float32), f.astype(jnp.float32))
    for reals, fakes in zip(real, fake, strict=True)
    for r, f in zip(reals, fakes, strict=True)
  ]
