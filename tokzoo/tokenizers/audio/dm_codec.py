"""DM-Codec: SpeechTokenizer's model, distilled from a language model and a speech model.

Ahasan et al., "DM-Codec: Distilling Multimodal Representations for Speech Tokenization",
arXiv 2410.15017. Written from what mubtasimahasan/DM-Codec @ 25c742a computes. The network
and its weights' names are SpeechTokenizer's; what differs are the teachers, whose features
come as arrays: HuBERT's, and BERT's of the transcript, one row a frame.

  audio   float32[B, T, 1] in [-1, 1], 16 kHz
  tokens  ids [B, L, Q], 50 frames a second

Differences from the source: those of SpeechTokenizer.
"""

import dataclasses

from tokzoo.tokenizers.audio import speechtokenizer
from tokzoo.tokenizers.audio.speechtokenizer import WEIGHTS, SpeechTokenizer


@dataclasses.dataclass(frozen=True)
class Config(speechtokenizer.Config):
  """Sizes of the codec; the defaults are the published ones."""

  def build(self) -> "DMCodec":
    return DMCodec(self)


class DMCodec(SpeechTokenizer):
  """The codec (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config


PRESETS = {"dm-codec": Config()}

__all__ = ["PRESETS", "WEIGHTS", "Config", "DMCodec"]
