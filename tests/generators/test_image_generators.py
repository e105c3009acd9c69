"""The published image generators beyond parity: caches, sizes, tables, seeds, bad input."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import random_variables
from tests.tokenizers.training import shapes
from tokzoo.cli.experiments import load_experiment
from tokzoo.errors import TokzooError
from tokzoo.generators import llamagen, open_magvit2, rar
from tokzoo.generators.maskgit import imagebert, original, uvit
from tokzoo.hub import abstract_variables
from tokzoo.hub.catalog import catalog
from tokzoo.nn.sampling import draw, kept
from tokzoo.tokens import Tokens
from tokzoo.train.optim import make_optimizer
from tokzoo.weights import flatten

LABELLED = {"num_classes": 3, "width": 16, "layers": 1, "heads": 2}
TWO = {**LABELLED, "layers": 2}
CONFIGS = {
  "llamagen": llamagen.Config(grid=2, vocab=8, multiple_of=8, **LABELLED),
  "llamagen-captions": llamagen.Config(
    grid=2,
    vocab=8,
    multiple_of=8,
    caption_tokens=3,
    caption_width=5,
    **{**LABELLED, "num_classes": None},
  ),
  "factorized": open_magvit2.FactorizedConfig(
    grid=2, factors=(1, 2), intra_layers=1, multiple_of=8, **LABELLED
  ),
  "ibq": open_magvit2.IBQConfig(grid=2, vocab=8, multiple_of=8, **LABELLED),
  "rar": rar.Config(grid=(2, 2), vocab=8, mlp_width=32, **LABELLED),
  "maskgit": original.MaskGITConfig(grid=(2, 2), vocab=8, mlp_width=32, **TWO),
  "imagebert": imagebert.ImageBertConfig(grid=(4,), vocab=8, mlp_width=32, **TWO),
  "uvit": uvit.UViTConfig(grid=(4,), vocab=8, mlp_width=32, **TWO),
}
TABLES = {
  "llamagen": llamagen.WEIGHTS,
  "llamagen-captions": llamagen.WEIGHTS,
  "factorized": open_magvit2.FACTORIZED_WEIGHTS,
  "ibq": open_magvit2.IBQ_WEIGHTS,
  "rar": rar.WEIGHTS,
  "maskgit": original.WEIGHTS,
  "imagebert": imagebert.WEIGHTS,
  "uvit": uvit.WEIGHTS,
}
EACH = pytest.mark.parametrize("name", CONFIGS)
LABELS = jnp.array([0, 2])
IDS = jnp.array([[0, 5, 7, 3], [1, 1, 6, 2]])


def condition_of(name: str):
  if name != "llamagen-captions":
    return LABELS
  features = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
  mask = jnp.array([[False, True, True], [True, True, True]])
  return llamagen.Caption(jnp.asarray(features), mask)


@EACH
def test_the_table_is_total_both_ways(name):
  variables, table = random_variables(CONFIGS[name]), TABLES[name]
  state = table.to_authors(variables)
  again = flatten(table.to_ours(state, variables))
  for path, array in flatten(variables).items():
    np.testing.assert_array_equal(again[path], array)
  assert len(state) == len(again)
  with pytest.raises(TokzooError, match="lack"):
    table.to_ours(dict(list(state.items())[1:]), variables)


@pytest.mark.parametrize(
  ("preset", "millions"),
  [
    # As the papers round. MaskGIT's says 227 M, which its released sizes do not add up to:
    # 24 x (12 x 768^2) of the layers and 2 M of tables.
    (llamagen.PRESETS["llamagen-c2i-b-256"], 111),
    (llamagen.PRESETS["llamagen-c2i-l-256"], 343),
    (llamagen.PRESETS["llamagen-c2i-xl-384"], 775),
    (llamagen.PRESETS["llamagen-c2i-xxl-384"], 1400),
    (llamagen.PRESETS["llamagen-c2i-3b-384"], 3100),
    (open_magvit2.FACTORIZED_PRESETS["open-magvit2-ar-b"], 343),
    (open_magvit2.FACTORIZED_PRESETS["open-magvit2-ar-l"], 804),
    (open_magvit2.FACTORIZED_PRESETS["open-magvit2-ar-xl"], 1500),
    (open_magvit2.IBQ_PRESETS["ibq-ar-b"], 342),
    (open_magvit2.IBQ_PRESETS["ibq-ar-l"], 649),
    (open_magvit2.IBQ_PRESETS["ibq-ar-xl"], 1100),
    (open_magvit2.IBQ_PRESETS["ibq-ar-xxl"], 2100),
    (original.PRESETS["maskgit-imagenet-256"], 172),
  ],
)
def test_the_published_sizes(preset, millions):
  leaves = flatten(abstract_variables(preset)).values()
  count = sum(leaf.size for leaf in leaves)
  print(preset.width, count / 1e6, millions)
  assert abs(count / 1e6 - millions) <= (0.05 * millions)


def fixed(name: str, **settings):
  """Samples of a tiny random model, from a seed."""
  config = CONFIGS[name]
  module, variables = config.build(), random_variables(config)

  @jax.jit
  def run(key, condition):
    return module.apply(variables, key, condition, **settings, method="sample").ids

  return lambda seed, condition: np.asarray(run(jax.random.key(seed), condition))


@EACH
def test_samples_follow_the_seed_and_the_condition(name):
  run, condition = fixed(name), condition_of(name)
  wide = jax.tree.map(lambda x: jnp.repeat(x, 8, axis=0), condition)
  first = run(0, wide)
  assert first.shape == (16, 4) and first.min() >= 0 and first.max() < 8
  np.testing.assert_array_equal(first, run(0, wide))
  assert (first != run(1, wide)).any()
  assert (first != run(0, jax.tree.map(lambda x: x[::-1], wide))).any()


@pytest.mark.parametrize("name", ["llamagen-captions", "ibq", "rar"])
def test_a_step_gives_the_teacher_forced_logits(name):
  config, condition = CONFIGS[name], condition_of(name)
  module, variables = config.build(), random_variables(config)
  ids = IDS[:, :-1] if name == "ibq" else IDS
  forced = jax.jit(module.apply)(variables, ids, condition)[:, -5:]
  extra = (condition.mask if name == "llamagen-captions" else condition,)
  step = jax.jit(lambda *xs: module.apply(variables, *xs, method="step"))
  logits, memory = module.apply(variables, condition, method="start")
  for i in range(4):
    np.testing.assert_allclose(logits, forced[:, i], rtol=1e-4, atol=1e-5)
    if i < 3:
      logits, memory = step(IDS[:, i], jnp.int32(i), memory, *extra)


def test_the_factorised_parts_are_those_of_the_teacher_forced_pass():
  config = CONFIGS["factorized"]
  module, variables = config.build(), random_variables(config)
  first, second = jax.jit(module.apply)(variables, IDS, LABELS)
  x, memory = module.apply(variables, LABELS, method="start")
  for i in range(4):
    pre, post = open_magvit2.split_factors(IDS[:, i], config.factors)
    np.testing.assert_array_equal(
      open_magvit2.join_factors(pre, post, config.factors), IDS[:, i]
    )
    said, kept_pre = module.apply(variables, x, method="first_part")
    np.testing.assert_allclose(said, first[:, i], rtol=1e-4, atol=1e-5)
    said = module.apply(variables, pre, kept_pre, method="second_part")
    np.testing.assert_allclose(said, second[:, i], rtol=1e-4, atol=1e-5)
    if i < 3:
      x, memory = module.apply(
        variables, IDS[:, i], jnp.int32(i), memory, method="step"
      )


def test_packed_tokens_are_the_same_tokens():
  config = CONFIGS["factorized"]
  module, variables = config.build(), random_variables(config)
  bits = (IDS[..., None] >> jnp.arange(3)[None, None]) & 1
  loss = jax.jit(
    lambda tokens: module.apply(
      variables, tokens, LABELS, jax.random.key(0), method="loss"
    )[0]
  )
  np.testing.assert_allclose(
    loss(Tokens.from_bits(bits)), loss(Tokens.from_ids(IDS, 8)), rtol=1e-6
  )


@pytest.mark.parametrize("name", ["llamagen", "rar"])
def test_only_training_drops(name):
  config = dataclasses.replace(CONFIGS[name], drop=1.0, dropout=0.0)
  variables, tokens = random_variables(config), Tokens.from_ids(IDS, 8)

  def losses(config, **rngs):
    module, key = config.build(), jax.random.key(0)
    return jax.jit(
      lambda x: module.apply(variables, tokens, x, key, method="loss", rngs=rngs)[0]
    )

  none = jnp.full_like(LABELS, config.num_classes)
  train = {"dropout": jax.random.key(1)}
  plain = losses(config)
  assert losses(config, **train)(LABELS) == plain(none) != plain(LABELS)
  noisy = dataclasses.replace(config, drop=0.0, dropout=0.5)
  assert abs(losses(noisy, **train)(LABELS) - plain(LABELS)) > 1e-4


@pytest.mark.parametrize("name", ["llamagen", "llamagen-captions", "factorized", "ibq"])
def test_dropout_reaches_the_condition(name, monkeypatch):
  config, condition = CONFIGS[name], condition_of(name)
  config = dataclasses.replace(config, drop=0.0, dropout=0.5)
  places, seen = config.num_tokens + getattr(config, "prefix", 1) - 1, []
  variables = random_variables(config)
  module = sys.modules[type(config).__module__]
  monkeypatch.setattr(
    module, "dropped", lambda where, x, rate: seen.append(x.shape) or x
  )
  ids = IDS if name == "factorized" else IDS[:, :-1]
  jax.eval_shape(config.build().apply, variables, ids, condition)
  # The first is of the embeddings: those of the condition stand before those of the tokens.
  assert seen[0] == (len(IDS), places, config.width)


def test_rars_order_is_annealed_and_its_loss_knows_the_order():
  config = dataclasses.replace(CONFIGS["rar"], anneal=(10, 20))
  share = [
    float(config.loss_settings(jnp.int32(s))["random_order"]) for s in (0, 15, 30)
  ]
  np.testing.assert_allclose(share, [1.0, 0.5, 0.0], atol=1e-6)
  orders = np.asarray(rar.draw_orders(jax.random.key(0), 64, 4, 0.5))
  np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(4), (64, 1)))
  raster = (orders == np.arange(4)).all(1).mean()
  assert 0.3 < raster < 0.8
  # A token says the same of its successor wherever the order puts them.
  module, variables = config.build(), random_variables(config)
  other = jnp.array([[2, 0, 3, 1], [1, 3, 0, 2]])
  permuted = jnp.take_along_axis(IDS, other, axis=1)
  run = jax.jit(module.apply)
  swapped = np.asarray(run(variables, permuted, LABELS, other))
  assert np.abs(swapped - np.asarray(run(variables, permuted, LABELS))).max() > 1e-2


def test_maskgit_keeps_known_tokens_and_masks_as_scheduled():
  config = dataclasses.replace(CONFIGS["maskgit"], grid=(8,))
  module, variables = config.build(), random_variables(config)
  known = jnp.tile(jnp.array([[3, -1, -1, -1, 5, -1, -1, -1]]), (2, 1))
  noise = jax.random.gumbel(jax.random.key(1), (2, 8, 8)), jnp.zeros((2, 8))
  run = jax.jit(
    lambda start: module.apply(
      variables, start, LABELS, lambda s: noise, steps=4, method="decode_steps"
    )
  )
  told = run(known)
  # Six unknown tokens: floor(6 cos(pi r / 2)) at r = 1/4, 1/2, 3/4, then the one of r = 1.
  np.testing.assert_array_equal(told.masked, np.tile([[5, 4, 2, 1]], (2, 1)))
  np.testing.assert_array_equal(told.samples[:, :, [0, 4]], np.full((2, 4, 2), [3, 5]))
  assert np.asarray(told.samples[:, -1]).min() >= 0
  drawn = module.apply(
    variables, jax.random.key(0), LABELS, known=known, steps=4, first=1, method="sample"
  )
  np.testing.assert_array_equal(drawn.ids[:, [0, 4]], [[3, 5], [3, 5]])


def test_draws_are_of_the_kept_tokens_and_follow_their_probabilities():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
  assert kept(logits, 2).tolist() == [[True, True, False, False]]
  assert kept(logits, 0, 0.6).tolist() == [[True, True, False, False]]
  assert kept(logits, 3, 0.99).tolist() == [[True, True, True, False]]
  rows = jnp.repeat(logits, 4000, axis=0)
  found = np.bincount(draw(jax.random.key(0), rows, 1.0, 2), minlength=4) / 4000
  np.testing.assert_allclose(found, [0.625, 0.375, 0, 0], atol=0.03)
  sharp = np.bincount(draw(jax.random.key(0), rows, 0.5), minlength=4) / 4000
  np.testing.assert_allclose(sharp[0], 0.25 / 0.365, atol=0.03)
  assert draw(None, logits, 0.0).tolist() == [0]


BAD = [
  ("llamagen", {"guidance": -1.0}, "guidance is at least 0; it is -1.0"),
  ("llamagen", {"temperature": -1.0}, "temperature is at least 0"),
  ("llamagen", {"top_k": 9}, "top_k is 0 .off. to 8"),
  ("llamagen", {"top_p": 0.0}, "top_p lies above 0"),
  ("factorized", {"guidance_post": -2.0}, "guidance is at least 0"),
  ("factorized", {"top_k_post": 5}, "top_k is 0 .off. to 4"),
  ("ibq", {"guidance": -1.0}, "guidance is at least 0"),
  ("rar", {"guidance": float("nan")}, "guidance is at least 0"),
  ("maskgit", {"steps": 0}, "steps is at least 1"),
  ("maskgit", {"schedule": "cosin"}, "did you mean 'cosine'"),
  ("maskgit", {"choice_temperature": -1.0}, "choice_temperature is at least 0"),
  ("imagebert", {"guidance": -1.0}, "guidance and temperature are at least 0"),
  ("uvit", {"guidance_decay": "lin"}, "did you mean 'linear'"),
]


@pytest.mark.parametrize(("name", "settings", "message"), BAD)
def test_settings_out_of_range(name, settings, message):
  config = CONFIGS[name]
  module, variables = config.build(), random_variables(config)
  with pytest.raises(TokzooError, match=message):
    module.apply(variables, jax.random.key(0), LABELS, **settings, method="sample")


@EACH
def test_conditions_and_tokens_that_do_not_fit(name):
  config, condition = CONFIGS[name], condition_of(name)
  module, variables = config.build(), random_variables(config)

  def loss(tokens, condition):
    return module.apply(variables, tokens, condition, jax.random.key(0), method="loss")

  with pytest.raises(TokzooError, match="needs a random key"):
    module.apply(variables, None, condition, method="sample")
  with pytest.raises(TokzooError, match=r"models 4 ids an image; these .* \[2, 3\]"):
    loss(Tokens.from_ids(IDS[:, 1:], 8), condition)
  with pytest.raises(TokzooError, match="ids below 8; these tokens have ids below 16"):
    loss(Tokens.from_ids(IDS, 16), condition)
  with pytest.raises(TokzooError, match="id 9 is out of range"):
    loss(Tokens.from_ids(IDS.at[0, 0].set(9), 8), condition)
  if name == "llamagen-captions":
    with pytest.raises(TokzooError, match="conditioned on captions"):
      loss(Tokens.from_ids(IDS, 8), LABELS)
    narrow = condition.replace(features=condition.features[..., 1:])
    with pytest.raises(TokzooError, match=r"\[B, 3, 4\] came.* \[B, 3, 5\]"):
      loss(Tokens.from_ids(IDS, 8), narrow)
    return
  with pytest.raises(TokzooError, match=r"label 4 is out of range.* 0 to 2"):
    loss(Tokens.from_ids(IDS, 8), jnp.array([0, 4]))
  with pytest.raises(TokzooError, match="integers of shape"):
    loss(Tokens.from_ids(IDS, 8), jnp.array([0.0, 1.0]))
  with pytest.raises(TokzooError, match=r"has only image.*: use data with labels"):
    config.condition({"image": IDS})


@pytest.mark.parametrize(
  "slug, name, spared, decayed",
  [
    ("maskgit", "titok-l32-imagebert", "types/embedding", "layer_0/query/kernel"),
    ("maskgit", "titok-s128-uvit", "pos_embed", "out_blocks_0/skip_linear/kernel"),
    ("maskgit", "one-d-piece-b256-imagebert", "tokens/embedding", "lm_head/kernel"),
    ("rar", "rar-b", "modulation/kernel", "blocks_0/modulation/kernel"),
    ("rar", "rar-b", "timesteps_embeddings", "cls_token"),
  ],
)
def test_decay_spares_embeddings(slug, name, spared, decayed):
  recipe = load_experiment(slug).RECIPES[name]()
  paths = flatten(shapes(recipe)["params"])
  config = recipe.optimizers["model"]
  params = {path: jnp.ones((1,) * paths[path].ndim) for path in (spared, decayed)}
  optimizer = make_optimizer(dataclasses.replace(config, warmup_steps=0), recipe.steps)
  zeros = jax.tree.map(jnp.zeros_like, params)
  with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer
    change, _ = optimizer.update(zeros, optimizer.init(params), params)
  assert not change[spared].any() and change[decayed].all()


def test_the_catalog_samples_as_the_recipes_do():
  pairs = {
    **{f"titok-{size}-generator": f"titok-{size}-imagebert" for size in ("l32", "b64")},
    "titok-s128-generator": "titok-s128-uvit",
    **{
      f"one-d-piece-{size}256-generator": f"one-d-piece-{size}256-imagebert"
      for size in "sbl"
    },
  }
  for name, recipe in pairs.items():
    sampling = dict(load_experiment("maskgit").RECIPES[recipe]().sampling)
    if not sampling["anneal_softmax"]:
      sampling.pop("anneal_softmax")
    assert catalog()[name].sampling == sampling, name
