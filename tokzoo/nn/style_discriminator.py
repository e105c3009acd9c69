"""StyleGAN2's discriminator as MaskGIT's tokenizer is trained against: one logit a picture.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958), in the
form of `maskgit/nets/discriminator.py` of google-research/maskgit @ 1db2359: residual blocks that
halve the picture by a blur (Zhang, arXiv 1904.11486) down to 4 x 4 places, no norms, no equalised
rates, no deviation of the batch.

  image   float[B, S, S, C] in [-1, 1], S a power of two, 8 at least; the network works in [0, 1]
          as the tokenizer does and converts at its door
  logits  float[B, 1], high means real
"""

import math

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from tokzoo.errors import TokzooError
from tokzoo.nn.blur_discriminator import blur_and_halve

_LAST = 4


class StyleDiscriminator(nn.Module):
  """Images of one size to one logit each.

  budget:  features times side of every level, 64 features at 256 pixels as published
  most:    features of the coarse levels, where the budget has more
  """

  budget: int = 2**14
  most: int = 512

  @nn.compact
  def __call__(self, image: Float[Array, "B S S C"]) -> Float[Array, "B 1"]:
    side = image.shape[1]
    if image.shape[2] != side or side < 2 * _LAST or side & (side - 1):
      raise TokzooError(
        f"StyleGAN's discriminator sees squares whose side is a power of two, 8 at least; these "
        f"pictures are of {side} x {image.shape[2]} pixels: crop them, or choose another one."
      )
    x = _leaky(_conv(self._width(side), 3, "conv_in")((image + 1) / 2))
    while side > _LAST:
      side //= 2
      x = Halving(self._width(side), name=f"to_{side}")(x)
    x = _leaky(_conv(self.most, 3, "conv_out")(x)).reshape(len(x), -1)
    x = _leaky(_dense(self.most, "dense")(x))
    return _dense(1, "logits")(x)

  def _width(self, side: int) -> int:
    return min(self.most, self.budget // side)


class Halving(nn.Module):
  """Residual block to half the side.

  features:  of the output
  """

  features: int

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    h = blur_and_halve(_leaky(_conv(x.shape[-1], 3, "conv_0")(x)))
    h = _leaky(_conv(self.features, 3, "conv_1")(h))
    kept = _conv(self.features, 1, "shortcut", use_bias=False)(blur_and_halve(x))
    return (kept + h) / math.sqrt(2)


_INIT = nn.initializers.xavier_uniform()


def _conv(features: int, side: int, name: str, use_bias: bool = True) -> nn.Conv:
  return nn.Conv(
    features, (side, side), use_bias=use_bias, kernel_init=_INIT, name=name
  )


def _dense(features: int, name: str) -> nn.Dense:
  return nn.Dense(features, kernel_init=_INIT, name=name)


def _leaky(x: Array) -> Array:
  return jax.nn.leaky_relu(x, 0.2)
