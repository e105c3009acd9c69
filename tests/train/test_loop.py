"""The loop: resuming, stopping, evaluating, logging, and what is refused."""

import dataclasses
import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.train.tasks import (
  AutoEncoder,
  Drawn,
  Linear,
  Rows,
  held_out,
  make_recipe,
  make_rows,
)
from tests.train.test_checkpoint import (
  arrays_of,
  assert_same_bits,
  corrupt,
  go,
  one_device,
)
from tokzoo.data.config import DataConfig
from tokzoo.errors import TokzooError
from tokzoo.train import (
  Evaluator,
  MeshShape,
  Optimizer,
  evaluate,
  from_json,
  load_run,
  make_mesh,
  to_json,
  train,
)
from tokzoo.train.evaluate import sheet
from tokzoo.train.writers import read_log


def test_the_loss_falls_and_the_run_describes_itself(tmp_path):
  recipe = make_recipe(steps=60, log_every=10, save_every=50)
  seen = []
  result = go(recipe, tmp_path, on_log=lambda *line: seen.append(line))
  losses = [values["loss"] for _, split, values in seen if split == "train"]
  assert losses[-1] < 0.5 * losses[0]
  assert result.metrics["loss"] == losses[-1]
  assert result.evaluations["held_out"]["mse"] < losses[0]
  assert from_json(json.loads((tmp_path / "recipe.json").read_text())) == recipe
  lines = read_log(tmp_path / "log.jsonl")
  assert [(line["step"], line["split"]) for line in lines] == [
    *((step, "train") for step in range(10, 70, 10)),
    (60, "held_out"),
  ]
  about = arrays_of(tmp_path)[1]
  assert about["recipe"] == to_json(recipe)
  assert about["code"].startswith("0.")
  assert about["data"] == {"taken": 60}


def test_a_line_of_the_log_is_the_mean_of_its_steps(tmp_path):
  fine, coarse = tmp_path / "fine", tmp_path / "coarse"
  go(make_recipe(log_every=1, evaluators={}), fine)
  go(make_recipe(log_every=4, evaluators={}), coarse)
  each = [line["loss"] for line in read_log(fine / "log.jsonl")]
  means = [line["loss"] for line in read_log(coarse / "log.jsonl")]
  np.testing.assert_allclose(means, np.reshape(each, (3, 4)).mean(axis=1), rtol=1e-6)


def test_n_steps_then_m_more_are_n_plus_m(tmp_path):
  recipe = make_recipe(task=Linear(noise=0.1), ema=0.9, steps=10, save_every=3)
  constant = {"model": Optimizer(schedule="constant")}
  recipe = dataclasses.replace(recipe, optimizers=constant)
  go(recipe, tmp_path / "whole")
  go(dataclasses.replace(recipe, steps=4), tmp_path / "parts")
  go(recipe, tmp_path / "parts")
  assert_same_bits(arrays_of(tmp_path / "parts")[0], arrays_of(tmp_path / "whole")[0])


def test_another_seed_is_another_run(tmp_path):
  for seed in (0, 1):
    go(make_recipe(seed=seed, steps=1), tmp_path / str(seed))
  zero, one = (arrays_of(tmp_path / str(seed))[0] for seed in (0, 1))
  assert not np.array_equal(zero["params/encoder/kernel"], one["params/encoder/kernel"])


def test_random_draws_differ_from_step_to_step_and_within(tmp_path):
  @dataclasses.dataclass(frozen=True)
  class Draws(Linear):
    def losses(self, variables, batch, rng, step):
      found = super().losses(variables, batch, rng, step)
      draw = jax.random.uniform(rng)
      return dataclasses.replace(found, metrics={"draw": draw, "square": draw**2})

  Draws.__qualname__ = "Draws"
  seen = []
  recipe = make_recipe(task=Draws(), log_every=1, accumulate=2, evaluators={})
  go(recipe, tmp_path, on_log=lambda step, split, values: seen.append(values))
  assert len({values["draw"] for values in seen}) == recipe.steps
  # Two micro-batches draw differently: their mean square is above their squared mean.
  assert all(v["square"] > v["draw"] ** 2 + 1e-6 for v in seen)


def test_a_nan_stops_the_run_and_names_step_player_and_checkpoint(tmp_path):
  recipe = make_recipe(task=Linear(poison=9), steps=20, save_every=4)
  with pytest.raises(TokzooError) as raised:
    go(recipe, tmp_path)
  told = str(raised.value)
  assert told.startswith("step 10: the loss of the player 'model' is nan")
  assert "checkpoint 8 in" in told and "is intact" in told
  arrays, about = arrays_of(tmp_path)
  assert about["step"] == 8
  assert all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f")


def test_a_nan_before_any_checkpoint_and_at_a_save(tmp_path):
  with pytest.raises(TokzooError, match=r"step 4: .*there is no earlier checkpoint"):
    go(make_recipe(task=Linear(poison=3), steps=8, save_every=4), tmp_path)
  assert not list((tmp_path / "checkpoints").iterdir())


def test_weights_that_overflow_in_the_last_update_are_not_saved(tmp_path):
  # The loss and the gradient of step 4 are finite; the update is not.
  huge = {"model": Optimizer("sgd", peak_lr=3e38, b1=0.0, schedule="linear")}
  recipe = make_recipe(optimizers=huge, steps=1, save_every=1)
  recipe = dataclasses.replace(recipe, task=Steep())
  with pytest.raises(TokzooError, match=r"state after step 1 is not finite \(params/"):
    go(recipe, tmp_path)
  assert not list((tmp_path / "checkpoints").iterdir())


@dataclasses.dataclass(frozen=True)
class Steep(Linear):
  """A loss with a gradient of 1000 and more."""

  def losses(self, variables, batch, rng, step):
    found = super().losses(variables, batch, rng, step)
    return dataclasses.replace(found, players={"model": 1e4 * found.players["model"]})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_start_continues(tmp_path, number):
  recipe = make_recipe(task=Linear(noise=0.1), steps=30, save_every=50, log_every=1)

  def stop(step, split, values):
    if step == 7:
      os.kill(os.getpid(), number)

  before = signal.getsignal(number)
  result = go(recipe, tmp_path / "stopped", on_log=stop)
  assert result.stopped_by == signal.Signals(number).name
  assert 7 <= result.step <= 10 and result.evaluations == {}
  assert signal.getsignal(number) == before
  assert arrays_of(tmp_path / "stopped")[1]["step"] == result.step
  assert go(recipe, tmp_path / "stopped").stopped_by is None
  go(recipe, tmp_path / "straight")
  assert_same_bits(
    arrays_of(tmp_path / "stopped")[0], arrays_of(tmp_path / "straight")[0]
  )


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
  class Slow(Rows):
    def __next__(self):
      if self.taken == 5:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
      return super().__next__()

  with pytest.raises(KeyboardInterrupt):
    train(
      make_recipe(evaluators={}),
      tmp_path,
      mesh=one_device(),
      batches=Slow(8),
      progress=False,
    )


def test_it_also_trains_outside_of_the_main_thread(tmp_path):
  results = []
  thread = threading.Thread(
    target=lambda: results.append(go(make_recipe(steps=2), tmp_path))
  )
  thread.start()
  thread.join()
  assert results[0].step == 2


def test_evaluation_is_exact_on_a_ragged_last_batch(tmp_path):
  result = go(make_recipe(steps=2), tmp_path)
  x = make_rows(99, 0, 20)
  out = AutoEncoder().apply(jax.device_get(result.variables), jnp.asarray(x))
  expected = np.square(np.asarray(out) - x).mean()
  assert result.evaluations["held_out"]["mse"] == pytest.approx(expected, rel=1e-5)
  alone = evaluate(Linear(), load_run(tmp_path)[1], held_out(8)(), 8)
  assert alone["mse"] == pytest.approx(expected, rel=1e-5)


def test_evaluators_and_pictures_keep_their_own_schedules(tmp_path):
  often = Evaluator(DataConfig(), every=3)
  late = Evaluator(DataConfig())
  recipe = make_recipe(
    task=Drawn(),
    evaluators={"often": often, "late": late},
    steps=8,
    picture_every=4,
    log_every=100,
  )
  go(recipe, tmp_path)
  lines = [(line["step"], line["split"]) for line in read_log(tmp_path / "log.jsonl")]
  assert lines == [(3, "often"), (6, "often"), (8, "often"), (8, "late")]
  names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
  assert names == ["00000004-rows.png", "00000008-rows.png"]
  with Image.open(tmp_path / "pictures" / names[0]) as image:
    assert image.size == (8 * 8, 2) and image.mode == "L"


def test_evaluators_may_ask_for_the_raw_weights(tmp_path):
  evaluators = {
    "averaged": Evaluator(DataConfig()),
    "raw": Evaluator(DataConfig(), use_ema=False),
  }
  result = go(make_recipe(evaluators=evaluators, ema=0.99), tmp_path)
  found = result.evaluations
  assert found["averaged"]["mse"] != found["raw"]["mse"]
  for use_ema, name in ((True, "averaged"), (False, "raw")):
    variables = load_run(tmp_path, use_ema)[1]
    again = evaluate(Linear(), variables, held_out(8)(), 8)
    assert again["mse"] == pytest.approx(found[name]["mse"], rel=1e-5)


def test_load_run_gives_plain_variables_on_one_device(tmp_path):
  result = go(
    make_recipe(task=Linear(AutoEncoder(hidden=64))),
    tmp_path,
    make_mesh(MeshShape(2, 4)),
  )
  recipe, variables, step = load_run(tmp_path)
  assert step == 12 and from_json(recipe).task == Linear(AutoEncoder(hidden=64))
  assert set(variables) == {"params", "codebook"}
  jax.tree.map(np.testing.assert_array_equal, variables, result.variables)
  assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(variables))


def test_what_a_kill_cut_off_is_done_again(tmp_path):
  recipe = make_recipe(steps=8, save_every=4, log_every=1)
  go(recipe, tmp_path)
  log = tmp_path / "log.jsonl"
  whole = log.read_text()
  # As if killed after the save of step 8, in the middle of a line.
  lines = whole.splitlines(keepends=True)
  log.write_text("".join(lines[:8]) + lines[8][:20])
  result = go(recipe, tmp_path)
  assert result.step == 8 and result.metrics == {}
  assert log.read_text() == whole
  corrupt(tmp_path / "checkpoints/00000008")
  with pytest.warns(UserWarning, match="checkpoint 8 is damaged"):
    go(recipe, tmp_path)
  steps = [(line["step"], line["split"]) for line in read_log(log)]
  assert steps == [*((step, "train") for step in range(1, 9)), (8, "held_out")]


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"system": "titok"}, 'system is "linear", not "titok"'),
    ({"name": "base"}, 'name is "nano", not "base"'),
    ({"task": Linear(AutoEncoder(depth=3))}, "model.depth is 2, not 3"),
    ({"ema": 0.9}, "does not fit the recipe: it holds ema/.* as nothing"),
  ],
)
def test_another_run_is_not_continued(tmp_path, changes, words):
  go(make_recipe(steps=2), tmp_path)
  (tmp_path / "notes.txt").write_text("mine")
  other = make_recipe(steps=2, **changes)
  with pytest.raises(TokzooError, match=words) as raised:
    go(other, tmp_path)
  assert "--restart" in str(raised.value)
  assert go(other, tmp_path, restart=True).step == 2
  assert (tmp_path / "notes.txt").read_text() == "mine"
  assert load_run(tmp_path)[0] == to_json(other)


def test_a_run_starts_from_another_ones_weights(tmp_path):
  go(make_recipe(ema=0.5), tmp_path / "first")
  _, given, _ = load_run(tmp_path / "first")
  still = {"model": Optimizer("sgd", peak_lr=0.0, schedule="constant")}
  recipe = make_recipe(
    init_from=str(tmp_path / "first"), optimizers=still, steps=1, system="other"
  )
  result = go(recipe, tmp_path / "second")
  jax.tree.map(
    np.testing.assert_array_equal, result.variables["params"], given["params"]
  )
  decoder = {"params": {"decoder": given["params"]["decoder"]}}
  result = go(
    make_recipe(optimizers=still, steps=1), tmp_path / "third", initial=decoder
  )
  kernels = result.variables["params"]
  np.testing.assert_array_equal(
    kernels["decoder"]["kernel"], decoder["params"]["decoder"]["kernel"]
  )
  assert not np.array_equal(
    kernels["encoder"]["kernel"], given["params"]["encoder"]["kernel"]
  )
  wide = make_recipe(task=Linear(AutoEncoder(hidden=6)), init_from=recipe.init_from)
  with pytest.raises(
    TokzooError, match=r"hold codebook/mean \[4\], but the model has \[6\]"
  ):
    go(wide, tmp_path / "fourth")
  with pytest.raises(TokzooError, match="no path of the initial weights agrees"):
    go(make_recipe(), tmp_path / "fifth", initial={"params": {"x": jnp.zeros(2)}})


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"batch_size": 12}, "12 cannot be split over 8 devices"),
    ({"batch_size": 8, "accumulate": 2}, "multiple of 16"),
    ({"steps": 0}, "steps is 0, but must be at least 1"),
    ({"log_every": 0}, "log_every is 0"),
    ({"seed": -1}, "seed is -1"),
    ({"ema": 1.0}, "ema is 1.0"),
    ({"mesh": MeshShape(3)}, "needs 3 devices"),
  ],
)
def test_numbers_that_no_run_can_have(tmp_path, changes, words):
  recipe = make_recipe(**changes)
  with pytest.raises(TokzooError, match=words):
    train(recipe, tmp_path, batches=Rows(recipe.batch_size), progress=False)
  assert not list(tmp_path.iterdir())


def test_data_that_does_not_fit(tmp_path):
  class Short(Rows):
    def __next__(self):
      if self.taken == 3:
        raise StopIteration
      return super().__next__()

  recipe = make_recipe(evaluators={})
  rest = {"mesh": one_device(), "progress": False}
  with pytest.raises(TokzooError, match="the data ended after 3 batches"):
    train(recipe, tmp_path / "a", batches=Short(8), **rest)
  with pytest.raises(TokzooError, match=r"x of shape \[4, 8\].* 8 rows"):
    train(recipe, tmp_path / "b", batches=Rows(4), **rest)
  with pytest.raises(TokzooError, match="unknown evaluator 'test'"):
    evaluations = {"test": held_out()}
    train(recipe, tmp_path / "c", batches=Rows(8), evaluations=evaluations, **rest)
  recipe = make_recipe()
  with pytest.raises(TokzooError, match="an evaluation got no batch"):
    evaluations = {"held_out": lambda: iter(())}
    train(recipe, tmp_path / "d", batches=Rows(8), evaluations=evaluations, **rest)


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(TokzooError, match="cannot write"):
    go(make_recipe(), tmp_path / "file" / "run")
  with pytest.raises(TokzooError, match="is no run directory"):
    load_run(tmp_path / "nowhere")


def test_the_recipe_must_have_a_json_form(tmp_path):
  recipe = make_recipe(task=Linear(noise=np.zeros(3)))
  with pytest.raises(TokzooError, match=r"ndarray\) has no JSON form"):
    go(recipe, tmp_path)


def test_a_sheet_of_images():
  images = np.stack([np.full((2, 3, 1), v) for v in (-1.0, 1.0, 5.0, np.nan, 0.0)])
  found = sheet(images, columns=2)
  assert found.shape == (6, 6, 1) and found.dtype == np.uint8
  assert found[::2, ::3, 0].tolist() == [[0, 255], [255, 128], [128, 255]]
