"""FlexTok beyond parity: prefixes, causality, guidance, sizes, tables, training, bad input."""

import collections
import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.image import flextok as experiment
from tests.parity.base import compare, comparisons, compiled
from tokzoo.data import loader
from tokzoo.errors import TokzooError
from tokzoo.files import read_safetensors
from tokzoo.generators import flextok as generators
from tokzoo.hub import abstract_variables
from tokzoo.hub.catalog import catalog
from tokzoo.losses import dinov2
from tokzoo.nn.flow_matching import adaptive_projected, euler
from tokzoo.tokenizers.image import flextok
from tokzoo.tokenizers.image.flextok import (
  Alignment,
  Config,
  RectifiedFlow,
  Size,
  VAEConfig,
)
from tokzoo.tokens import Tokens
from tokzoo.train.state import variables_of_model
from tokzoo.weights import flatten, write_safetensors

FIXTURE = Path(__file__).parents[1] / "parity" / "data" / "flextok-tiny.safetensors"

VAE = VAEConfig(
  image_size=4, latent_channels=2, width=4, multipliers=(1, 1), blocks=1, groups=2
)
TINY = Config(
  image_size=4,
  vae=None,
  num_tokens=4,
  levels=(8, 5),
  encoder=Size(16, 1),
  decoder=Size(16, 1),
  head_dim=8,
  time_features=8,
  steps=2,
)
WITH_VAE = dataclasses.replace(TINY, vae=VAE, patch=1)
AR = generators.Config(
  num_tokens=4, vocab=40, width=16, layers=2, heads=2, num_classes=3, multiple_of=8
)
IMAGE = np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 3)).astype(np.float32)
LABELS = jnp.array([0, 2])


@functools.cache
def drawn(config) -> dict:
  """Random variables; no gate is zero, as the initialisation would have it."""
  draw = np.random.default_rng(1)

  def random(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    fan_in = int(np.prod(leaf.shape[:-1])) or 1
    return draw.normal(size=leaf.shape, scale=1.5 / fan_in**0.5).astype(leaf.dtype)

  return jax.tree.map(random, abstract_variables(config))


@functools.cache
def encode(num_tokens: int | None = None):
  """A compiled encoder of IMAGE."""
  apply = functools.partial(TINY.build().apply, method="encode", num_tokens=num_tokens)
  return compiled(apply)(drawn(TINY), IMAGE)


@compiled
def decode(tokens: Tokens, key):
  return TINY.build().apply(drawn(TINY), tokens, rng=key, method="decode")


def test_the_fixture():
  rows = compare(FIXTURE)
  assert [row for row in rows if not row.passed] == [] and len(rows) > 20
  assert "flextok" in comparisons()


def test_a_changed_parameter_goes_red(tmp_path):
  tensors, metadata = read_safetensors(FIXTURE, "fixture")
  key = "param/decoder.module_dict.dec_nested_dropout.dropout_mask_token"
  token = tensors[key].copy()
  token[::2] += 0.1  # LayerNorm would not see the same step in every feature
  changed = {**tensors, key: token}
  write_safetensors(tmp_path / FIXTURE.name, changed, metadata)
  red = {row.name for row in compare(tmp_path / FIXTURE.name) if not row.passed}
  assert "out/velocity_keep" in red and "out/velocity_full" not in red


def test_fewer_tokens_are_the_first_of_all():
  ids = encode().ids
  for k in (1, 3):
    np.testing.assert_array_equal(encode(k).ids, ids[:, :k])
  assert len(np.unique(ids)) > 2


def test_decoding_reads_prefixes_and_draws():
  tokens, key = encode(), jax.random.key(0)
  whole = decode(tokens, key)
  np.testing.assert_array_equal(whole, decode(tokens, key))
  assert np.abs(decode(tokens, jax.random.key(1)) - whole).max() > 1e-3
  prefix = decode(Tokens.from_ids(tokens.ids[:, :2], 40), key)
  masked = tokens.replace(mask=jnp.broadcast_to(jnp.arange(4) < 2, (3, 4)))
  np.testing.assert_allclose(decode(masked, key), prefix, atol=1e-5)
  assert np.abs(whole - prefix).max() > 1e-3


def test_the_autoencoder_stands_before_and_behind():
  @compiled
  def run(variables, image, key):
    def both(m):
      latents = m.latents(image)
      return latents, m.latents(image, key), m.to_image(latents)

    return WITH_VAE.build().apply(variables, method=both)

  variables, key = drawn(WITH_VAE), jax.random.key(0)
  latents, posterior, made = run(variables, IMAGE, key)
  alone = {"params": variables["params"]["vae"]}
  output = compiled(VAE.build().apply)(alone, IMAGE)
  np.testing.assert_allclose(output.reconstruction, made, atol=1e-5)
  values = output.tokens.values.reshape(latents.shape)
  np.testing.assert_allclose(values, latents, atol=1e-5)
  assert np.abs(posterior - latents).max() > 1e-3
  # A scaled latent is as many numbers as its picture has places, at half the side.
  assert latents.shape == (3, 2, 2, 2) and made.shape == IMAGE.shape


def test_projected_guidance_is_bounded_and_across_the_prediction():
  c, u = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype(np.float32) * 9
  guided, running = adaptive_projected(c, u, 3.0, jnp.zeros_like(c))
  step = np.asarray(guided - c)
  np.testing.assert_allclose(running, c - u, rtol=1e-6)
  np.testing.assert_allclose((step * c).sum((1, 2, 3)), 0, atol=2e-3)
  assert (np.sqrt(np.square(step).sum((1, 2, 3))) <= 2 * 2.5 + 1e-4).all()
  _, second = adaptive_projected(c, u, 3.0, running)
  np.testing.assert_allclose(second, 0.5 * (c - u), rtol=1e-5, atol=1e-5)
  # All of the parallel part kept and no bound: plain guidance.
  plain, _ = adaptive_projected(
    c, u, 3.0, jnp.zeros_like(c), threshold=float("inf"), eta=1.0
  )
  np.testing.assert_allclose(plain, u + 3 * (c - u), rtol=1e-4, atol=1e-4)
  # Nothing to guide by is no division by zero.
  still, _ = adaptive_projected(c, c, 3.0, jnp.zeros_like(c))
  np.testing.assert_array_equal(still, c)


def test_euler_is_exact_on_straight_paths():
  data, noise = jnp.ones((2, 3)), jnp.array([[0.0, 5, -2], [1, 1, 1]])
  seen = euler(lambda x, t, m: (noise - data, m + t[0]), noise, 4, jnp.zeros(()))
  np.testing.assert_allclose(seen, data, atol=1e-6)


def test_the_tables_are_total_both_ways():
  for config, table in (
    (WITH_VAE, flextok.WEIGHTS),
    (VAE, flextok.VAE_WEIGHTS),
    (AR, generators.WEIGHTS),
  ):
    variables = drawn(config)
    state = table.to_authors(variables)
    again = flatten(table.to_ours(state, variables))
    for path, array in flatten(variables).items():
      np.testing.assert_array_equal(again[path], array)
    assert len(state) == len(again)
    with pytest.raises(TokzooError, match="lack"):
      table.to_ours(dict(list(state.items())[1:]), variables)


def test_the_published_file_of_d12_d12():
  like = abstract_variables(flextok.PRESETS["flextok-d12-d12-in1k"])
  assert {leaf.dtype for leaf in jax.tree.leaves(like)} == {jnp.dtype("float32")}
  # A byte for every number: names and shapes in the authors' layout for 0.3 GB.
  small = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), like)
  state = flextok.WEIGHTS.to_authors(small)
  shapes = {name: array.shape for name, array in state.items()}
  assert len(shapes) == 462
  count = collections.Counter()
  for name, shape in shapes.items():
    count[name.split(".")[0]] += int(np.prod(shape))
  # 335 MB of the published autoencoder's file are 83.7 M of float32; 0.3 B in all.
  assert count == {"encoder": 85_382_406, "decoder": 172_448_320, "vae": 83_821_011}
  dec, enc = "decoder.module_dict.dec", "encoder.module_dict.enc"
  assert {
    f"{enc}_patch_emb.patch_proj.weight": (768, 64),
    f"{enc}_posemb_module.posembs": (1, 768, 16, 16),
    f"{enc}_register_module.registers": (256, 768),
    f"{enc}_transformer.blocks.11.attn.wq.weight": (768, 768),
    f"{enc}_transformer.blocks.0.mlp.fc2.weight": (768, 2048),
    f"{enc}_to_latents.proj.weight": (6, 768),
    f"{dec}_registers_posemb_module.posembs": (1, 1, 768, 256),
    f"{dec}_nested_dropout.dropout_mask_token": (768,),
    f"{dec}_latent_dropout.nullcond": (768,),
    f"{dec}_time_embedder.mlp.0.weight": (768, 256),
    f"{dec}_transformer.blocks.11.adaLN_modulation.1.bias": (9216,),
    f"{dec}_to_patches.adaLN_modulation.1.weight": (1536, 768),
    "vae.vae.encoder.mid_block.attentions.0.to_out.0.weight": (512, 512),
    "vae.vae.decoder.up_blocks.2.upsamplers.0.conv.bias": (256,),
    "vae.vae.post_quant_conv.weight": (16, 16, 1, 1),
  }.items() <= shapes.items()


def test_the_other_published_sizes():
  # Encoder and decoder of the larger ones by the same formula, without tracing 30 layers.
  def side(size: Size, per_layer: float) -> float:
    return size.layers * per_layer * size.width**2 / 1e9

  for name, billions in (
    ("flextok-d18-d18-in1k", 0.9),
    ("flextok-d18-d28-in1k", 3),
    ("flextok-d18-d28-dfn", 3),
  ):
    c = flextok.PRESETS[name]
    assert c.encoder.width == 64 * c.encoder.layers
    # 12 width^2 of attention and MLP, and twice 6 of adaLN in the decoder.
    total = side(c.encoder, 12) + side(c.decoder, 24) + 0.084
    assert round(total, 0 if billions > 1 else 1) == billions
  for name, config in generators.PRESETS.items():
    said = {"m": 1e6, "b": 1e9}[name[-1]] * float(name.split("-")[-1][:-1])
    blocks = 12 * config.width**2 * config.layers
    assert abs(blocks - said) < 0.01 * said


def test_dinov2_is_the_published_size():
  like = Alignment().shapes()
  assert sum(leaf.size for leaf in jax.tree.leaves(like)) == 304_368_640
  names = dinov2.WEIGHTS.to_authors(
    jax.tree.map(lambda leaf: np.zeros((1,) * leaf.ndim), like)
  )
  assert {"pos_embed", "blocks.23.ls2.gamma", "blocks.0.attn.qkv.weight"} <= set(names)
  # Rows of the table's interpolation are weighted means.
  np.testing.assert_allclose(dinov2._bicubic(37, 16).sum(1), 1, atol=1e-6)


def test_the_nano_recipe_learns_and_leaves_the_autoencoder_alone():
  task = RectifiedFlow(WITH_VAE, None)
  assert not _is_trained(task, "vae/encoder/conv_in/kernel")
  assert _is_trained(task, "encoder/registers") and _is_trained(task, "projector/x")
  recipe = experiment.nano()
  small = dataclasses.replace(
    recipe.task.model, num_tokens=4, encoder=Size(32, 1), decoder=Size(32, 1)
  )
  task = dataclasses.replace(recipe.task, model=small)
  batch = next(loader(dataclasses.replace(recipe.data, repeat=20), 16, 0))

  optimizer = optax.adam(4e-3)

  @compiled
  def train(batch):
    def step(state, i):
      params, moments = state

      def loss(params):
        variables = {"params": params, "buffers": buffers}
        return task.losses(variables, batch, jax.random.key(i), i).players["model"]

      value, gradient = jax.value_and_grad(loss)(params)
      change, moments = optimizer.update(gradient, moments)
      return (optax.apply_updates(params, change), moments), value

    variables = task.init(jax.random.key(0), batch)
    params, buffers = variables["params"], variables["buffers"]
    state = params, optimizer.init(params)
    return jax.lax.scan(step, state, jnp.arange(120))[1]

  # The optimizer is no part of what these tests are strict about.
  with jax.numpy_dtype_promotion("standard"):
    losses = np.asarray(train(batch))
  assert losses[-20:].mean() < 0.6 * losses[:5].mean()


def _is_trained(task, path: str) -> bool:
  return any(re.match(pattern, path) for pattern in task.players.values())


def test_alignment_is_part_of_the_loss_and_no_part_of_the_model(monkeypatch):
  monkeypatch.setattr(
    Alignment,
    "features",
    lambda self, variables, image, side: (
      variables["w"] * jnp.ones((len(image), side**2, 112))
    ),
  )
  monkeypatch.setattr(
    Alignment, "shapes", lambda self: {"w": jax.ShapeDtypeStruct((), jnp.float32)}
  )
  alignment = Alignment("efficientnet-lite0", weight=2.0, block=1, hidden=8)
  task = RectifiedFlow(WITH_VAE, alignment)
  batch = {"image": jnp.asarray(IMAGE)}
  variables = compiled(task.init)(jax.random.key(0), batch)
  assert np.isnan(variables["teacher"]["w"])
  assert set(variables_of_model(variables)["params"]) == {"encoder", "decoder", "vae"}
  run = compiled(lambda v: task.losses(v, batch, jax.random.key(1), jnp.int32(0)))
  assert np.isnan(run(variables).players["model"])
  told = run({**variables, "teacher": {"w": jnp.ones(())}})
  expected = told.metrics["flow"] + 2 * told.metrics["repa"]
  np.testing.assert_allclose(told.players["model"], expected, rtol=1e-6)
  assert 0 < told.metrics["repa"] < 2
  with pytest.raises(TokzooError, match=r"block 2 was asked for.* has 1 blocks"):
    RectifiedFlow(TINY, dataclasses.replace(alignment, block=2))
  with pytest.raises(TokzooError, match=r"name the file dinov2_vitl14_pretrain\.pth"):
    Alignment().load()


def test_the_generator_stops_early_without_changing_its_mind():
  module: Any = AR.build()
  variables = drawn(AR)

  @functools.partial(jax.jit, static_argnums=1)
  def sample(key, k):
    settings = {"num_tokens": k, "guidance": 2.0, "method": "sample"}
    return module.apply(variables, key, LABELS, **settings).ids

  whole, short = sample(jax.random.key(0), None), sample(jax.random.key(0), 2)
  np.testing.assert_array_equal(whole[:, :2], short)
  np.testing.assert_array_equal(whole, sample(jax.random.key(0), None))
  assert (np.asarray(sample(jax.random.key(1), None)) != np.asarray(whole)).any()


def test_the_generators_cache_says_what_the_full_pass_says():
  module: Any = AR.build()
  variables = drawn(AR)
  ids = jnp.array([[0, 5, 39, 3], [1, 1, 6, 2]])
  forced = jax.jit(module.apply)(variables, ids, LABELS)
  step = jax.jit(lambda *xs: module.apply(variables, *xs, method="step"))
  logits, memory = jax.jit(lambda y: module.apply(variables, y, method="start"))(LABELS)
  for i in range(4):
    np.testing.assert_allclose(logits, forced[:, i], rtol=1e-4, atol=1e-5)
    if i < 3:
      logits, memory = step(ids[:, i], jnp.int32(i), memory)


def test_the_catalog_names_every_published_checkpoint():
  mine = {e.preset for e in catalog().values() if e.system == "flextok" and e.hub}
  assert mine == set(flextok.PRESETS) | set(flextok.VAE_PRESETS)


BAD = [
  ("encode", (IMAGE[:, :2],), {}, r"\[3, 2, 4, 3\] came.* \[B, 4, 4, 3\] only"),
  ("encode", (IMAGE,), {"num_tokens": 5}, "5 tokens were asked for.* 1 to 4"),
  ("encode", (IMAGE,), {"num_tokens": 0}, "0 tokens were asked for"),
  ("decode", (Tokens.from_ids(jnp.zeros((1, 5), int), 40),), {}, "5 tokens .* 1 to 4"),
  ("decode", (Tokens.from_ids(jnp.zeros((1, 2), int), 41),), {}, "of 40 codes"),
  ("decode", (Tokens.from_ids(jnp.full((1, 2), 40), 40),), {}, "id 40 is out of range"),
  (
    "decode",
    (Tokens.from_ids(jnp.zeros((1, 2), int), 40),),
    {"guidance": -1.0},
    "at l",
  ),
  ("decode", (Tokens.from_ids(jnp.zeros((1, 2), int), 40),), {"steps": 0}, "1 step"),
  ("decode", (Tokens.from_ids(jnp.zeros((1, 2), int), 40),), {"size": (9, 4)}, "only"),
]


@pytest.mark.parametrize(("name", "arguments", "settings", "message"), BAD)
def test_what_does_not_fit_is_one_sentence(name, arguments, settings, message):
  with pytest.raises(TokzooError, match=message):
    module: Any = TINY.build()
    module.apply(drawn(TINY), *arguments, **settings, method=name)


def test_the_generator_and_the_autoencoder_refuse_what_does_not_fit():
  module: Any = AR.build()
  variables = drawn(AR)
  for settings, message in (
    ({"num_tokens": 5}, "1 to 4"),
    ({"guidance": -1.0}, "guidance is at least 0"),
  ):
    with pytest.raises(TokzooError, match=message):
      module.apply(variables, jax.random.key(0), LABELS, **settings, method="sample")
  with pytest.raises(TokzooError, match="label 4 is out of range"):
    key = jax.random.key(0)
    module.apply(variables, key, jnp.array([0, 4]), guidance=1.0, method="sample")
  vae: Any = VAE.build()
  values = Tokens.from_values(jnp.zeros((1, 4, 3)))
  with pytest.raises(TokzooError, match=r"of shape \[B, 4, 2\]; these are values"):
    vae.apply(drawn(VAE), values, method="decode")
  with pytest.raises(TokzooError, match="always makes 4"):
    vae.apply(drawn(VAE), IMAGE, num_tokens=3, method="encode")
