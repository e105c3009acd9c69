"""DAC's multi-band multi-resolution discriminator (arXiv 2306.06546).

A complex STFT with frames in step with the wave (audiotools' `match_stride`), cut into bands with
convolutions of their own, which a last one joins. Maps are those of every band, layer by layer, and
the logits, which DAC leaves out of its feature loss.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from tokzoo.nn.sound_critics.layers import NormConv, Verdict, leaky
from tokzoo.nn.spectra import reflect, stft

BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
"""Of DAC, as parts of the bins."""

_SLOPE = 0.1


class BandCritic(nn.Module):
  """One resolution.

  n_fft:  samples of window and transform; the hop is a quarter
  width:  channels of every layer
  bands:  parts of the bins
  """

  n_fft: int
  width: int = 32
  bands: Sequence[tuple[float, float]] = BANDS

  @nn.compact
  def __call__(self, wave: Float[Array, "B T C"]) -> Verdict:
    batch, length, channels = wave.shape
    hop = self.n_fft // 4
    side = (self.n_fft - hop) // 2
    x = rearrange(wave, "b t c -> (b c) t")
    x = reflect(x, side, side + -length % hop)
    spectrum = stft(x, self.n_fft, hop)
    parts = jnp.stack([spectrum.real, spectrum.imag])
    x = rearrange(parts, "r (b c) t f -> b t f (r c)", b=batch, c=channels)
    x = x.astype(wave.dtype)
    bins = self.n_fft // 2 + 1
    ends, maps = [], []
    for b, (low, high) in enumerate(self.bands):
      band = x[:, :, int(low * bins) : int(high * bins)]
      for i in range(5):
        size, stride = ((3, 9), (1, 2)) if 0 < i < 4 else ((3, 9), (1, 1))
        if i == 4:
          size = (3, 3)
        conv = NormConv(
          self.width, size, stride, padding=(1, size[1] // 2), name=f"band_{b}_{i}"
        )
        band = leaky(conv(band), _SLOPE)
        maps.append(band)
      ends.append(band)
    joined: Array = jnp.concatenate(ends, 2)
    logits = NormConv(1, (3, 3), padding=(1, 1), name="conv_post")(joined)
    return Verdict(logits, (*maps, logits))


class MultiBand(nn.Module):
  """Several resolutions. DAC's by default.

  n_ffts:  samples of each
  width, bands:  of every one
  """

  n_ffts: Sequence[int] = (2048, 1024, 512)
  width: int = 32
  bands: Sequence[tuple[float, float]] = BANDS

  @nn.compact
  def __call__(self, wave: Float[Array, "B T C"]) -> list[Verdict]:
    return [
      BandCritic(n, self.width, self.bands, name=f"resolution_{n}")(wave)
      for n in self.n_ffts
    ]
