"""Quantizers: latents to codes. One family a file; the contract is `tokzoo.contract.Quantizer`."""

from tokzoo.quantizers.codebook import Averages
from tokzoo.quantizers.fsq import FiniteScalar
from tokzoo.quantizers.lfq import LookupFree
from tokzoo.quantizers.updates import Ema, ResetBelow
from tokzoo.quantizers.vq import VectorQuantizer

__all__ = [
  "Averages",
  "Ema",
  "FiniteScalar",
  "LookupFree",
  "ResetBelow",
  "VectorQuantizer",
]
