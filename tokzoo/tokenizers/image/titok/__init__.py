"""TiTok (arXiv 2406.07550): the model in `model.py`, its first training stage in `stages.py`."""

from tokzoo.tokenizers.image.titok.model import (
  BASE,
  LARGE,
  PRESETS,
  SMALL,
  WEIGHTS,
  Config,
  Decoder,
  Encoder,
  Gaussian,
  Size,
  TiTok,
  check_images,
)
from tokzoo.tokenizers.image.titok.stages import ProxyCodes

__all__ = [
  "BASE",
  "LARGE",
  "PRESETS",
  "SMALL",
  "WEIGHTS",
  "Config",
  "Decoder",
  "Encoder",
  "Gaussian",
  "ProxyCodes",
  "Size",
  "TiTok",
  "check_images",
]
