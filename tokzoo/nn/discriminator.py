"""A patch discriminator: strided convolutions to a map of logits (pix2pix, arXiv 1611.07004).

Group norm takes the place of batch norm, so that it needs no running statistics and no
collective. The published discriminators of single systems come with those systems.
"""

import flax.linen as nn
from jaxtyping import Array, Float


class Discriminator(nn.Module):
  """Images to one logit per overlapping patch; high means real.

  width:   features of the first layer, doubled by each further one up to eightfold
  layers:  strided layers after the first
  """

  width: int = 64
  layers: int = 3

  @nn.compact
  def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B h w 1"]:
    x = nn.leaky_relu(
      nn.Conv(self.width, (4, 4), strides=2, name="conv_in")(image), 0.2
    )
    for i in range(self.layers):
      width = self.width * min(2 ** (i + 1), 8)
      strides = 2 if i < self.layers - 1 else 1
      x = nn.Conv(width, (4, 4), strides=strides, use_bias=False, name=f"conv_{i}")(x)
      x = nn.GroupNorm(num_groups=min(32, width // 2), name=f"norm_{i}")(x)
      x = nn.leaky_relu(x, 0.2)
    return nn.Conv(1, (4, 4), name="conv_out")(x)
