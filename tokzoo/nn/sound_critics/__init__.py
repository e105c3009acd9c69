"""Discriminators of sound: networks that tell recordings from reconstructions.

  MSSTFT         complex spectra at several scales (EnCodec, SpeechTokenizer, DM-Codec)
  MultiPeriod    the wave folded at prime periods (HiFi-GAN, DAC, SpeechTokenizer)
  MultiScale     the wave at three rates (HiFi-GAN, SpeechTokenizer)
  MultiBand      complex spectra cut into bands (DAC)
  Critics        several of them as one

Each is called with waves float32[B, T, C] and returns a list of `Verdict`s, one for each of its
sub-discriminators.
"""

from tokzoo.nn.sound_critics.bands import MultiBand
from tokzoo.nn.sound_critics.layers import Critics, Verdict
from tokzoo.nn.sound_critics.msstft import MSSTFT, msstft_weights
from tokzoo.nn.sound_critics.waves import MultiPeriod, MultiScale

__all__ = [
  "MSSTFT",
  "Critics",
  "MultiBand",
  "MultiPeriod",
  "MultiScale",
  "Verdict",
  "msstft_weights",
]
