"""Claims: every seed is measured and judged; `fit` learns and reads no batch too many."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.train.test_tasks import TOKENIZER
from tokzoo.train.claims import Claim, fit, judge
from tokzoo.train.tasks import Reconstruction


def test_a_verdict_counts_the_seeds():
  said = []
  claim = Claim(
    "the number is even",
    source="here",
    measure=lambda seed: {"number": np.float32(seed)},
    holds=lambda found: found["number"] % 2 == 0,
    setting="none",
    seeds=(0, 1, 2),
  )
  verdict = judge(claim, said.append)
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
