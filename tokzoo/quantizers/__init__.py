"""Quantizers: latents to codes. One family a file; the contract is `tokzoo.contract.Quantizer`."""

from tokzoo.quantizers.codebook import Averages, Ema
from tokzoo.quantizers.fsq import FiniteScalar
from tokzoo.quantizers.lfq import LookupFree
from tokzoo.quantizers.vq import VectorQuantizer

__all__ = ["Averages", "Ema", "FiniteScalar", "LookupFree", "VectorQuantizer"]
