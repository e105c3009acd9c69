"""MS-STFT discriminator (EnCodec, arXiv 2210.13438), as in EnCodec, SpeechTokenizer and DM-Codec.

Each scale sees the real and imaginary parts of a normalised STFT, without centring, as channels
of a picture [B, frames, bins, 2 C]. The first convolution has no weight norm, as in the source;
the logits are no feature map.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from tokzoo.nn.sound_critics.layers import NormConv, Verdict, leaky
from tokzoo.nn.spectra import stft
from tokzoo.weights import CONV2D, Rule, Table, Transform

GAIN = Transform(
  "[out, 1, 1, 1] -> [out]", lambda g: g[:, 0, 0, 0], lambda g: g[:, None, None, None]
)


class STFTCritic(nn.Module):
  """One scale.

  n_fft, hop, win:  samples of transform, hop and window
  width:            channels of every layer
  dilations:        in frames, of the layers that halve the bins
  """

  n_fft: int
  hop: int
  win: int
  width: int = 32
  dilations: tuple[int, ...] = (1, 2, 4)

  @nn.compact
  def __call__(self, wave: Float[Array, "B T C"]) -> Verdict:
    batch, _, channels = wave.shape
    x = rearrange(wave, "b t c -> (b c) t")
    spectrum = stft(x, self.n_fft, self.hop, self.win, normalized=True)
    parts = jnp.stack([spectrum.real, spectrum.imag])
    # All real parts, then all imaginary ones.
    x = rearrange(parts, "r (b c) t f -> b t f (r c)", b=batch, c=channels)
    x = x.astype(wave.dtype)
    maps = []

    def step(x: Array, conv: NormConv) -> Array:
      maps.append(leaky(conv(x), 0.2))
      return maps[-1]

    x = step(
      x, NormConv(self.width, (3, 9), padding=(1, 4), norm="none", name="conv_0")
    )
    for i, d in enumerate(self.dilations, 1):
      conv = NormConv(
        self.width,
        (3, 9),
        strides=(1, 2),
        dilation=(d, 1),
        padding=(d, 4),
        name=f"conv_{i}",
      )
      x = step(x, conv)
    last = len(self.dilations) + 1
    x = step(x, NormConv(self.width, (3, 3), padding=(1, 1), name=f"conv_{last}"))
    logits = NormConv(1, (3, 3), padding=(1, 1), name="conv_post")(x)
    return Verdict(logits, tuple(maps))


class MSSTFT(nn.Module):
  """Several scales. The three of EnCodec's repository by default; its paper, SpeechTokenizer and
  DM-Codec add 256 and 128.

  n_ffts:  samples of each transform, as of its window
  hops:    between windows; None: a quarter of each
  width, dilations:  of every scale
  apart:   each channel of a sound is judged by itself (EnCodec's paper), not as one picture
  """

  n_ffts: Sequence[int] = (1024, 2048, 512)
  hops: Sequence[int] | None = None
  width: int = 32
  dilations: tuple[int, ...] = (1, 2, 4)
  apart: bool = False

  @nn.compact
  def __call__(self, wave: Float[Array, "B T C"]) -> list[Verdict]:
    if self.apart:
      wave = rearrange(wave, "b t c -> (b c) t 1")
    hops = self.hops or [n // 4 for n in self.n_ffts]
    return [
      STFTCritic(n, hop, n, self.width, self.dilations, name=f"scale_{i}")(wave)
      for i, (n, hop) in enumerate(zip(self.n_ffts, hops, strict=True))
    ]


def msstft_weights(key: str = "discriminators", path: str = "params") -> Table:
  """The table of the source's names (EnCodec, SpeechTokenizer, DM-Codec)."""
  scale, ours = f"{key}.{{s}}", f"{path}/scale_{{s}}"
  rules: list[Rule] = []
  for conv, name in (
    (f"{scale}.convs.{{i}}", "conv_{i}"),
    (f"{scale}.conv_post", "conv_post"),
  ):
    rules += [
      Rule(f"{conv}.conv.weight_v", f"{ours}/{name}/kernel", CONV2D),
      Rule(f"{conv}.conv.weight_g", f"{ours}/{name}/gain", GAIN),
      Rule(f"{conv}.conv.bias", f"{ours}/{name}/bias"),
    ]
  first = Rule(f"{scale}.convs.0.conv.weight", f"{ours}/conv_0/kernel", CONV2D)
  return Table((first, *rules), ignore=(r".*\.spec_transform\.window",))
