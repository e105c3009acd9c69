"""Convolutions over time, in the forms that are fast on every machine.

Sequences are [B, T, C], kernels [k, in / groups, out] for a convolution and [k, out, in] for
a transposed one, so that torch's weights ([out, in, k], [in, out, k]) arrive at both by
turning their axes round (`CONV1D`).

- A transposed convolution with stride s is a convolution with s times the channels, whose
  channels are then laid out in time: no zeros between the samples are multiplied.
- A depthwise one is a sum of k shifted products: XLA's grouped convolution on CPUs is a
  scalar loop.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from tokzoo.weights import Rule, Transform

PadMode = Literal["zero", "reflect", "replicate"]

CONV1D = Transform(
  "[out, in, k] -> [k, in, out]",
  lambda x: x.transpose(2, 1, 0),
  lambda x: x.transpose(2, 1, 0),
)
POINTWISE1D = Transform(
  "[out, in, 1] -> [in, out]",
  lambda x: x.reshape(x.shape[:2]).T,
  lambda x: x.T[:, :, None],
)

torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform in +-1 / sqrt(fan in): torch's for linear layers and convolutions."""


def conv1d_rules(key: str, path: str) -> tuple[Rule, Rule]:
  """A torch Conv1d or ConvTranspose1d with bias and a module of this file."""
  return Rule(f"{key}.weight", f"{path}/kernel", CONV1D), Rule(
    f"{key}.bias", f"{path}/bias"
  )


def conv1d(
  x: Float[Array, "B T C"],
  kernel: Float[Array, "k c D"],
  stride: int = 1,
  dilation: int = 1,
) -> Float[Array, "B t D"]:
  """A convolution without padding: t = (T - (k - 1) dilation - 1) // stride + 1.

  Args:
    x: [B, T, C].
    kernel: [k, C, D], or [k, 1, C] for a depthwise one (D = C, stride 1).
    stride, dilation: in samples.
  """
  taps, inputs, outputs = kernel.shape
  if inputs == 1 and outputs == x.shape[-1] > 1:
    length = x.shape[1] - (taps - 1) * dilation
    shifted = [
      x[:, j * dilation : j * dilation + length] * kernel[j][None] for j in range(taps)
    ]
    return sum(shifted[1:], shifted[0])[:, ::stride]
  if taps == 1 and stride == 1:
    return jnp.matmul(x, kernel[0])
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride,),
    padding="VALID",
    rhs_dilation=(dilation,),
    dimension_numbers=("NWC", "WIO", "NWC"),
  )


def conv_transpose1d(
  x: Float[Array, "B T C"], kernel: Float[Array, "k D C"], stride: int
) -> Float[Array, "B t D"]:
  """A transposed convolution in full: t = (T - 1) stride + k.

  Args:
    x: [B, T, C].
    kernel: [k, D, C], or [k, 1, C] for a depthwise one (D = C).
    stride: in samples.
  """
  padded = jnp.pad(x, ((0, 0), (_blocks(kernel, stride) - 1,) * 2, (0, 0)))
  full = (x.shape[1] - 1) * stride + kernel.shape[0]
  return conv_transpose1d_valid(padded, kernel, stride)[:, :full]


def conv_transpose1d_valid(
  x: Float[Array, "B T C"], kernel: Float[Array, "k D C"], stride: int
) -> Float[Array, "B t D"]:
  """The samples that the last T - m + 1 inputs begin, m = ceil(k / stride), `stride` each.

  With m - 1 inputs of the past in front this is the causal transposed convolution.
  """
  count = _blocks(kernel, stride)
  taps, outputs, inputs = kernel.shape
  kernel = jnp.pad(kernel, ((0, count * stride - taps), (0, 0), (0, 0)))
  # Blocks of `stride` taps, the one that meets the newest input last.
  blocks = kernel.reshape(count, stride, outputs, inputs)[::-1]
  if outputs == 1 and x.shape[-1] > 1:
    length = x.shape[1] - count + 1
    parts = [
      x[:, j : j + length, None] * blocks[j, None, None, :, 0] for j in range(count)
    ]
    y = sum(parts[1:], parts[0])
    return y.reshape(len(x), length * stride, inputs)
  flat = blocks.transpose(0, 3, 1, 2).reshape(count, inputs, stride * outputs)
  y = conv1d(x, flat)
  return y.reshape(len(x), y.shape[1] * stride, outputs)


def _blocks(kernel: Float[Array, "k D C"], stride: int) -> int:
  return math.ceil(kernel.shape[0] / stride)


def pad1d(
  x: Float[Array, "B T C"], left: int, right: int, mode: PadMode
) -> Float[Array, "B t C"]:
  """Pads in time.

  Reflection cannot reach beyond a sequence that is too short for it: as in EnCodec, zeros
  are then appended first, and what they add to the end is cut off again.
  """
  widths = ((0, 0), (left, right), (0, 0))
  match mode:
    case "zero":
      return jnp.pad(x, widths)
    case "replicate":
      return jnp.pad(x, widths, mode="edge")
  short = max(0, max(left, right) - x.shape[1] + 1)
  x = jnp.pad(x, ((0, 0), (0, short), (0, 0)))
  x = jnp.pad(x, widths, mode="reflect")
  return x[:, : x.shape[1] - short]


class Conv1d(nn.Module):
  """A convolution with zeros on both sides, as torch's Conv1d.

  features:   D
  kernel:     k
  stride, dilation: in samples
  padding:    zeros on each side
  groups:     1, or the number of channels: depthwise
  """

  features: int
  kernel: int
  stride: int = 1
  dilation: int = 1
  padding: int = 0
  groups: int = 1
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = torch_init

  @nn.compact
  def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B t D"]:
    shape = (self.kernel, x.shape[-1] // self.groups, self.features)
    kernel = self.param("kernel", self.kernel_init, shape)
    bias = None
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=None)
    x = jnp.pad(x, ((0, 0), (self.padding, self.padding), (0, 0)))
    y = conv1d(x, kernel, self.stride, self.dilation)
    return y if bias is None else y + bias[None, None]


class ConvTranspose1d(nn.Module):
  """A transposed convolution that is cut on both sides, as torch's ConvTranspose1d.

  features:        D
  kernel, stride:  k and s
  padding:         samples cut from each side
  output_padding:  of these left standing at the end
  """

  features: int
  kernel: int
  stride: int
  padding: int = 0
  output_padding: int = 0
  kernel_init: nn.initializers.Initializer = torch_init

  @nn.compact
  def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B t D"]:
    shape = (self.kernel, self.features, x.shape[-1])
    kernel = self.param("kernel", self.kernel_init, shape)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=None)
    y = conv_transpose1d(x, kernel, self.stride)
    end = y.shape[1] - self.padding + self.output_padding
    y = jnp.pad(y, ((0, 0), (0, max(0, end - y.shape[1])), (0, 0)))
    return y[:, self.padding : end] + bias[None, None]
