"""Patch discriminators: strided convolutions to a map of logits (pix2pix, arXiv 1611.07004).

  Discriminator  with group norm: no running statistics, no collective
  PatchGAN       with batch norm, as in taming-transformers, LlamaGen and Open-MAGVIT2

A discriminator is called with images alone. One that keeps running statistics normalises by
the batch while its collection `batch_stats` is mutable, and by what it keeps otherwise.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tokzoo.errors import TokzooError
from tokzoo.weights import CONV2D, Rule, Table, conv2d_rules, norm_rules


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


class BatchNorm(nn.Module):
  """Batch norm as torch keeps it: momentum 0.1, epsilon 1e-5, unbiased running variance.

  Flax's own keeps the biased variance. Moments are of the whole batch of all devices, where
  the published code took those of each GPU.
  """

  @nn.compact
  def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
    shape = (x.shape[-1],)
    scale = self.param("scale", _scale_init, shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
    kept_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
    kept_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
    wide = x.astype(jnp.float32)
    if self.is_mutable_collection("batch_stats"):
      mean = wide.mean((0, 1, 2))
      var = jnp.square(wide - mean[None, None, None]).mean((0, 1, 2))
      if not self.is_initializing():
        count = x.size // x.shape[-1]
        unbiased = var * (count / max(count - 1, 1))
        kept_mean.value = 0.9 * kept_mean.value + 0.1 * jax.lax.stop_gradient(mean)
        kept_var.value = 0.9 * kept_var.value + 0.1 * jax.lax.stop_gradient(unbiased)
    else:
      mean, var = kept_mean.value, kept_var.value
    factor = jax.lax.rsqrt(var + 1e-5) * scale.astype(jnp.float32)
    centred = wide - mean[None, None, None]
    shifted = (
      centred * factor[None, None, None] + bias.astype(jnp.float32)[None, None, None]
    )
    return shifted.astype(x.dtype)


class PatchGAN(nn.Module):
  """Images to one logit per overlapping patch; high means real. Batch norm.

  width:   features of the first layer, doubled by each further one up to eightfold
  layers:  layers with a norm; all but the last of them halve the grid
  """

  width: int = 64
  layers: int = 3

  @nn.compact
  def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B h w 1"]:
    least = 3 * 2**self.layers
    if min(image.shape[1:3]) < least:
      raise TokzooError(
        f"a PatchGAN of {self.layers} layers sees pictures of at least {least} x {least} "
        f"pixels, these have {image.shape[1]} x {image.shape[2]}: choose fewer layers."
      )

    def conv(width: int, strides: int, use_bias: bool, name: str) -> nn.Conv:
      return nn.Conv(
        width,
        (4, 4),
        strides,
        padding=((1, 1), (1, 1)),
        use_bias=use_bias,
        kernel_init=nn.initializers.normal(0.02),
        name=name,
      )

    x = nn.leaky_relu(conv(self.width, 2, True, "conv_in")(image), 0.2)
    for i in range(self.layers):
      strides = 2 if i < self.layers - 1 else 1
      x = conv(self.width * min(2 ** (i + 1), 8), strides, False, f"conv_{i}")(x)
      x = nn.leaky_relu(BatchNorm(name=f"norm_{i}")(x), 0.2)
    return conv(1, 1, True, "conv_out")(x)


def patchgan_weights(layers: int) -> Table:
  """The table of a `PatchGAN`, whose layers the source numbers in one row (`main.{n}`)."""
  rules = list(conv2d_rules("main.0", "params/conv_in"))
  for i in range(layers):
    conv, norm = f"main.{3 * i + 2}", f"main.{3 * i + 3}"
    rules += [
      Rule(f"{conv}.weight", f"params/conv_{i}/kernel", CONV2D),
      *norm_rules(norm, f"params/norm_{i}"),
      Rule(f"{norm}.running_mean", f"batch_stats/norm_{i}/mean"),
      Rule(f"{norm}.running_var", f"batch_stats/norm_{i}/var"),
    ]
  rules += conv2d_rules(f"main.{3 * layers + 2}", "params/conv_out")
  return Table(tuple(rules), ignore=(r".*\.num_batches_tracked",))


def _scale_init(
  key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> Array:
  """Normal about 1, as in the source."""
  return 1 + 0.02 * jax.random.normal(key, shape, dtype)
