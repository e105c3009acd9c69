"""Quantizers: latents to codes. One family a file; the contract is `tokzoo.contract.Quantizer`.

README.md beside this file compares them.
"""

from tokzoo.quantizers.additive import Additive, AdditiveBeam, Icm
from tokzoo.quantizers.affine import Affine
from tokzoo.quantizers.binary import Binary
from tokzoo.quantizers.codebook import Averages
from tokzoo.quantizers.fsq import FiniteScalar
from tokzoo.quantizers.gradients import Directional, Gumbel, SoftAssignment, SyncUpdate
from tokzoo.quantizers.gumbel import GumbelSoftmax
from tokzoo.quantizers.ibq import IndexBackpropagation
from tokzoo.quantizers.kmeans import KMeans
from tokzoo.quantizers.latent import LatentQuantizer
from tokzoo.quantizers.lfq import LookupFree
from tokzoo.quantizers.opq import Rotated
from tokzoo.quantizers.product import Product
from tokzoo.quantizers.projected import Projected
from tokzoo.quantizers.qinco import Qinco
from tokzoo.quantizers.random_projection import RandomProjection
from tokzoo.quantizers.regularizers import Diversity, Entropy, Orthogonal
from tokzoo.quantizers.residual import (
  Beam,
  ChosenDropout,
  ItemDropout,
  LevelDropout,
  Residual,
  residual_fsq,
  residual_lfq,
)
from tokzoo.quantizers.simvq import SimVQ
from tokzoo.quantizers.updates import (
  Ema,
  EncodecReset,
  Learnt,
  PeriodicReset,
  ResetBelow,
)
from tokzoo.quantizers.vq import VectorQuantizer

__all__ = [
  "Additive",
  "AdditiveBeam",
  "Affine",
  "Averages",
  "Beam",
  "Binary",
  "ChosenDropout",
  "Directional",
  "Diversity",
  "Ema",
  "EncodecReset",
  "Entropy",
  "FiniteScalar",
  "Gumbel",
  "GumbelSoftmax",
  "Icm",
  "IndexBackpropagation",
  "ItemDropout",
  "KMeans",
  "LatentQuantizer",
  "Learnt",
  "LevelDropout",
  "LookupFree",
  "Orthogonal",
  "PeriodicReset",
  "Product",
  "Projected",
  "Qinco",
  "RandomProjection",
  "ResetBelow",
  "Residual",
  "Rotated",
  "SimVQ",
  "SoftAssignment",
  "SyncUpdate",
  "VectorQuantizer",
  "residual_fsq",
  "residual_lfq",
]
