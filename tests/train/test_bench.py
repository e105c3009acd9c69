"""The benchmark of the trainer: the peer is the same model, and counts are what theory says."""

import dataclasses

import jax
import numpy as np
import pytest

from tokzoo.train.bench import images, trainer
from tokzoo.train.bench.scaling import scaling

TINY = dataclasses.replace(
  trainer.MODEL,
  image_size=16,
  num_tokens=4,
  bits=8,
  width=32,
  layers=1,
  decoder_width=32,
  decoder_layers=1,
)


@pytest.mark.torch
def test_the_peer_takes_the_same_steps():
  """From the same weights, without draws: loss after loss, AdamW included."""
  from tokzoo.train.bench.peers import instella_t2i as peer

  model = dataclasses.replace(TINY, temperature=0.0)
  ours = trainer.OurStep(trainer.recipe_of(4, model=model))
  before = {key: value.copy() for key, value in ours.weights.items()}
  theirs = peer.make_step(
    model, ours.image, ours.weights, 1e-4, 0.01, is_compiled=False
  )
  found, wanted = [ours.loss], [theirs()]
  for _ in range(2):
    ours()  # a block of steps
    found.append(ours.loss)
    wanted.append([theirs() for _ in range(4)][-1])
  np.testing.assert_allclose(found, wanted, rtol=1e-3)
  assert found[-1] < 0.95 * found[0]
  for key, value in ours.weights.items():
    np.testing.assert_array_equal(value, before[key])  # not trained in place


@pytest.mark.torch
@pytest.mark.parametrize(
  "case", [c for c in images.CASES if c.size == "nano"], ids=lambda case: case.name
)
def test_the_peers_of_images_compute_the_same(case):
  for op, (ours, arguments), peer in images.programs(case):
    # Optax mixes dtypes, as the trainer knows.
    with jax.numpy_dtype_promotion("standard"):
      found, wanted = jax.jit(ours)(*arguments), peer()
    if op == "train step":
      np.testing.assert_allclose(found[0], wanted, rtol=1e-4)
    elif op == "decode":
      wanted = wanted.numpy().transpose(0, 2, 3, 1)
      np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    else:
      np.testing.assert_array_equal(found, wanted.numpy())
      assert len(np.unique(found)) > 2


@pytest.mark.slow
def test_the_loop_is_taken_apart():
  recipe = trainer.recipe_of(4, 31, TINY, save_every=10)
  report = trainer.run_loop(recipe, lambda: 1e-3)
  assert report.saves == 2 and report.steps > 5
  assert report.seconds_per_step > 0 and report.step_seconds == 1e-3
  assert report.lost == pytest.approx(1 - 1e-3 / report.seconds_per_step)
  assert 0 <= report.data_wait < 1
  assert all(np.isfinite(value) for value in dataclasses.asdict(report).values())


def test_the_report_of_known_times():
  """0.1 s a step, 0.02 s a log line, saves of 0.1 s that slow the fifth step after them by
  0.05 s, batches that wait 0.01 s."""
  recipe = trainer.recipe_of(save_every=20)
  clock, stamps = 0.0, []
  for step in range(61):
    stamps.append((clock, clock + 0.01))
    clock += 0.1 + (0.02 if step % 5 == 0 else 0)
    clock += {20: 0.1, 25: 0.05, 40: 0.1, 45: 0.05}.get(step, 0)
  report = trainer._report(recipe, stamps, step_seconds=0.1)
  assert report.log_seconds == pytest.approx(0.02)
  assert report.seconds_per_step == pytest.approx(0.104)
  assert report.lost == pytest.approx(1 - 0.1 / 0.104)
  assert (report.save_steps, report.saves) == (pytest.approx(1.0), 2)
  assert report.save_costs_steps == pytest.approx(1.5)
  assert report.data_wait == pytest.approx(0.01 / 0.104, rel=0.05)


@pytest.mark.slow
def test_a_full_cache_compiles_nothing():
  found = trainer.compile_times(trainer.recipe_of(4, model=TINY))
  assert found["warm"] < found["cold"]


def test_many_devices_do_what_theory_says():
  rows = {
    (row.axis, row.devices): row for row in scaling((1, 4), batch_size=8, model=TINY)
  }
  for (axis, devices), row in rows.items():
    assert row.flops == pytest.approx(row.flops_theory, rel=0.05), (axis, devices)
    least, most = row.sent_theory
    assert 0.95 * least <= row.sent <= 1.1 * most, (axis, devices)
  assert rows["data", 1].sent == 0 and rows["data", 4].collectives.keys() == {
    "all-reduce"
  }
  assert rows["data", 4].state_bytes == rows["data", 1].state_bytes
  assert rows["fsdp", 4].state_bytes < 0.4 * rows["fsdp", 1].state_bytes


def test_bench_commands_are_listed(capsys):
  from tokzoo.cli.benching import run_bench
  from tokzoo.errors import TokzooError

  assert run_bench([]) == 0
  said = capsys.readouterr().out
  assert all(word in said for word in ("kernels", "train", "scaling"))
  with pytest.raises(TokzooError, match="did you mean 'train'"):
    run_bench(["trian"])
  with pytest.raises(TokzooError, match="measure nothing"):
    run_bench(["train", "--turns", "0"])
