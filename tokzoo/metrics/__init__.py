"""Metrics: states that merge over batches and hosts."""

from tokzoo.metrics.audio import SISNR, mel_distance, si_sdr, si_snr
from tokzoo.metrics.codebook import BitEntropy, BitsPerPixel, CodebookUsage
from tokzoo.metrics.distributions import (
  FrechetDistance,
  InceptionScore,
  Moments,
  PrecisionRecall,
  frechet_distance,
)
from tokzoo.metrics.images import PSNR, SSIM, ssim
from tokzoo.metrics.state import Mean, Metric

__all__ = [
  "PSNR",
  "SISNR",
  "SSIM",
  "BitEntropy",
  "BitsPerPixel",
  "CodebookUsage",
  "FrechetDistance",
  "InceptionScore",
  "Mean",
  "Metric",
  "Moments",
  "PrecisionRecall",
  "frechet_distance",
  "mel_distance",
  "si_sdr",
  "si_snr",
  "ssim",
]
