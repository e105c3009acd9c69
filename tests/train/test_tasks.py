"""The two general tasks: players, tiles, teachers, rows that only fill, bad batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.generators.instella_t2i import ARConfig, DiffusionConfig
from tokzoo.nn.discriminator import Discriminator
from tokzoo.tokenizers.image.instella_t2i import Config
from tokzoo.tokens import Tokens
from tokzoo.train.adversary import Adversary, LeCam
from tokzoo.train.tasks import Generation, Reconstruction

TOKENIZER = Config(
  image_size=8,
  patch=4,
  num_tokens=2,
  bits=4,
  width=16,
  layers=1,
  head_dim=8,
  down_after=(),
  decoder_width=16,
  decoder_layers=2,
  decoder_head_dim=8,
  up_after=(),
  rope_dims=(2, 2, 4),
  span=None,
)
GENERATOR = {
  "num_tokens": 2,
  "bits": 4,
  "width": 16,
  "layers": 1,
  "head_dim": 8,
  "condition_width": 8,
  "num_classes": 3,
}
STEP = np.int32(5)


def start(task, rng, batch):
  """`task.init`, compiled: operation by operation it takes ten times as long."""
  return jax.jit(task.init)(rng, batch)


def losses(task, variables, batch, rng, step=STEP):
  return jax.jit(task.losses)(variables, batch, rng, step)


def evaluate(task, variables, batch, rng):
  return jax.jit(task.evaluate)(variables, batch, rng)


@pytest.fixture
def images() -> np.ndarray:
  return np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)


def test_tiles_are_cut_and_joined(images, rng):
  tiled = Reconstruction(model=TOKENIZER, tile=True)
  variables = start(tiled, rng, {"image": images})
  cut = images.reshape(4, 2, 8, 2, 8, 3).swapaxes(2, 3).reshape(16, 8, 8, 3)
  module = TOKENIZER.build()
  by_hand = jax.jit(module.apply)(variables, jnp.asarray(cut)).reconstruction
  error = np.mean((np.clip(by_hand, -1, 1) - cut) ** 2)
  found = evaluate(tiled, variables, {"image": jnp.asarray(images)}, rng)
  pooled = found["psnr"].compute()["pooled_db"]
  np.testing.assert_allclose(pooled, 10 * np.log10(4 / error), rtol=1e-5)
  # 2 tokens of 4 bits for 64 pixels.
  assert found["bits_per_pixel"].compute() == pytest.approx(8 / 64)


def test_tiles_must_fit(rng):
  tiled = Reconstruction(model=TOKENIZER, tile=True)
  with pytest.raises(TokzooError, match="12 x 12 pixels cannot be cut to tiles of 8"):
    tiled.init(rng, {"image": jnp.zeros((1, 12, 12, 3))})


def test_rows_that_only_fill_do_not_count(images, rng):
  task = Reconstruction(model=TOKENIZER, tile=True)
  variables = start(task, rng, {"image": images})
  valid = jnp.array([True, True, False, False])
  wild = np.array(images)
  wild[2:] = 0.5
  some = evaluate(task, variables, {"image": jnp.asarray(wild), "valid": valid}, rng)
  first = evaluate(task, variables, {"image": jnp.asarray(images[:2])}, rng)
  for name, state in first.items():
    assert some[name].compute() == pytest.approx(state.compute(), rel=1e-5), name


def test_each_player_minds_its_own_parameters(images, rng):
  adversary = Adversary(weight=0.1, start_step=0, network=Discriminator(8, 1))
  task = Reconstruction(model=TOKENIZER, adversary=adversary, tile=True)
  batch = {"image": jnp.asarray(images)}
  variables = start(task, rng, batch)
  assert set(task.players) == {"discriminator", "model"}

  def gradient(player):
    def loss(params):
      found = task.losses({**variables, "params": params}, batch, rng, STEP)
      return found.players[player]

    return jax.jit(jax.grad(loss))(variables["params"])

  critic = jax.device_get(gradient("discriminator"))
  assert any(np.any(g != 0) for g in jax.tree.leaves(critic["discriminator"]))
  critic.pop("discriminator")
  assert all(np.all(g == 0) for g in jax.tree.leaves(critic))
  plain = dataclasses.replace(task, adversary=None)
  alone = {k: v for k, v in variables["params"].items() if k != "discriminator"}

  def without(params):
    return plain.losses({"params": params}, batch, rng, STEP).players["model"]

  calm = jax.jit(jax.grad(without))(alone)
  fooled = gradient("model")["to_pixel"]["kernel"]
  assert not np.allclose(fooled, calm["to_pixel"]["kernel"])


def test_the_adversary_waits_for_its_start(images, rng):
  adversary = Adversary(start_step=100, network=Discriminator(8, 1))
  task = Reconstruction(model=TOKENIZER, adversary=adversary, tile=True)
  batch = {"image": jnp.asarray(images)}
  variables = start(task, rng, batch)
  before = losses(task, variables, batch, rng, np.int32(99))
  after = losses(task, variables, batch, rng, np.int32(100))
  assert before.players["discriminator"] == 0 < after.players["discriminator"]
  assert before.players["model"] == before.metrics["smooth_l1"]


@pytest.mark.parametrize("waits", [True, False])
def test_the_means_of_lecam_may_wait_for_the_adversary(images, rng, waits):
  lecam = LeCam(waits=waits)
  adversary = Adversary(start_step=100, network=Discriminator(8, 1), lecam=lecam)
  task = Reconstruction(model=TOKENIZER, adversary=adversary, tile=True)
  batch = {"image": jnp.asarray(images)}
  variables = start(task, rng, batch)
  before = losses(task, variables, batch, rng, np.int32(99)).updates["discriminator"]
  after = losses(task, variables, batch, rng, np.int32(100)).updates["discriminator"]
  assert (before["lecam"]["real"] == 0) == waits
  assert after["lecam"]["real"] != 0


def test_a_teacher_is_aligned_with(images, rng):
  model = dataclasses.replace(TOKENIZER, repa_dim=6)
  task = Reconstruction(model=model, weights={"repa": 0.5}, tile=True)
  teacher = jax.random.normal(rng, (16, 4, 6))
  batch = {"image": jnp.asarray(images), "teacher": teacher}
  variables = start(task, rng, batch)
  found = losses(task, variables, batch, rng)
  assert 0 < found.metrics["repa"] < 2
  expected = found.metrics["smooth_l1"] + 0.5 * found.metrics["repa"]
  np.testing.assert_allclose(found.players["model"], expected, rtol=1e-6)


def test_a_weight_of_no_loss_is_refused(images, rng):
  task = Reconstruction(model=TOKENIZER, weights={"comitment": 1.0}, tile=True)
  batch = {"image": jnp.asarray(images)}
  with pytest.raises(TokzooError, match=r"'comitment'.*batch_entropy, code"):
    losses(task, start(task, rng, batch), batch, rng)


@pytest.mark.parametrize(
  "config", [ARConfig(**GENERATOR), DiffusionConfig(**GENERATOR)]
)
def test_a_generator_learns_a_single_token(config, rng):
  bits = np.zeros((8, 2, 4), np.float32)
  bits[:, :, ::2] = 1
  packed = Tokens.from_bits(jnp.asarray(bits)).packed
  batch = {"packed": packed, "label": jnp.zeros(8, jnp.int32)}
  task = Generation(model=config)
  variables = start(task, rng, batch)

  @jax.jit
  def step(variables, index):
    def loss(variables):
      rng = jax.random.key(index)
      return task.losses(variables, batch, rng, index).players["model"]

    value, gradient = jax.value_and_grad(loss)(variables)
    return value, jax.tree.map(lambda w, g: w - 0.3 * g, variables, gradient)

  first, variables = step(variables, 0)
  for index in range(1, 60):
    last, variables = step(variables, index)
  assert last < 0.3 * first


def test_generation_says_what_the_data_lacks(rng):
  task = Generation(model=ARConfig(**GENERATOR))
  with pytest.raises(TokzooError, match="trains on tokens, but the data has image"):
    task.init(rng, {"image": jnp.zeros((1, 8, 8, 3))})
  packed = jnp.zeros((1, 2, 1), jnp.uint32)
  with pytest.raises(TokzooError, match="conditioned on label"):
    task.init(rng, {"packed": packed})
  text = Generation(model=ARConfig(**{**GENERATOR, "num_classes": None}))
  with pytest.raises(TokzooError, match="features and text_mask"):
    text.init(rng, {"packed": packed})
