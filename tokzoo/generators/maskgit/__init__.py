"""MaskGIT and its descendants: generators that fill in all tokens of an image in few steps.

  original   Chang et al., "MaskGIT", arXiv 2202.04200: a post-norm BERT over the tokens of a
             VQGAN, confidence from log-probabilities, no guidance
  imagebert  the generator of TiTok-L-32 and TiTok-B-64 (arXiv 2406.07550): BERT again, with
             guidance, confidence from logits, noise that is annealed away
  uvit       that of TiTok-S-128: a transformer with long skips, otherwise as imagebert

All three mask random tokens in training and decode from all masked to none; their samplers
are different ones, and each lies beside its network. Their relatives for text and for video,
Muse (arXiv 2301.00704) and MAGVIT (arXiv 2212.05199, 2310.05737), are not here.
"""

from tokzoo.generators.maskgit.imagebert import ImageBert, ImageBertConfig
from tokzoo.generators.maskgit.original import Decoded, MaskGIT, MaskGITConfig
from tokzoo.generators.maskgit.uvit import UViT, UViTConfig

__all__ = [
  "Decoded",
  "ImageBert",
  "ImageBertConfig",
  "MaskGIT",
  "MaskGITConfig",
  "UViT",
  "UViTConfig",
]
