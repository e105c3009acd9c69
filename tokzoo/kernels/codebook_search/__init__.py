"""Codebook search: the nearest codes of each row, exact, without the [N, K] matrix."""

from tokzoo.kernels.codebook_search.api import METRICS, Metric, assign, search
from tokzoo.kernels.codebook_search.dispatch import IMPLEMENTATIONS, Implementation
from tokzoo.kernels.codebook_search.statistics import count_and_sum

__all__ = [
  "IMPLEMENTATIONS",
  "METRICS",
  "Implementation",
  "Metric",
  "assign",
  "count_and_sum",
  "search",
]
