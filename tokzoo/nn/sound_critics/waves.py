"""HiFi-GAN's discriminators (arXiv 2010.05646): the wave at prime periods, and at three rates.

The logits are the last feature map, as in the source. DAC's multi-period discriminator leaves that
map out of its feature loss (`Verdict.maps[:-1]`), and adds a whole period to a wave that is made of
whole ones; that of Vocos and WavTokenizer leaves the first map out and is told a condition.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from tokzoo.nn.sound_critics.layers import Condition, Norm, NormConv, Verdict, leaky

_SLOPE = 0.1


class PeriodCritic(nn.Module):
  """The wave folded to [B, T / period, period], convolved along time alone.

  period:       in samples
  widths:       channels of the strided layers; the last has stride 1
  always_pads:  where no sample is missing, by a whole period
  skips_first:  the first layer's output is no feature map
  conditions:   entries of the condition; 0: none
  """

  period: int
  widths: tuple[int, ...] = (32, 128, 512, 1024, 1024)
  always_pads: bool = False
  skips_first: bool = False
  conditions: int = 0

  @nn.compact
  def __call__(
    self, wave: Float[Array, "B T C"], condition: Int[Array, ""] | None = None
  ) -> Verdict:
    missing = -wave.shape[1] % self.period
    if self.always_pads and not missing:
      missing = self.period
    x = jnp.pad(wave, ((0, 0), (0, missing), (0, 0)), mode="reflect")
    x = rearrange(x, "b (t p) c -> b t p c", p=self.period)
    maps = []
    for i, width in enumerate(self.widths):
      stride = 3 if i < len(self.widths) - 1 else 1
      conv = NormConv(width, (5, 1), (stride, 1), padding=(2, 0), name=f"conv_{i}")
      x = leaky(conv(x), _SLOPE)
      if i or not self.skips_first:
        maps.append(x)
    logits = NormConv(1, (3, 1), padding=(1, 0), name="conv_post")(x)
    if self.conditions:
      logits = logits + Condition(self.conditions, name="condition")(x, condition)
    return Verdict(logits, (*maps, logits))


class MultiPeriod(nn.Module):
  """periods: in samples; the rest: of every one, see `PeriodCritic`."""

  periods: Sequence[int] = (2, 3, 5, 7, 11)
  widths: tuple[int, ...] = (32, 128, 512, 1024, 1024)
  always_pads: bool = False
  skips_first: bool = False
  conditions: int = 0

  @nn.compact
  def __call__(
    self, wave: Float[Array, "B T C"], condition: Int[Array, ""] | None = None
  ) -> list[Verdict]:
    how = self.widths, self.always_pads, self.skips_first, self.conditions
    return [
      PeriodCritic(p, *how, name=f"period_{p}")(wave, condition) for p in self.periods
    ]


_LAYERS = (
  (15, 1, 1),
  (41, 2, 4),
  (41, 2, 16),
  (41, 4, 16),
  (41, 4, 16),
  (41, 1, 16),
  (5, 1, 1),
)
"""Kernel, stride and groups of each layer."""


class ScaleCritic(nn.Module):
  """Strided, grouped convolutions over the wave.

  widths:  channels of the seven layers
  groups:  at most so many
  norm:    of the kernels
  """

  widths: tuple[int, ...] = (128, 128, 256, 512, 1024, 1024, 1024)
  groups: int = 16
  norm: Norm = "weight"

  @nn.compact
  def __call__(self, wave: Float[Array, "B T C"]) -> Verdict:
    x, maps = wave, []
    for i, (width, layer) in enumerate(zip(self.widths, _LAYERS, strict=True)):
      size, stride, groups = layer
      conv = NormConv(
        width,
        (size,),
        (stride,),
        padding=(size // 2,),
        groups=min(groups, self.groups),
        norm=self.norm,
        name=f"conv_{i}",
      )
      x = leaky(conv(x), _SLOPE)
      maps.append(x)
    logits = NormConv(1, (3,), padding=(1,), norm=self.norm, name="conv_post")(x)
    return Verdict(logits, (*maps, logits))


class MultiScale(nn.Module):
  """The wave, at half and at a quarter of its rate; the first with spectral norm.

  widths, groups:  of every scale
  """

  widths: tuple[int, ...] = (128, 128, 256, 512, 1024, 1024, 1024)
  groups: int = 16

  @nn.compact
  def __call__(self, wave: Float[Array, "B T C"]) -> list[Verdict]:
    found = []
    for i in range(3):
      norm = "spectral" if i == 0 else "weight"
      found.append(ScaleCritic(self.widths, self.groups, norm, name=f"scale_{i}")(wave))
      wave = _halved(wave)
    return found


def _halved(wave: Float[Array, "B T C"]) -> Array:
  """torch's AvgPool1d(4, 2, padding=2): the zeros of the padding count."""
  # Of numpy: a window's sum has a gradient only where the zero is known while tracing.
  zero = np.zeros((), wave.dtype)
  windows = (1, 4, 1), (1, 2, 1), ((0, 0), (2, 2), (0, 0))
  total = jax.lax.reduce_window(wave, zero, jax.lax.add, *windows)
  return total / jnp.asarray(4, wave.dtype)
