"""The trainer on the data room's own loader: real digits, prefetched by threads."""

import dataclasses
import os
import signal

import jax.numpy as jnp
import pytest

from tests.train.tasks import AutoEncoder, Linear, Mean, make_recipe
from tests.train.test_checkpoint import arrays_of, assert_same_bits, one_device
from tokzoo.data import DataConfig, open_source
from tokzoo.train import Evaluator, Optimizer, train


@dataclasses.dataclass(frozen=True)
class Digits(Linear):
  """`Linear` on flattened pictures; also counts the records that an evaluation saw."""

  def init(self, rng, batch):
    return super().init(rng, flat(batch))

  def losses(self, variables, batch, rng, step):
    return super().losses(variables, flat(batch), rng, step)

  def evaluate(self, variables, batch, rng):
    valid = batch["valid"].astype(jnp.float32)
    records = Mean(valid.sum(), jnp.float32(1))
    return {**super().evaluate(variables, flat(batch), rng), "records": records}


def flat(batch):
  x = batch["image"].reshape(batch["image"].shape[0], -1)
  return {**batch, "x": x}


def digits_recipe():
  data = DataConfig(source="digits", channels=1, threads=2, prefetch=2)
  held_out = dataclasses.replace(data, split="test")
  return make_recipe(
    task=Digits(AutoEncoder(hidden=16), noise=0.1),
    data=data,
    evaluators={"test": Evaluator(held_out)},
    batch_size=64,
    steps=40,
    save_every=15,
    log_every=1,
    optimizers={"model": Optimizer(peak_lr=1e-2)},
  )


def test_stopped_on_real_data_and_continued(tmp_path):
  recipe, mesh = digits_recipe(), one_device()
  losses = []

  def stop(step, split, values):
    losses.append(values.get("loss"))
    if step == 20:
      os.kill(os.getpid(), signal.SIGTERM)

  run = {"mesh": mesh, "progress": False}
  assert train(recipe, tmp_path / "parts", on_log=stop, **run).stopped_by == "SIGTERM"
  result = train(recipe, tmp_path / "parts", **run)
  straight = train(recipe, tmp_path / "whole", **run)
  assert_same_bits(arrays_of(tmp_path / "parts")[0], arrays_of(tmp_path / "whole")[0])
  assert result.evaluations == straight.evaluations
  assert result.metrics["loss"] < 0.7 * losses[0]
  # Rows that count, per batch: every held-out record once.
  total = len(open_source(recipe.evaluators["test"].data))
  batches = -(-total // 64)
  assert result.evaluations["test"]["records"] == pytest.approx(total / batches)
