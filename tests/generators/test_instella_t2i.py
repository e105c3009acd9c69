"""Instella-T2I's generators beyond parity: the cache, causality, masks, published sizes,
bfloat16, sharding, and conditions or settings that do not fit."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.models import AR, DIFFUSION, SIZES, random_variables
from tokzoo.errors import TokzooError
from tokzoo.generators.instella_t2i import (
  AR_WEIGHTS,
  DIFFUSION_WEIGHTS,
  ARConfig,
  DiffusionConfig,
  TextFeatures,
)
from tokzoo.generators.instella_t2i.diffusion import add_noise
from tokzoo.hub import abstract_variables
from tokzoo.tokens import Tokens
from tokzoo.weights import flatten

BOTH = pytest.mark.parametrize("config", [AR, DIFFUSION], ids=["ar", "diffusion"])
TEXT_AR = ARConfig(**{**SIZES, "num_classes": None})
TABLES = {ARConfig: AR_WEIGHTS, DiffusionConfig: DIFFUSION_WEIGHTS}


def bits(batch: int = 2, seed: int = 0) -> np.ndarray:
  shape = (batch, AR.num_tokens, AR.bits)
  return (np.random.default_rng(seed).random(shape) > 0.5).astype(np.float32)


def text(batch: int, padding: list[int], seed: int = 0) -> TextFeatures:
  """Prompts of 4 tokens, the first `padding` of each row filled."""
  shape = (TEXT_AR.layers, batch, 4, TEXT_AR.condition_width)
  features = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  mask = np.arange(4)[None] >= np.array(padding)[:, None]
  return TextFeatures(jnp.asarray(features), jnp.asarray(mask))


def authors_keys(config: ARConfig | DiffusionConfig) -> dict[str, tuple[int, ...]]:
  """The keys and shapes of a published file, as the sheet of the system lists them."""
  c, is_ar = config, isinstance(config, ARConfig)
  d, hidden = c.width, int(c.width * c.mlp_ratio)
  shapes: dict[str, tuple[int, ...]] = {}

  def linear(key: str, out: int, into: int) -> None:
    shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (out, into), (out,)

  linear("x_embedder", d, c.bits)
  linear("time_embed.linear_1", d, 1)
  linear("time_embed.linear_2", d, d)
  linear("proj_out", c.bits, d)
  if is_ar:
    shapes |= {"split_token": (1, 1, d), "norm_out.weight": (d,)}
  else:
    linear("norm_out.linear", 2 * d, d)
  for i in range(c.layers):
    block = f"transformer_blocks.{i}"
    shapes |= {f"{block}.attn.{n}_proj.weight": (d, d) for n in "qkvo"}
    shapes |= {f"{block}.attn.norm_{n}.weight": (c.head_dim,) for n in "qk"}
    shapes[f"{block}.pos_emb"] = (1, c.num_tokens + is_ar, d)
    linear(f"{block}.proj_cond", d, c.condition_width)
    mlp = "mlp" if is_ar else "ff"
    linear(f"{block}.{mlp}.net.0.proj", hidden, d)
    linear(f"{block}.{mlp}.net.2", d, hidden)
    if is_ar:
      norms = ("input_layernorm", "post_attention_layernorm")
      shapes |= {f"{block}.{norm}.weight": (d,) for norm in norms}
    else:
      linear(f"{block}.norm1.linear", 6 * d, d)
  return shapes


@pytest.mark.parametrize("kind", [ARConfig, DiffusionConfig])
def test_the_table_maps_the_published_keys_and_no_others(kind):
  config, table = kind(**{**SIZES, "num_classes": None}), TABLES[kind]
  state = table.to_authors(random_variables(config))
  assert {key: array.shape for key, array in state.items()} == authors_keys(config)
  again = flatten(table.to_ours(state, random_variables(config)))
  for path, array in flatten(random_variables(config)).items():
    np.testing.assert_array_equal(again[path], array)


def test_the_published_sizes():
  d, m = 2048, 64
  # Attention, MLP, text projection: 4 D^2 + 8 D^2 + D^2, and their biases and norms.
  block = 13 * d**2 + (4 * d + d) + d + 2 * 128
  outside = (m * d + d) + 2 * d + (d**2 + d) + (d * m + m)
  ar = 16 * (block + 2 * d + 129 * d) + outside + 2 * d
  diffusion = 16 * (block + 6 * d**2 + 6 * d + 128 * d) + outside + 2 * d**2 + 2 * d
  assert (ar, diffusion) == (881_377_344, 1_292_517_440)
  for config, expected in ((ARConfig(), ar), (DiffusionConfig(), diffusion)):
    leaves = flatten(abstract_variables(config)).values()
    assert sum(leaf.size for leaf in leaves) == expected
    assert sum(map(math.prod, authors_keys(config).values())) == expected
    assert len(leaves) == len(authors_keys(config))


def without_cache(module, variables, condition, null, guidance, temperature, uniform):
  """Draws token by token, each from the teacher-forced pass over all tokens so far."""
  rows = condition.mask.shape[0]
  drawn = np.zeros((rows, TEXT_AR.num_tokens, TEXT_AR.bits), np.float32)
  forward = jax.jit(module.apply)
  for i in range(TEXT_AR.num_tokens):
    logits = forward(variables, drawn, condition)[:, i]
    if guidance:
      away = forward(variables, drawn, null)[:, i]
      logits = (1 + guidance) * logits - guidance * away
    if temperature:
      p = jax.nn.sigmoid(logits / temperature)
      drawn[:, i] = np.asarray(uniform[i] < p)
    else:
      drawn[:, i] = np.asarray(logits > 0)
  return drawn


@pytest.mark.parametrize(
  ("guidance", "temperature"), [(0.0, 1.0), (1.5, 0.7), (2.0, 0.0)]
)
def test_sampling_with_the_cache_equals_sampling_without(guidance, temperature):
  module, variables = TEXT_AR.build(), random_variables(TEXT_AR)
  prompt, null = text(3, [0, 2, 3]), text(3, [3, 3, 3], seed=1)
  uniform = np.random.default_rng(2).random((2, 3, TEXT_AR.bits)).astype(np.float32)
  uniform = jnp.asarray(uniform)
  tokens = module.apply(
    variables,
    None,
    prompt,
    null=null,
    guidance=guidance,
    temperature=temperature,
    uniform=lambda i: uniform[i],
    method="sample",
  )
  expected = without_cache(
    module, variables, prompt, null, guidance, temperature, uniform
  )
  np.testing.assert_array_equal(np.asarray(tokens.unpacked(), np.float32), expected)
  assert 0.1 < expected.mean() < 0.9


def test_a_step_gives_the_teacher_forced_logits():
  module, variables = TEXT_AR.build(), random_variables(TEXT_AR)
  prompt, seen = text(2, [0, 2]), bits()
  forced = jax.jit(module.apply)(variables, seen, prompt)
  step = jax.jit(lambda *xs: module.apply(variables, *xs, method="step"))
  cache = jax.jit(lambda x: module.apply(variables, x, method="start"))(prompt)
  previous = np.zeros_like(seen[:, 0])
  for i in range(TEXT_AR.num_tokens):
    logits, cache = step(previous, jnp.int32(i), cache)
    np.testing.assert_allclose(logits, forced[:, i], rtol=1e-5, atol=1e-5)
    previous = seen[:, i]


def test_logits_see_only_the_tokens_before():
  config = dataclasses.replace(TEXT_AR, num_tokens=5)
  module, variables = config.build(), random_variables(config)
  first = (np.random.default_rng(0).random((1, 5, 40)) > 0.5).astype(np.float32)
  forward = jax.jit(lambda x: module.apply(variables, x, text(1, [1])))
  for place in range(5):
    other = first.copy()
    other[:, place] = 1 - other[:, place]
    moved = np.abs(np.asarray(forward(first) - forward(other))).max(axis=(0, 2)) > 0
    assert moved.tolist() == [i > place for i in range(5)]


@pytest.mark.parametrize("kind", [ARConfig, DiffusionConfig])
def test_padding_is_not_seen_and_every_layer_of_text_is(kind):
  config = kind(**{**SIZES, "num_classes": None})
  module, variables = config.build(), random_variables(config)
  times = () if kind is ARConfig else (jnp.full(2, 0.5),)
  forward = jax.jit(lambda c: module.apply(variables, jnp.asarray(bits()), *times, c))
  prompt = text(2, [2, 1])
  base = np.asarray(forward(prompt))
  rubbish = jnp.where(prompt.mask[None, :, :, None], prompt.features, 100.0)
  np.testing.assert_array_equal(forward(prompt.replace(features=rubbish)), base)
  for layer in range(config.layers):
    other = prompt.replace(features=prompt.features.at[layer].add(1.0))
    assert np.abs(np.asarray(forward(other)) - base).max() > 1e-3


@BOTH
def test_a_dropped_class_is_the_class_beyond_the_last(config):
  variables = random_variables(config)
  tokens = Tokens.from_bits(jnp.asarray(bits()))
  labels = jnp.array([0, 2])

  def loss(drop, condition):
    module = dataclasses.replace(config, drop=drop).build()
    key = jax.random.key(0)
    run = jax.jit(lambda c: module.apply(variables, tokens, c, key, method="loss")[0])
    return float(run(condition))

  none = jnp.full(2, config.num_classes)
  assert loss(1.0, labels) == loss(0.0, none) != loss(0.0, labels)


@BOTH
def test_samples_follow_the_seed_and_the_class(config):
  module, variables = config.build(), random_variables(config)
  settings = {"guidance": 3.0} | ({"steps": 4} if config is DIFFUSION else {})

  @jax.jit
  def draw(key, labels):
    return module.apply(variables, key, labels, **settings, method="sample").packed

  labels = jnp.array([0, 0, 1, 2])
  first = np.asarray(draw(jax.random.key(0), labels))
  np.testing.assert_array_equal(first, draw(jax.random.key(0), labels))
  assert (first != np.asarray(draw(jax.random.key(1), labels))).any()
  assert (first != np.asarray(draw(jax.random.key(0), labels[::-1]))).any()
  Tokens(packed=first, bits=config.bits).check()


def test_diffusion_starts_from_fair_coins_and_keeps_them_at_time_one():
  module = DIFFUSION.build()
  clean = jnp.asarray(bits(64))
  uniform = jax.random.uniform(jax.random.key(0), clean.shape)
  np.testing.assert_array_equal(add_noise(clean, jnp.zeros(64), uniform), clean)
  noise = np.asarray(add_noise(clean, jnp.ones(64), uniform))
  assert abs((noise == np.asarray(clean)).mean() - 0.5) < 0.03
  half = np.asarray(add_noise(clean, jnp.full(64, 0.5), uniform))
  assert abs((half == np.asarray(clean)).mean() - 0.75) < 0.03
  # A flip logit speaks against the bit that is shown.
  variables, times = random_variables(DIFFUSION), jnp.full(64, 0.5)
  labels = jnp.zeros(64, jnp.int32)
  flip = module.apply(variables, clean, times, labels)
  logits = module.apply(variables, clean, times, labels, method="bit_logits")
  np.testing.assert_allclose(logits, (1 - 2 * clean) * flip)


@BOTH
def test_the_loss_does_not_depend_on_how_the_batch_is_spread(config):
  module, variables = config.build(), random_variables(config)
  packed = np.asarray(Tokens.from_bits(jnp.asarray(bits(16))).packed)
  labels = np.arange(16, dtype=np.int32) % 3

  @jax.jit
  def loss(variables, packed, labels):
    tokens = Tokens(packed=packed, bits=config.bits)
    return module.apply(variables, tokens, labels, jax.random.key(0), method="loss")[0]

  mesh = Mesh(jax.devices(), ("data",))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  everywhere = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
  spread = loss(everywhere, *jax.device_put((packed, labels), rows))
  assert len(spread.sharding.device_set) == 8
  np.testing.assert_allclose(spread, loss(variables, packed, labels), rtol=1e-6)


@BOTH
def test_bfloat16_runs_and_stays_near(config):
  module, variables = config.build(), random_variables(config)
  tokens = Tokens.from_bits(jnp.asarray(bits(8)))
  labels = jnp.zeros(8, jnp.int32)
  run = jax.jit(
    lambda v: module.apply(v, tokens, labels, jax.random.key(0), method="loss")[0]
  )
  settings = {"steps": 2} if config is DIFFUSION else {}
  draw = jax.jit(
    lambda v: module.apply(v, jax.random.key(0), labels, **settings, method="sample")
  )
  # Flax's own norms promote by the standard rules.
  with jax.numpy_dtype_promotion("standard"):
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), variables)
    coarse, sampled = run(half), draw(half)
  assert coarse.dtype == jnp.float32
  np.testing.assert_allclose(coarse, run(variables), rtol=0.05)
  sampled.check()


def test_conditions_that_do_not_fit():
  classes, words = AR.build(), TEXT_AR.build()
  ours, theirs = random_variables(AR), random_variables(TEXT_AR)
  seen = jnp.asarray(bits(1))
  with pytest.raises(TokzooError, match="conditioned on class labels: pass int32"):
    classes.apply(ours, seen, text(1, [0]))
  with pytest.raises(TokzooError, match="conditioned on text: pass TextFeatures"):
    words.apply(theirs, seen, jnp.zeros(1, jnp.int32))
  prompt = text(1, [0])
  fewer = prompt.replace(features=prompt.features[:1])
  with pytest.raises(
    TokzooError, match=r"1 layers of width 8 came.* 2 layers of width 8"
  ):
    words.apply(theirs, seen, fewer)
  with pytest.raises(TokzooError, match="guidance on text needs TextFeatures"):
    words.apply(theirs, jax.random.key(0), prompt, method="sample")
  with pytest.raises(TokzooError, match=r"has only image.*: use data with label"):
    AR.condition({"image": seen})


@BOTH
def test_settings_that_are_out_of_range(config):
  module, variables = config.build(), random_variables(config)
  labels = jnp.zeros(1, jnp.int32)
  wrong = [{"temperature": -1.0}]
  if config is DIFFUSION:
    wrong += [{"steps": 0}, {"protocol": 3}, {"temperature": 0.0}]
  for settings in wrong:
    with pytest.raises(TokzooError, match="steps is at least 1, the temperature above"):
      module.apply(variables, jax.random.key(0), labels, **settings, method="sample")
  with pytest.raises(TokzooError, match="sampling needs a random key"):
    module.apply(variables, None, labels, method="sample")
