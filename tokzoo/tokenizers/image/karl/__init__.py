"""KARL (arXiv 2507.07995) in `model.py`, ALIT (arXiv 2411.02393) before it in `alit.py`, the
tokenizers they stand on in `base.py`, their training in `stages.py` and `alit_stages.py`."""

from tokzoo.tokenizers.image.karl.alit import (
  ALIT,
  ALIT_PRESETS,
  ALIT_WEIGHTS,
  ALITConfig,
)
from tokzoo.tokenizers.image.karl.alit_stages import ALITDistillation, ALITFinetuning
from tokzoo.tokenizers.image.karl.base import KLVAEConfig
from tokzoo.tokenizers.image.karl.critics import Critics
from tokzoo.tokenizers.image.karl.model import ERRORS, KARL, PRESETS, WEIGHTS, Config
from tokzoo.tokenizers.image.karl.parts import MAGE, Size
from tokzoo.tokenizers.image.karl.stages import Distillation, Finetuning

__all__ = [
  "ALIT",
  "ALIT_PRESETS",
  "ALIT_WEIGHTS",
  "ERRORS",
  "KARL",
  "MAGE",
  "PRESETS",
  "WEIGHTS",
  "ALITConfig",
  "ALITDistillation",
  "ALITFinetuning",
  "Config",
  "Critics",
  "Distillation",
  "Finetuning",
  "KLVAEConfig",
  "Size",
]
