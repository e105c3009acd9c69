"""Magnitudes at several resolutions (UnivNet, arXiv 2106.07889), as Vocos and WavTokenizer have it.

Each resolution sees |STFT|, centred and without a window, as a picture [B, bins, frames, C]. The
logits are the last feature map, the condition's share included.
"""

from collections.abc import Sequence

import flax.linen as nn
from einops import rearrange
from jaxtyping import Array, Float, Int

from tokzoo.nn.sound_critics.layers import Condition, NormConv, Verdict, leaky
from tokzoo.nn.spectra import magnitude, stft

_SLOPE = 0.1

_LAYERS = (
  ((7, 5), (2, 2)),
  ((5, 3), (2, 1)),
  ((5, 3), (2, 2)),
  ((3, 3), (2, 1)),
  ((3, 3), (2, 2)),
)
"""Kernel and strides of each layer, in bins and frames."""


class ResolutionCritic(nn.Module):
  """One resolution.

  n_fft:       samples of the transform; the hop is a quarter
  width:       channels of every layer
  conditions:  entries of the condition; 0: none
  """

  n_fft: int
  width: int = 64
  conditions: int = 0

  @nn.compact
  def __call__(
    self, wave: Float[Array, "B T C"], condition: Int[Array, ""] | None = None
  ) -> Verdict:
    batch = len(wave)
    x = rearrange(wave, "b t c -> (b c) t")
    spectrum = stft(x, self.n_fft, self.n_fft // 4, center=True, flat=True)
    x = rearrange(magnitude(spectrum), "(b c) t f -> b f t c", b=batch)
    x, maps = x.astype(wave.dtype), []
    for i, (size, strides) in enumerate(_LAYERS):
      padding = size[0] // 2, size[1] // 2
      conv = NormConv(self.width, size, strides, padding=padding, name=f"conv_{i}")
      x = leaky(conv(x), _SLOPE)
      maps.append(x)
    logits = NormConv(1, (3, 3), padding=(1, 1), name="conv_post")(x)
    if self.conditions:
      logits = logits + Condition(self.conditions, name="condition")(x, condition)
    return Verdict(logits, (*maps, logits))


class MultiResolution(nn.Module):
  """Several resolutions. Those of Vocos by default.

  n_ffts:  samples of each
  width, conditions:  of every one
  """

  n_ffts: Sequence[int] = (1024, 2048, 512)
  width: int = 64
  conditions: int = 0

  @nn.compact
  def __call__(
    self, wave: Float[Array, "B T C"], condition: Int[Array, ""] | None = None
  ) -> list[Verdict]:
    how = self.width, self.conditions
    return [
      ResolutionCritic(n, *how, name=f"resolution_{n}")(wave, condition)
      for n in self.n_ffts
    ]
