"""One-D-Piece: TiTok whose tokens decode from any prefix, 1 to 256 of them.

Miwa et al., "One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression", arXiv
2501.10064. Written from what turingmotors/One-D-Piece @ 473665d computes
(`modeling/one_d_piece.py`); weights on the hub: turing-motors/One-D-Piece-{S,B,L}-256, in
the names and layouts of TiTok's first weights.

  image   float32[B, S, S, C] in [-1, 1] with S = image_size
  tokens  ids [B, n], 12 bits each: the first n of what `encode` makes are an encoding, too

In training the tail is dropped: one n, uniform over 1 to K, for the whole batch and step. The
rest is cut off behind the quantizer, whose losses are of all K tokens. The published weights
have TiTok's legacy reshape, which mixes tokens and features before the drop.

Difference from the source: n is drawn from the step's key, one for all devices, and cut
tokens are masked rather than sliced off, which is the same to the decoder. Every device of
the source draws an n of its own.
"""

import dataclasses

from jaxtyping import Array, Bool

from tokzoo.nn.prefix import Law, check_num_tokens, draw_length, prefix_mask
from tokzoo.tokenizers.image import titok
from tokzoo.tokenizers.image.titok import BASE, SMALL, WEIGHTS


@dataclasses.dataclass(frozen=True)
class Config(titok.Config):
  """Sizes of the tokenizer; the defaults are those of One-D-Piece-L-256."""

  num_tokens: int = 256
  """K, the most tokens of an image."""
  tail_drop: Law | None = "uniform"
  """Law of the number of tokens that are kept in training; None: all are."""

  def build(self) -> "OneDPiece":
    return OneDPiece(self)


class OneDPiece(titok.TiTok):
  """The tokenizer (contract: `tokzoo.contract.Tokenizer`).

  `encode(x, num_tokens=n)` gives the first n tokens; `decode` takes any prefix. There is no
  rate controller: choose n, or search for the least that is good enough.
  """

  config: Config

  def kept(self, train: bool) -> Bool[Array, "K"] | None:
    """In training, a prefix of one length for the batch (rng stream "bits")."""
    c = self.config
    if not train or c.tail_drop is None:
      return None
    length = draw_length(self.make_rng("bits"), c.num_tokens, c.tail_drop)
    return prefix_mask(length, c.num_tokens)

  def check_length(self, num_tokens: int | None) -> int:
    """How many tokens to make, or to read: 1 to K, K where it is None.

    Raises:
      TokzooError: any other number.
    """
    return check_num_tokens(num_tokens, self.config.num_tokens)


PRESETS = {
  "one-d-piece-s256": Config(encoder=SMALL, decoder=SMALL),
  "one-d-piece-b256": Config(encoder=BASE, decoder=BASE),
  "one-d-piece-l256": Config(),
}

__all__ = ["PRESETS", "WEIGHTS", "Config", "OneDPiece"]
