"""StyleGAN's discriminator in NumPy, R1 by hand, and both in the recipe of MaskGIT's tokenizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.cli.experiments import load_experiment
from tokzoo.errors import TokzooError
from tokzoo.losses.adversarial import gradient_penalty
from tokzoo.nn.discriminator import PatchGAN
from tokzoo.nn.style_discriminator import StyleDiscriminator
from tokzoo.train.adversary import Adversary, play, start

SMALL = StyleDiscriminator(budget=64, most=6)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


def convolved(x, kernel, strides=1, bias=0.0):
  """A "SAME" convolution, tap by tap."""
  taps = len(kernel)
  before = (taps - strides) // 2
  pad = (before, taps - strides - before)
  padded = np.pad(x, ((0, 0), pad, pad, (0, 0)))
  sides = [size // strides for size in x.shape[1:3]]
  out = np.zeros((len(x), *sides, kernel.shape[-1]))
  for i in range(taps):
    for j in range(taps):
      seen = padded[:, i:, j:][:, ::strides, ::strides][:, : sides[0], : sides[1]]
      out += seen @ kernel[i, j]
  return out + bias


def halved(x):
  taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
  return convolved(x, taps[..., None, None] * np.eye(x.shape[-1]), 2)


def leaky(x):
  return np.where(x > 0, x, 0.2 * x)


def by_hand(params, image):
  def conv(name, x, of=params):
    return convolved(x, of[name]["kernel"], bias=of[name].get("bias", 0.0))

  x = leaky(conv("conv_in", (image + 1) / 2))
  for side in (8, 4):
    of = params[f"to_{side}"]
    h = leaky(conv("conv_1", halved(leaky(conv("conv_0", x, of))), of))
    x = (conv("shortcut", halved(x), of) + h) / np.sqrt(2)
  x = leaky(conv("conv_out", x)).reshape(len(x), -1)
  x = leaky(x @ params["dense"]["kernel"] + params["dense"]["bias"])
  return x @ params["logits"]["kernel"] + params["logits"]["bias"]


@pytest.fixture(scope="module")
def params():
  made = jax.jit(SMALL.init)(jax.random.key(0), IMAGES)["params"]
  rng = np.random.default_rng(1)

  def noise(leaf):
    return np.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), np.float32)

  return jax.tree.map(noise, made)


def test_the_network_by_hand(params):
  logits = jax.jit(SMALL.apply)({"params": params}, IMAGES)
  assert logits.shape == (2, 1)
  np.testing.assert_allclose(logits, by_hand(params, IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "count"), [(256, 23_998_017), (512, 24_026_913)])
def test_the_published_sizes(side, count):
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  shapes = jax.eval_shape(StyleDiscriminator().init, jax.random.key(0), image)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
  assert shapes["params"]["conv_in"]["kernel"].shape == (3, 3, 3, 2**14 // side)


@pytest.mark.parametrize("size", [(12, 12), (16, 8), (4, 4)])
def test_pictures_that_do_not_fit(size):
  with pytest.raises(TokzooError, match=f"of {size[0]} x {size[1]} pixels: crop them"):
    jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


def test_the_gradient_penalty_by_differences(params):
  found = float(gradient_penalty(lambda x: SMALL.apply({"params": params}, x), IMAGES))
  rng, squares = np.random.default_rng(2), []
  image = IMAGES.astype(np.float64)
  for _ in range(400):  # the mean of squared slopes along random directions
    step = rng.normal(size=image.shape)
    rise = by_hand(params, image + 1e-5 * step) - by_hand(params, image - 1e-5 * step)
    squares.append(np.square(rise / 2e-5).mean())
  assert found == pytest.approx(np.mean(squares), rel=0.25)

  def linear(x):
    return 3 * x[..., :1].sum((1, 2))

  # 16 x 16 slopes of 3 for each picture, whatever the picture.
  assert float(gradient_penalty(linear, IMAGES)) == pytest.approx(256 * 9, rel=1e-5)


def test_the_penalty_is_the_discriminators_alone(params):
  plain = Adversary(network=SMALL, discriminator="non_saturating")
  shown = jnp.asarray(IMAGES[::-1])

  strict = dataclasses.replace(plain, gradient_penalty=3.0)
  found = play(strict, params, {}, IMAGES, shown)
  without = play(plain, params, {}, IMAGES, shown)
  penalty = float(found.metrics["gradient_penalty"])
  assert penalty > 0 and found.fooling == without.fooling
  assert float(found.telling - without.telling) == pytest.approx(3 * penalty, rel=1e-4)

  @jax.jit
  def loss(params, shown):
    return play(strict, params, {}, IMAGES, shown).telling

  of_params, of_shown = jax.jit(jax.grad(loss, (0, 1)))(params, shown)
  assert not np.any(of_shown)
  moved = jax.tree.map(lambda p, g: p - 1e-3 * g, params, of_params)
  assert loss(moved, shown) < loss(params, shown)


def test_a_penalty_needs_a_network_of_single_pictures():
  adversary = Adversary(network=PatchGAN(8, 1), gradient_penalty=1.0)
  params, state = start(adversary, jax.random.key(0), jnp.asarray(IMAGES))
  with pytest.raises(TokzooError, match="but PatchGAN normalises by the batch"):
    jax.eval_shape(lambda p: play(adversary, p, state, IMAGES, IMAGES).telling, params)


def test_the_published_recipe_of_maskgits_tokenizer():
  recipe = load_experiment("maskgit-vqgan").RECIPES["imagenet-256"]()
  task = recipe.task
  assert task.adversary.network == StyleDiscriminator()
  model = dataclasses.replace(
    task.model, width=8, multipliers=(1, 2), res_blocks=1, norm_groups=4, num_codes=16
  )
  adversary = dataclasses.replace(task.adversary, network=SMALL)
  small = dataclasses.replace(task, model=model, perceptual=(), adversary=adversary)
  batch, key = {"image": jnp.asarray(IMAGES)}, jax.random.key(0)
  variables = jax.jit(small.init)(key, batch)

  @jax.jit
  def measured(variables):
    return small.losses(variables, batch, key, jnp.int32(0))

  found = measured(variables)
  m = found.metrics
  quantizer = 0.25 * m["commitment"] + m["codebook"]
  entropies = 0.1 * (m["sample_entropy"] - m["batch_entropy"])
  assert float(m["batch_entropy"]) > 0
  # From the first step on both players count.
  np.testing.assert_allclose(
    found.players["model"],
    m["l2"] + quantizer + entropies + 0.1 * m["adversarial"],
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    found.players["discriminator"],
    m["discriminator"] + 40 * m["gradient_penalty"],
    rtol=1e-5,
  )
  # What the claims and the packaged checkpoint train with is the port's.
  assert load_experiment("maskgit-vqgan").RECIPES["nano"]().task.weights == {
    "commitment": 1.0,
    "codebook": 0.25,
  }
