"""Losses: pure functions on arrays."""

from tokzoo.losses.adversarial import (
  adaptive_weight,
  hinge_discriminator,
  hinge_generator,
  lecam,
  non_saturating_discriminator,
  non_saturating_generator,
)
from tokzoo.losses.perceptual import PerceptualLoss
from tokzoo.losses.reconstruction import (
  Reduction,
  binary_cross_entropy,
  commitment,
  l1,
  l2,
  reduce,
  smooth_l1,
)

__all__ = [
  "PerceptualLoss",
  "Reduction",
  "adaptive_weight",
  "binary_cross_entropy",
  "commitment",
  "hinge_discriminator",
  "hinge_generator",
  "l1",
  "l2",
  "lecam",
  "non_saturating_discriminator",
  "non_saturating_generator",
  "reduce",
  "smooth_l1",
]
