"""One step: players, accumulation, freezing, averages, dtypes, rematerialisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.tasks import AutoEncoder, Game, Linear, make_recipe, make_rows
from tokzoo.cli.experiments import load_experiment
from tokzoo.contract import Losses
from tokzoo.errors import TokzooError
from tokzoo.train import MeshShape, Optimizer, make_mesh
from tokzoo.train.mesh import named_leaves, put_batch
from tokzoo.train.optim import make_optimizer, schedule
from tokzoo.train.state import lay_out, make_state
from tokzoo.train.step import gradients, make_step


@dataclasses.dataclass(frozen=True)
class Still(Linear):
  """A plain mean loss: `Linear` without its running mean over the batch."""

  def losses(self, variables, batch, rng, step):
    out = self.model.apply(variables, batch["x"])
    return Losses({"model": jnp.square(out - batch["x"]).mean()})


SGD = {"model": Optimizer("sgd", peak_lr=0.1, schedule="constant", b1=0.0)}


def prepare(recipe, devices=1, mesh_shape=None):
  """(state, step, batches) on a mesh of some devices."""
  mesh = make_mesh(mesh_shape or MeshShape(), jax.devices()[:devices])
  batches = [
    put_batch({"x": make_rows(0, i, recipe.batch_size)}, mesh, recipe.batch_size)
    for i in range(4)
  ]
  layout = lay_out(recipe, batches[0], mesh)
  state = make_state(recipe, layout, batches[0])
  return state, make_step(recipe, layout), batches


def run(recipe, steps=3, **where):
  """Host copies of the states after 0 .. steps steps, and the last metrics."""
  state, step, batches = prepare(recipe, **where)
  states, metrics = [jax.device_get(state)], {}
  for index in range(steps):
    state, metrics = step(state, batches[index])
    states.append(jax.device_get(state))
  return states, jax.device_get(metrics)


def assert_close(a, b, rtol=1e-5, atol=1e-6):
  left, right = named_leaves(a), named_leaves(b)
  assert left.keys() == right.keys()
  for name, leaf in left.items():
    np.testing.assert_allclose(leaf, right[name], rtol, atol, err_msg=name)


def test_one_step_of_sgd_is_the_gradient():
  recipe = make_recipe(optimizers=SGD)
  (before, after), metrics = run(recipe, steps=1)
  task, x = recipe.task, jnp.asarray(make_rows(0, 0, 8))

  def loss(params):
    variables = {"params": params, **before.collections}
    return task.losses(variables, {"x": x}, jax.random.key(0), jnp.int32(0)).players[
      "model"
    ]

  value, gradient = jax.value_and_grad(loss)(before.params)
  expected = jax.tree.map(lambda p, g: p - 0.1 * g, before.params, gradient)
  assert_close(after.params, expected)
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
  np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(gradient), 1e-5)
  assert after.step == 1


@pytest.mark.parametrize("devices", [1, 4])
def test_accumulation_equals_the_big_batch(devices):
  base = make_recipe(batch_size=32, optimizers=SGD, task=Still())
  whole, _ = run(base)
  parts, _ = run(dataclasses.replace(base, accumulate=4), devices=devices)
  assert_close(whole[-1].params, parts[-1].params)


def test_micro_batches_update_collections_one_after_the_other():
  recipe = make_recipe(batch_size=8, accumulate=2, optimizers=SGD)
  (before, after), _ = run(recipe, steps=1)
  mean = before.collections
  x = make_rows(0, 0, 8)
  for rows in (x[0::2], x[1::2]):
    variables = {"params": before.params, **mean}
    mean = recipe.task.losses(
      variables, {"x": jnp.asarray(rows)}, jax.random.key(0), jnp.int32(0)
    ).updates
  assert_close(after.collections, mean)


@pytest.mark.parametrize("shape", [MeshShape(8), MeshShape(1, 8), MeshShape(2, 2, 2)])
def test_any_mesh_gives_the_same(shape):
  task = Linear(AutoEncoder(hidden=128), noise=0.1)
  recipe = make_recipe(task=task, batch_size=16, ema=0.5, optimizers=SGD)
  one, _ = run(recipe)
  many, _ = run(recipe, devices=8, mesh_shape=shape)
  assert_close(one[-1].params, many[-1].params, rtol=1e-4, atol=1e-5)
  assert_close(one[-1].collections, many[-1].collections, rtol=1e-4, atol=1e-5)


def test_moments_and_averages_lie_with_their_parameters():
  recipe = make_recipe(
    task=Linear(AutoEncoder(hidden=128)),
    ema=0.9,
    sharding=(("blocks_0/.*kernel", ("model", None)),),
  )
  state, step, batches = prepare(recipe, 8, MeshShape(2, 2, 2))
  state, _ = step(state, batches[0])
  leaves = named_leaves(state)
  for path in ("blocks_0/Dense_0/kernel", "blocks_1/Dense_0/kernel"):
    wanted = leaves[f"params/{path}"].sharding
    assert not wanted.is_fully_replicated
    same = [name for name in leaves if name.endswith(path)]
    assert len(same) == 4, same  # params, ema, and the two moments of adam
    assert {leaves[name].sharding for name in same} == {wanted}


def test_frozen_parameters_stay_and_carry_no_optimizer_state():
  states, _ = run(make_recipe(freeze=("encoder", "blocks_0/.*bias"), ema=0.9))
  first, last = named_leaves(states[0]), named_leaves(states[-1])
  for name in first:
    frozen = "encoder/" in name or ("blocks_0" in name and "bias" in name)
    if name.startswith(("params/", "ema/")):
      assert np.array_equal(first[name], last[name]) == frozen, name
    if name.startswith("opt_states/"):
      assert not frozen, name


def test_each_player_follows_its_own_loss():
  sgd = Optimizer("sgd", peak_lr=0.1, schedule="constant", b1=0.0)
  recipe = make_recipe(task=Game(), optimizers={"model": sgd, "critic": sgd})
  (before, after), metrics = run(recipe, steps=1)
  (_, alone), _ = run(make_recipe(optimizers={"model": sgd}), steps=1)
  moved = jax.tree.map(lambda a, b: a - b, after.params, before.params)
  alone = jax.tree.map(lambda a, b: a - b, alone.params, before.params)
  assert_close(moved["encoder"], alone["encoder"])
  expected = jax.tree.map(lambda leaf: -0.1 * leaf, alone["decoder"])
  assert_close(moved["decoder"], expected)
  assert {"loss/model", "loss/critic", "grad_norm/critic", "lr/model"} <= set(metrics)


def test_a_player_starts_at_its_step():
  late = Optimizer("adam", peak_lr=0.1, warmup_steps=2, start_step=2)
  recipe = make_recipe(
    task=Game(), optimizers={"model": Optimizer(), "critic": late}, steps=8
  )
  state, step, batches = prepare(recipe)
  seen, rates = [jax.device_get(state)], []
  for batch in [*batches, batches[0]]:
    state, metrics = step(state, batch)
    seen.append(jax.device_get(state))
    rates.append(float(metrics["lr/critic"]))
  decoders = [s.params["decoder"]["kernel"] for s in seen]
  # Steps 0 and 1 wait, step 2 warms up from a learning rate of 0, step 3 moves.
  assert np.array_equal(decoders[0], decoders[3])
  assert not np.array_equal(decoders[3], decoders[4])
  assert not np.any(named_leaves(seen[2].opt_states["critic"])["0/mu/decoder/kernel"])
  np.testing.assert_allclose(rates[:5], [0, 0, 0, 0.05, 0.1], atol=1e-7)


def test_the_rate_of_a_player_that_sits_out_goes_on():
  @dataclasses.dataclass(frozen=True)
  class Turns(Game):
    def losses(self, variables, batch, rng, step):
      found = super().losses(variables, batch, rng, step)
      return found.replace(turns={"critic": step % 2 == 1})

  falling = Optimizer("sgd", peak_lr=0.4, schedule="linear", b1=0.0)
  still = Optimizer("sgd", peak_lr=0.0, schedule="constant", b1=0.0)
  recipe = make_recipe(
    task=Turns(), optimizers={"model": still, "critic": falling}, steps=4
  )
  state, step, batches = prepare(recipe)
  moved = []
  for batch in batches:
    before = jax.device_get(state.params["decoder"])
    state, metrics = step(state, batch)
    after = jax.device_get(state.params["decoder"])
    change = optax.global_norm(jax.tree.map(lambda a, b: a - b, after, before))
    moved.append(float(change) / float(metrics["grad_norm/critic"]))
  # 0.4, 0.3, 0.2, 0.1 by the run's steps; the first and the third are not its turn.
  np.testing.assert_allclose(moved, [0, 0.3, 0, 0.1], rtol=1e-3)


def test_ema_is_the_moving_average():
  states, _ = run(make_recipe(ema=0.75))
  mean = states[0].params
  for state in states[1:]:
    mean = jax.tree.map(lambda m, p: 0.75 * m + 0.25 * p, mean, state.params)
  assert_close(states[-1].ema, mean)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_masters():
  seen = {}

  @dataclasses.dataclass(frozen=True)
  class Spy(Linear):
    def losses(self, variables, batch, rng, step):
      seen.update(named_leaves({**variables, "batch": dict(batch)}))
      return super().losses(variables, batch, rng, step)

  recipe = make_recipe(task=Spy(), compute_dtype="bfloat16", ema=0.9)
  low, _ = run(recipe)
  dtypes = {name.split("/")[0]: leaf.dtype for name, leaf in seen.items()}
  assert dtypes == {
    "params": jnp.bfloat16,
    "batch": jnp.bfloat16,
    "codebook": jnp.float32,
  }
  leaves = named_leaves(low[-1])
  assert all(
    leaf.dtype == np.float32 for leaf in leaves.values() if leaf.dtype.kind == "f"
  )
  high, _ = run(make_recipe(ema=0.9))
  assert_close(low[-1].params, high[-1].params, rtol=0, atol=0.02)


def test_a_task_keeps_what_it_names_exact():
  seen = []

  @dataclasses.dataclass(frozen=True)
  class Exact(Linear):
    exact = ("x",)

    def losses(self, variables, batch, rng, step):
      seen.append(batch["x"].dtype)
      return super().losses(variables, batch, rng, step)

  run(make_recipe(task=Exact(), compute_dtype="bfloat16"), steps=1)
  assert set(seen) == {jnp.dtype("float32")}


def test_small_updates_are_not_lost_in_bfloat16():
  # 1 + 1e-4 is 1 in bfloat16; a float32 master adds up a hundred of them.
  slow = {"model": Optimizer("sgd", peak_lr=1e-4, schedule="constant", b1=0.0)}
  recipe = make_recipe(compute_dtype="bfloat16", optimizers=slow, steps=100)
  state, step, batches = prepare(recipe)
  before = jax.device_get(state.params)
  for index in range(20):
    state, _ = step(state, batches[index % 4])
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, before)
  assert all(0 < leaf < 0.01 for leaf in jax.tree.leaves(jax.device_get(moved)))


@pytest.mark.parametrize("remat", ["blocks", "dots"])
def test_rematerialisation_changes_nothing_but_memory(remat):
  base = make_recipe(task=Linear(AutoEncoder(depth=4), noise=0.1))
  kept, _ = run(base)
  again, _ = run(dataclasses.replace(base, remat=remat))
  assert_close(kept[-1], again[-1])


def test_rematerialisation_recomputes_what_it_says():
  def count(remat):
    recipe = make_recipe(task=Linear(AutoEncoder(depth=4)), remat=remat)
    state, _, batches = prepare(recipe)
    layout = lay_out(recipe, batches[0], make_mesh(MeshShape(), jax.devices()[:1]))
    each = gradients(recipe.task, recipe, layout.assignment)
    text = str(jax.make_jaxpr(each)(state, batches[0], jax.random.key(0)))
    return text.count(" tanh "), text.count(" dot_general[")

  # Four blocks, tanh then product; encoder and decoder are products outside of blocks.
  assert count("none") == (4, 17)
  assert count("dots") == (8, 17)
  assert count("blocks") == (8, 17 + 2)


def flops(function, *arguments):
  cost = jax.jit(function).lower(*arguments).compile().cost_analysis()
  return (cost[0] if isinstance(cost, list) else cost)["flops"]


def test_one_player_costs_one_forward_and_backward_and_a_second_shares_the_forward():
  x = jnp.zeros((64, 256))
  key = jax.random.key(0)

  def cost(recipe):
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    layout = lay_out(recipe, {"x": x}, mesh)
    state = make_state(recipe, layout, {"x": x})
    return flops(
      gradients(recipe.task, recipe, layout.assignment), state, {"x": x}, key
    )

  model = AutoEncoder(hidden=256, depth=4)
  recipe = make_recipe(task=Linear(model))
  variables = model.init(key, x)

  def plain(params):
    return recipe.task.losses(
      {**variables, "params": params}, {"x": x}, key, jnp.int32(0)
    ).players["model"]

  one = cost(recipe)
  assert one == pytest.approx(flops(jax.grad(plain), variables["params"]), rel=0.02)
  both = {"model": Optimizer(), "critic": Optimizer()}
  two = cost(make_recipe(task=Game(model), optimizers=both))
  assert two < 1.1 * one  # the critic is the last layer: its backward pass is short


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon"])
def test_every_optimizer_lowers_the_loss(name):
  chosen = Optimizer(name, peak_lr=0.02, clip_norm=1.0, warmup_steps=2)
  recipe = make_recipe(optimizers={"model": chosen}, steps=40)
  state, step, batches = prepare(recipe, 4, MeshShape(2, 2))
  losses = []
  for index in range(40):
    state, metrics = step(state, batches[index % 4])
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4]), losses


def test_clipping_bounds_the_players_gradient():
  clipped = {"model": dataclasses.replace(SGD["model"], clip_norm=1e-3)}
  (before, after), metrics = run(make_recipe(optimizers=clipped), steps=1)
  moved = jax.tree.map(lambda a, b: a - b, after.params, before.params)
  np.testing.assert_allclose(optax.global_norm(moved), 0.1 * 1e-3, rtol=1e-3)
  assert metrics["grad_norm"] > 1e-2  # the log tells the norm before clipping


def test_weight_decay_spares_gains_and_biases():
  decayed = Optimizer("sgd", peak_lr=0.1, b1=0.0, weight_decay=0.5, schedule="constant")
  params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
  rule = make_optimizer(decayed, 10)
  zeros = jax.tree.map(jnp.zeros_like, params)
  with jax.numpy_dtype_promotion("standard"):
    moved, _ = rule.update(zeros, rule.init(params), params)
  np.testing.assert_allclose(moved["kernel"], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(moved["bias"], 0.0)


def test_weight_decay_spares_what_the_recipe_names():
  decayed = Optimizer(
    "sgd",
    peak_lr=0.1,
    b1=0.0,
    weight_decay=0.5,
    schedule="constant",
    no_decay=("embed",),
  )
  params = {
    "class_embedding": jnp.ones((2, 2)),
    "dense/kernel": jnp.ones((2, 2)),
    "dense/bias": jnp.ones(2),
  }
  zeros = jax.tree.map(jnp.zeros_like, params)
  for axes, bias in ((2, 0.0), (1, -0.05)):
    rule = make_optimizer(dataclasses.replace(decayed, decay_axes=axes), 10)
    with jax.numpy_dtype_promotion("standard"):
      moved, _ = rule.update(zeros, rule.init(params), params)
    np.testing.assert_allclose(moved["dense/kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(moved["class_embedding"], 0.0)
    np.testing.assert_allclose(moved["dense/bias"], bias, rtol=1e-6)


@pytest.mark.parametrize(
  ("kind", "expected"),
  [
    ("constant", [0.0, 1.0, 1.0, 1.0]),
    ("linear", [0.0, 1.0, 0.55, 0.1]),
    ("cosine", [0.0, 1.0, 0.55, 0.1]),
    ("rsqrt", [0.0, 1.0, (1 / 3) ** 0.5, (1 / 5) ** 0.5]),
  ],
)
def test_schedules(kind, expected):
  config = Optimizer(peak_lr=1.0, end_lr=0.1, schedule=kind, warmup_steps=10)
  rate = schedule(config, 50)
  np.testing.assert_allclose([rate(s) for s in (0, 10, 30, 50)], expected, rtol=1e-5)


def test_a_schedule_that_holds_and_one_that_drops():
  shape = {"peak_lr": 1.0, "warmup_steps": 10, "start_lr": 0.2}
  held = Optimizer(end_lr=0.1, schedule="linear", hold=0.25, **shape)
  rate = schedule(held, 50)
  found = [rate(s) for s in (0, 5, 10, 20, 35, 50)]
  np.testing.assert_allclose(found, [0.2, 0.6, 1.0, 1.0, 0.55, 0.1], rtol=1e-5)
  dropped = Optimizer(schedule="drops", drops=(20, 40), **shape)
  rate = schedule(dropped, 50)
  found = [rate(s) for s in (10, 19, 21, 39, 41)]
  np.testing.assert_allclose(found, [1.0, 1.0, 0.1, 0.1, 0.01], rtol=1e-5)
  with pytest.raises(TokzooError, match="drops at step 10, before it has warmed up"):
    schedule(dataclasses.replace(dropped, drops=(10, 40)), 50)


def test_a_schedule_that_falls_by_a_factor_at_every_step():
  fast = Optimizer(peak_lr=1.0, schedule="exponential", decay=0.9, warmup_steps=10)
  found = [schedule(fast, 50)(s) for s in (5, 10, 11, 50)]
  np.testing.assert_allclose(found, [0.5, 1.0, 0.9, 0.9**40], rtol=1e-5)
  with pytest.raises(TokzooError, match=r"multiplied by 1\.1 at every step"):
    schedule(dataclasses.replace(fast, decay=1.1), 50)


def test_dacs_published_rate_is_that_of_its_authors():
  """scripts/train.py: both optimizers' ExponentialLR steps after every update."""
  rate, recipe = 1e-4, load_experiment("dac").RECIPES["24khz"]()
  theirs = {}
  for update in range(recipe.steps):
    if update in (0, 1, 1_000, 399_999):
      theirs[update] = rate
    rate *= 0.999996
  assert len(theirs) == 4 and theirs[399_999] < 0.21e-4
  for player in ("model", "discriminator"):
    ours = schedule(recipe.optimizers[player], recipe.steps)
    for update, expected in theirs.items():
      np.testing.assert_allclose(ours(update), expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"optimizers": {"modle": Optimizer()}}, "did you mean 'model'"),
    ({"task": Game()}, "no optimizer for the task's player 'critic'"),
    ({"freeze": ("encodr",)}, "'encodr' matches no parameter"),
    ({"freeze": (".*",)}, "nothing is left for the player 'model'"),
    ({"optimizers": {"model": Optimizer(warmup_steps=99)}}, "does not fit a run of 12"),
    ({"optimizers": {"model": Optimizer(start_step=12)}}, "does not fit a run of 12"),
    ({"optimizers": {"model": Optimizer("adam", weight_decay=1.0)}}, "use adamw"),
  ],
)
def test_recipes_that_do_not_fit_the_task(changes, words):
  mesh = make_mesh(MeshShape(), jax.devices()[:1])
  with pytest.raises(TokzooError, match=words):
    lay_out(make_recipe(**changes), {"x": jnp.zeros((8, 8))}, mesh)


def test_initialisation_does_not_depend_on_the_mesh():
  recipe = make_recipe(task=Linear(AutoEncoder(hidden=128)), seed=3)
  one, _, _ = prepare(recipe)
  many, _, _ = prepare(recipe, 8, MeshShape(1, 8))
  for name, leaf in named_leaves(jax.device_get(one)).items():
    np.testing.assert_array_equal(leaf, named_leaves(jax.device_get(many))[name])
