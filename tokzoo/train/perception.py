"""The perceptual term of a reconstruction loss: which network, and where its weights are.

  efficientnet-lite0  packaged (extra `features`); activations of unit norm, as LPIPS without
                      its learnt weights (`losses/perceptual.py`)
  lpips-vgg16         LPIPS (`losses/lpips.py`); files of the user
  convnext-s-logits   mean squared difference of ImageNet logits (`losses/convnext.py`); a
                      file of the user

The weights are a collection of their own, `perceptual`: given, not initialised, so that a
recipe can be planned without them. No optimizer and no average ever sees them, and a
checkpoint holds them once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tokzoo.errors import TokzooError
from tokzoo.losses import PerceptualLoss, convnext, lpips
from tokzoo.metrics import efficientnet
from tokzoo.weights import Table, read_state

Network = Literal["efficientnet-lite0", "lpips-vgg16", "convnext-s-logits"]

_NAMES: dict[Network, str] = {
  "efficientnet-lite0": "perceptual-efficientnet-lite0",
  "lpips-vgg16": "lpips-vgg16",
  "convnext-s-logits": "convnext-s-logits",
}
_NETWORKS: dict[Network, tuple[Callable[[], nn.Module], Table]] = {
  "efficientnet-lite0": (efficientnet.EfficientNetLite0, efficientnet.WEIGHTS),
  "lpips-vgg16": (lpips.LPIPS, lpips.WEIGHTS),
  "convnext-s-logits": (convnext.ConvNeXt, convnext.WEIGHTS),
}
_SOURCES: dict[Network, str] = {
  "efficientnet-lite0": "the packaged weights",
  "lpips-vgg16": "torchvision's vgg16 and the lpips package's vgg.pth",
  "convnext-s-logits": "torchvision's convnext_small",
}


@dataclasses.dataclass(frozen=True)
class Perceptual:
  """A frozen network that compares a reconstruction with its original."""

  network: Network = "efficientnet-lite0"
  """Which network, and what of it is compared."""
  weight: float = 1.0
  """Of the distance in the loss."""
  files: tuple[str, ...] = ()
  """Weights in torchvision's layout, in one file or in several (*.pth, *.safetensors);
  efficientnet-lite0 has its own."""

  @property
  def name(self) -> str:
    """What the number is called in logs."""
    return _NAMES[self.network]

  def shapes(self) -> Any:
    """Shapes and dtypes of the network's variables."""
    module, _ = _NETWORKS[self.network]
    image = jnp.zeros((1, 32, 32, 3))
    images = (image, image) if self.network == "lpips-vgg16" else (image,)
    return jax.eval_shape(module().init, jax.random.key(0), *images)

  def load(self) -> Any:
    """The network's variables, from the files.

    Raises:
      TokzooError: no files are named, they cannot be read, or they are of another network.
    """
    if self.network == "efficientnet-lite0":
      return efficientnet.load_efficientnet_lite0().variables
    if not self.files:
      raise TokzooError(
        f"the perceptual network {self.network} has no weights here: name the files of "
        f"{_SOURCES[self.network]} (perceptual.files), or take efficientnet-lite0, which is "
        "packaged."
      )
    state = {}
    for file in self.files:
      state |= read_state(file)
    return _NETWORKS[self.network][1].to_ours(state, self.shapes())

  def __call__(
    self, variables: Any, x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]
  ) -> Float[Array, ""]:
    """The mean distance of pictures in [-1, 1], grey or coloured.

    Args:
      variables: of the network, as `load` gives them.
      x: reconstructions.
      y: originals.
    """
    x, y = _coloured(x.astype(jnp.float32)), _coloured(y.astype(jnp.float32))
    module, _ = _NETWORKS[self.network]
    apply: Any = functools.partial(module().apply, variables)
    match self.network:
      case "efficientnet-lite0":
        maps = functools.partial(apply, method="maps")
        return PerceptualLoss(self.network, maps)(x, y)
      case "lpips-vgg16":
        return jnp.mean(apply(x, y))
      case "convnext-s-logits":
        return jnp.mean(jnp.square(apply(x) - apply(y)))


def placeholders(terms: tuple[Perceptual, ...]) -> dict[str, Any]:
  """The collection `perceptual` before its weights are given: NaN, which no loss survives."""
  return {
    term.name: jax.tree.map(
      lambda s: jnp.full(s.shape, jnp.nan, s.dtype), term.shapes()
    )
    for term in terms
  }


def _coloured(x: Float[Array, "B H W C"]) -> Float[Array, "B H W 3"]:
  return jnp.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
