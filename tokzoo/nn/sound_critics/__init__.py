"""Discriminators of sound: networks that tell recordings from reconstructions.

  MSSTFT         complex spectra at several scales (EnCodec, SpeechTokenizer, DM-Codec)
  MultiPeriod    the wave folded at prime periods (HiFi-GAN, DAC, SpeechTokenizer)
  MultiScale     the wave at three rates (HiFi-GAN, SpeechTokenizer)
  MultiBand      complex spectra cut into bands (DAC)
  MultiResolution   magnitudes of spectra (UnivNet, Vocos, WavTokenizer)
  Critics        several of them as one

Each is called with waves float32[B, T, C] and returns a list of `Verdict`s, one for each of its
sub-discriminators. Those with `conditions` may be given the number of one beside the waves.
"""

from tokzoo.nn.sound_critics.bands import MultiBand
from tokzoo.nn.sound_critics.layers import Critics, Verdict, called
from tokzoo.nn.sound_critics.msstft import MSSTFT, msstft_weights
from tokzoo.nn.sound_critics.resolutions import MultiResolution
from tokzoo.nn.sound_critics.waves import MultiPeriod, MultiScale

__all__ = [
  "MSSTFT",
  "Critics",
  "MultiBand",
  "MultiPeriod",
  "MultiResolution",
  "MultiScale",
  "Verdict",
  "called",
  "msstft_weights",
]
