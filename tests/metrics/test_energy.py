"""Energy distances and scores of points."""

import numpy as np

from tokzoo.metrics.energy import energy_distance, energy_score, unbiased_distance


def draw(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_distances_are_the_means_of_pairs():
  x, y = draw(1_050, 3), 0.5 + draw(1_020, 3, seed=1)  # more rows than a block has
  between, of_x, of_y = (
    np.linalg.norm(a[:, None] - b[None], axis=-1).astype(np.float64)
    for a, b in ((x, y), (x, x), (y, y))
  )
  wanted = 2 * between.mean() - of_x.mean() - of_y.mean()
  assert np.isclose(energy_distance(x, y), wanted, atol=1e-5)
  pairs = [of.sum() / (len(of) * (len(of) - 1)) for of in (of_x, of_y)]
  wanted = 2 * between.mean() - sum(pairs)
  assert np.isclose(unbiased_distance(x, y, False), wanted, atol=1e-5)


def test_without_bias_points_alike_are_at_no_distance():
  data, other = draw(1_500, 5), draw(1_500, 5, seed=1)
  assert abs(unbiased_distance(data, data, True)) < 1e-6
  assert abs(unbiased_distance(other, data, False)) < 2e-3
  assert energy_distance(other, data) > 3e-3
  assert unbiased_distance(1.5 * other, data, False) > 0.1


def test_the_score_is_lowest_for_the_right_distribution():
  data = draw(4_000, 3)
  scores = [
    energy_score(shift + width * draw(4, 4_000, 3, seed=1), data)
    for shift, width in ((0.0, 1.0), (0.0, 0.6), (0.0, 1.6), (0.5, 1.0))
  ]
  assert scores[0] == min(scores) and sorted(scores)[1] > scores[0] + 0.02


def test_the_score_knows_places():
  """Draws of the right distribution at the wrong places score worse."""
  centres = 3 * draw(2_000, 2)
  data = centres + draw(2_000, 2, seed=1)
  made = centres[None] + draw(4, 2_000, 2, seed=2)
  assert energy_score(made, data) + 1 < energy_score(made[:, ::-1], data)
