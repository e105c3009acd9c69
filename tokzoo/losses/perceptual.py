"""Perceptual distance of pictures: how far apart a network's activations are.

The form is that of LPIPS (Zhang et al. 2018, arXiv 1801.03924) without its learnt channel
weights: activations of each layer are scaled to unit norm over channels, squared differences
are summed over channels and averaged over places, and layers are averaged. "LPIPS" is this
distance with the published networks and weights only; with another network the number bears
that network's name.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from tokzoo.losses.reconstruction import Reduction, reduce

Maps = Callable[[Float[Array, "B H W C"]], Sequence[Float[Array, "B h w D"]]]
"""Pictures in [-1, 1] to the activations of some layers; pure and differentiable."""

_EPS = 1e-10


@dataclasses.dataclass(frozen=True)
class PerceptualLoss:
  """The distance under one network.

  network:  its name, for logs and tables, e.g. "efficientnet-lite0"
  maps:     its activations; `tokzoo.metrics.efficientnet.lite0_maps` needs no download
  """

  network: str
  maps: Maps

  @property
  def name(self) -> str:
    """What the number is called: "perceptual-efficientnet-lite0"."""
    return f"perceptual-{self.network}"

  def __call__(
    self,
    images: Float[Array, "B H W C"],
    targets: Float[Array, "B H W C"],
    reduction: Reduction = "mean",
  ) -> Array:
    """The distance of pictures in [-1, 1], 0 to 4 each; `reduction` "none" equals "rows"."""
    distances = [
      jnp.mean(jnp.sum((_unit(x) - _unit(y)) ** 2, axis=-1), axis=(1, 2))
      for x, y in zip(self.maps(images), self.maps(targets), strict=True)
    ]
    return reduce(jnp.mean(jnp.stack(distances), axis=0), reduction)


def _unit(x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
  x = x.astype(jnp.float32)
  # Inside the root, so that the gradient is finite where a whole pixel is 0.
  return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _EPS)
