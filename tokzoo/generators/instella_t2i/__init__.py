"""Instella-T2I's generators: binary diffusion and an autoregressive model of binary tokens.

Wang et al., "Instella-T2I: Pushing the Limits of 1D Discrete Latent Space Image Generation",
arXiv 2506.21022. Written from the paper and from what AMD-AIG-AIMA/Instella-T2I @ 9a1a753
computes (`models.diff_model`, `models.ar_model`); weights on the hub: amd/Instella-T2I,
research use only.

Both are transformers over the bits `[B, L, m]` of one image. Block i attends from the image
tokens to [linear_i(condition of layer i), image tokens]; the condition is never updated.

  Diffusion       x_t: each bit ~ Bernoulli((1 - t) b + t/2); the network predicts the logit
                  that a bit was flipped; binary cross-entropy to the clean bits
  Autoregressive  start vector and the tokens so far -> m independent bit logits of the next

Condition, an input of every call:
  text    `TextFeatures`: every hidden layer of a frozen language model, layer i for block i
          (published: AMD-OLMo-1B, 16 layers of width 2048, prompts padded on the LEFT). A
          dropped prompt is the empty string, so dropping happens where features are made.
  class   `int32[B]` labels, with `Config.num_classes` set; the label num_classes means "no
          class", and training puts it in place of a label with probability `drop`.

Differences from the source: sampling of the autoregressive model keeps keys and values in a
cache (the source recomputes them: the same numbers); class labels are ours, for small runs. A
training from scratch starts from other weights: attention and MLPs are LeCun normal, where the
source draws Xavier uniform for diffusion and PyTorch's own for the autoregressive model.
"""

from tokzoo.generators.instella_t2i.autoregressive import (
  AR_WEIGHTS,
  ARConfig,
  Cache,
  InstellaAR,
)
from tokzoo.generators.instella_t2i.diffusion import (
  DIFFUSION_WEIGHTS,
  DiffusionConfig,
  InstellaDiffusion,
)
from tokzoo.generators.instella_t2i.shared import Condition, TextFeatures

__all__ = [
  "AR_WEIGHTS",
  "DIFFUSION_WEIGHTS",
  "ARConfig",
  "Cache",
  "Condition",
  "DiffusionConfig",
  "InstellaAR",
  "InstellaDiffusion",
  "TextFeatures",
]
