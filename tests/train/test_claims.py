"""Claims: every seed is measured and judged; `fit` learns and reads no batch too many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.test_tasks import TOKENIZER
from tokzoo.data.packaged import photo_crops
from tokzoo.errors import TokzooError
from tokzoo.train.claims import (
  Claim,
  fit,
  judge,
  kept_rows,
  measure_together,
  rows,
)
from tokzoo.train.tasks import Reconstruction
from tokzoo.weights import flatten


@pytest.mark.parametrize("together", [False, True])
def test_a_verdict_counts_the_seeds(together):
  said = []
  claim = Claim(
    "the number is even",
    source="here",
    measure=lambda seed: {"number": np.float32(seed)},
    holds=lambda found: found["number"] % 2 == 0,
    setting="none",
    seeds=(0, 1, 2),
  )
  verdict = judge(claim, said.append, together)
  assert verdict.held == {0: True, 1: False, 2: True} and not verdict.holds
  assert verdict.sentence == "holds for 2 of 3 seeds"
  assert verdict.means() == {"number": 1.0}
  assert said[1] == "seed 1: number 1: does not hold"


def test_fit_learns_from_just_so_many_batches():
  image = np.full((4, 8, 8, 3), 0.5, np.float32)
  read = []

  def batches():
    for index in range(30):
      read.append(index)
      yield {"image": image}

  task = Reconstruction(model=TOKENIZER, distance="l2")
  # Optax mixes dtypes, as the trainer knows.
  with jax.numpy_dtype_promotion("standard"):
    variables = fit(task, batches(), steps=30, seed=0, peak_lr=2e-2)
  assert len(read) == 30
  made = jax.jit(TOKENIZER.build().apply)(variables, jnp.asarray(image)).reconstruction
  assert jnp.mean((made - image) ** 2) < 0.1


def _kernel(variables):
  return np.asarray(jax.tree.leaves(variables["params"])[0])


def test_seeds_trained_together_are_those_trained_alone():
  draw = np.random.default_rng(0).uniform(-1, 1, (3, 2, 4, 8, 8, 3))
  images = draw.astype(np.float32)  # of 3 steps and 2 seeds
  task = Reconstruction(model=TOKENIZER, distance="l2")
  place, kept = {5: 0, 7: 1}, {}

  def measure(seed):
    kept[seed] = fit(task, ({"image": x[place[seed]]} for x in images), 3, seed, 1e-2)
    return {"mean": _kernel(kept[seed]).mean()}

  with jax.numpy_dtype_promotion("standard"):
    together = measure_together(measure, (5, 7))
    found = dict(kept)
    alone = {seed: measure(seed) for seed in (5, 7)}
  for seed in (5, 7):
    np.testing.assert_allclose(together[seed]["mean"], alone[seed]["mean"], rtol=1e-3)
    for path, leaf in flatten(kept[seed]["params"]).items():
      made = flatten(found[seed]["params"])[path]
      np.testing.assert_allclose(made, leaf, rtol=1e-4, atol=1e-4, err_msg=path)
  assert np.abs(_kernel(found[5]) - _kernel(found[7])).max() > 1e-3


def test_what_all_seeds_share_is_trained_once():
  image, read = np.zeros((4, 8, 8, 3), np.float32), []

  def measure(seed):
    def batches():
      while True:
        read.append(seed)
        yield {"image": image}

    task = Reconstruction(model=TOKENIZER, distance="l2")
    return {"mean": _kernel(fit(task, batches(), 2, 0)).mean()}

  with jax.numpy_dtype_promotion("standard"):
    found = measure_together(measure, (0, 1, 2))
  assert len(read) == 2 and found[0] == found[1] == found[2]


def test_seeds_that_differ_in_what_they_train_are_not_trained_together():
  def measure(seed):
    if seed:
      task = Reconstruction(model=TOKENIZER, distance="l2")
      fit(task, iter([]), 2, seed)
    return {}

  with pytest.raises(TokzooError, match="measure them one by one"):
    measure_together(measure, (0, 1))

  def fails(seed):
    raise ValueError(f"of seed {seed}")

  with pytest.raises(ValueError, match="of seed 0"):
    measure_together(fails, (0, 1))


def test_rows_in_memory_are_of_the_data_and_do_not_end():
  arrays = {"x": np.arange(7), "twice": 2 * np.arange(7)}
  stream = rows(arrays, 50, seed=0)
  parts = [next(stream) for _ in range(4)]
  assert {*np.concatenate([part["x"] for part in parts])} == {*range(7)}
  assert all((part["twice"] == 2 * part["x"]).all() for part in parts)
  crops = kept_rows(photo_crops("train", 8), 20, 6, seed=0)
  seen = np.concatenate([np.asarray(next(crops)["image"]) for _ in range(30)])
  assert seen.shape == (180, 8, 8, 3) and len(np.unique(seen, axis=0)) <= 20
