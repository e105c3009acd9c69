"""FlexTok (arXiv 2502.13967): the tokenizer in `model.py`, its autoencoder in `vae.py`, what it
is trained with in `training.py`, what its published files say in `metadata.py`."""

from tokzoo.tokenizers.image.flextok.metadata import check_metadata
from tokzoo.tokenizers.image.flextok.model import (
  PRESETS,
  WEIGHTS,
  Config,
  FlexTok,
  Size,
)
from tokzoo.tokenizers.image.flextok.training import Alignment, RectifiedFlow
from tokzoo.tokenizers.image.flextok.vae import (
  KLVAE,
  VAE_PRESETS,
  VAE_WEIGHTS,
  VAEConfig,
)

__all__ = [
  "KLVAE",
  "PRESETS",
  "VAE_PRESETS",
  "VAE_WEIGHTS",
  "WEIGHTS",
  "Alignment",
  "Config",
  "FlexTok",
  "RectifiedFlow",
  "Size",
  "VAEConfig",
  "check_metadata",
]
