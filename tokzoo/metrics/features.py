"""What a feature network is: features and class scores of pictures, under a name.

The name of the Fréchet distance goes with the network: it is "FID" for the Inception
features alone.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from tokzoo.errors import TokzooError


@struct.dataclass
class Features:
  """What a feature network says about pictures.

  features:      float32[B, D], of the last pooling
  logits:        float32[B, C], of its classes
  score_logits:  float32[B, C], those that an Inception Score takes
  """

  features: Float[Array, "B D"]
  logits: Float[Array, "B C"]
  score_logits: Float[Array, "B C"]


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
  """A network with its weights.

  name:      of the network and its features
  distance:  what the Fréchet distance of its features is called: "FID", "FD-..."
  protocol:  how pictures reach the network; belongs beside every number
  """

  name: str
  distance: str
  protocol: str
  module: nn.Module
  variables: Any

  def __call__(self, images: Float[Array, "B H W 3"]) -> Features:
    """Features of RGB pictures in [-1, 1] of any size.

    Pure, and compiled once per shape; inside jit it is a part of the program around it.

    Raises:
      TokzooError: the pictures are not [B, H, W, 3].
    """
    if images.ndim != 4 or images.shape[-1] != 3:
      raise TokzooError(
        f"{self.name} sees RGB pictures [B, H, W, 3]; these have shape "
        f"{list(images.shape)}: repeat a gray channel three times."
      )
    return self._apply(self.variables, images)

  @functools.cached_property
  def _apply(self) -> Callable[..., Any]:
    return jax.jit(self.module.apply)


def round_to_8_bits(images: Float[Array, "*N"]) -> Float[Array, "*N"]:
  """Pictures in [-1, 1] as the whole numbers 0 to 255 that a file would hold, float32."""
  return jnp.clip(jnp.round((images.astype(jnp.float32) + 1) * 127.5), 0, 255)
