"""KARL and ALIT beyond parity: sizes, tables, seeds, masks, bad input, and their training."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.image import karl as experiment
from tests.parity.base import compare
from tests.parity.test_parity import DATA
from tokzoo.errors import TokzooError
from tokzoo.files import read_safetensors
from tokzoo.hub import abstract_variables
from tokzoo.nn.discriminator import PatchGAN
from tokzoo.tokenizers.image import maskgit_vqgan
from tokzoo.tokenizers.image.karl import (
  ALIT_PRESETS,
  ALIT_WEIGHTS,
  ERRORS,
  PRESETS,
  WEIGHTS,
  ALITConfig,
  ALITFinetuning,
  Config,
  Critics,
  Distillation,
  Finetuning,
  KLVAEConfig,
  Size,
)
from tokzoo.tokenizers.image.karl.alit_stages import _turn
from tokzoo.tokenizers.image.karl.model import bin_of
from tokzoo.tokenizers.image.karl.objectives import (
  first_shares,
  halting_losses,
  next_shares,
)
from tokzoo.tokens import Tokens
from tokzoo.train import make_mesh
from tokzoo.train.recipe import MeshShape
from tokzoo.train.state import lay_out, make_state
from tokzoo.train.step import make_step
from tokzoo.weights import flatten, write_safetensors

SIZE = Size(width=16, layers=1, heads=2)
VQGAN = maskgit_vqgan.Config(
  width=8, multipliers=(1, 1), res_blocks=2, code_dim=4, num_codes=8, norm_groups=2
)
SHARED: dict[str, Any] = {
  "image_size": 8,
  "patch": 2,
  "encoder": SIZE,
  "decoder": SIZE,
  "num_codes": 16,
  "code_dim": 4,
}
KARL = Config(
  **SHARED, num_tokens=6, max_tokens=9, positions=8, halting_width=8, base=VQGAN
)
ALIT = ALITConfig(**SHARED, num_tokens=6, tokens_per_rollout=2, base=VQGAN)
KLVAE = KLVAEConfig(width=8, multipliers=(1, 1), res_blocks=1, latent_dim=3, groups=2)
CONFIGS = {
  "karl": KARL,
  "karl-vae": dataclasses.replace(KARL, base=KLVAE, quantizer="none"),
  "karl-pixels": dataclasses.replace(KARL, base=None),
  "alit": ALIT,
  "alit-vae": dataclasses.replace(ALIT, base=KLVAE),
}
EACH = pytest.mark.parametrize("name", CONFIGS)
BOTH = pytest.mark.parametrize("name", ["karl", "alit"])
IMAGE = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)


def table_of(config):
  return ALIT_WEIGHTS if isinstance(config, ALITConfig) else WEIGHTS


def variables_of(config, seed: int = 0):
  """Random variables, wide enough that heads and codes differ between tokens."""
  draw = np.random.default_rng(seed)

  def random(path, leaf):
    noise = draw.normal(size=leaf.shape).astype(np.float32)
    match path[-1].key:
      case "scale":
        return 1 + 0.1 * noise
      case "bias":
        return 0.1 * noise
      case "latent_tokens" | "positions" | "error_embeddings":
        return noise
    fan_in = int(np.prod(leaf.shape[:-1])) or 1
    return 2 / np.float32(fan_in) ** 0.5 * noise

  found = jax.tree_util.tree_map_with_path(random, abstract_variables(config))
  if isinstance(config, Config):
    # About the threshold, so that some tokens halt and some do not.
    found["params"]["halting_2"]["bias"] += 1.1
  return found


def applied(config, method, **settings):
  module: Any = config.build()
  return jax.jit(lambda v, *xs: module.apply(v, *xs, method=method, **settings))


@pytest.mark.parametrize("name", ["karl-tiny", "karl-alit-tiny"])
def test_fixture(name):
  rows = compare(DATA / f"{name}.safetensors")
  assert [row for row in rows if not row.passed] == [] and len(rows) > 15


def test_a_changed_parameter_goes_red(tmp_path):
  tensors, metadata = read_safetensors(DATA / "karl-alit-tiny.safetensors", "fixture")
  changed = tensors["param/timestep_embedding"].copy()
  changed[2, 1, ::2] += 0.1
  path = tmp_path / "changed.safetensors"
  write_safetensors(path, {**tensors, "param/timestep_embedding": changed}, metadata)
  red = {row.name for row in compare(path) if not row.passed}
  # Only the third rollout has seen that row.
  assert "out/iter2/latents" in red and "out/iter1/latents" not in red


@EACH
def test_the_table_is_total_both_ways(name):
  config = CONFIGS[name]
  variables, table = variables_of(config), table_of(config)
  state = table.to_authors(variables)
  again = flatten(table.to_ours(state, variables))
  for path, array in flatten(variables).items():
    np.testing.assert_array_equal(again[path], array)
  # A file of stage 2 also holds what it was trained against.
  table.to_ours(
    {**state, "gan_losses.0.discriminator.main.0.bias": np.ones(3)}, variables
  )
  with pytest.raises(TokzooError, match="lack"):
    table.to_ours(dict(list(state.items())[1:]), variables)


def test_the_bases_have_the_authors_names():
  state = WEIGHTS.to_authors(variables_of(KARL))
  assert "base_tokenizer.vqgan.decoder.mid.block_2.conv1.weight" in state
  assert "base_tokenizer.vqgan.encoder.conv_in.bias" not in state
  assert state["base_tokenizer.vqgan.quantize.embedding.weight"].shape == (8, 4)
  state = WEIGHTS.to_authors(variables_of(CONFIGS["karl-vae"]))
  assert "base_tokenizer.vae.encoder.down.1.attn.0.q.weight" in state
  assert not any(".decoder.up." in key and ".attn." in key for key in state)


@pytest.mark.parametrize(
  "preset",
  [
    "karl-small-vqgan",
    pytest.param("alit-small-vae-continuous", marks=pytest.mark.slow),
  ],
)
def test_the_published_sizes(preset):
  d, places = 1024, 256
  block = 12 * d * d + 13 * d
  # Both sides: blocks, norms, and the decoder's head but for its outputs.
  count = 16 * block + 4 * 2 * d + (d * 2 * d + 2 * d) + (d * 12 + 12 + 12 * d + d)
  if preset.startswith("karl"):
    base = 256
    count += 2 * 64 * 64 * d + 2 * 512 * d + 19 * d + d  # positions, tokens, bins, mask
    count += 2 * d + (d * 512 + 512) + 513 + 4096 * 12  # halting, codes
    outputs = 1024
  else:
    base = outputs = 16
    count += (
      2 * (places + 1) * d + 4 * d + 2 * d
    )  # positions, class and mask tokens, norm
    count += 2 * 32 * d + 8 * 32 * d + 256 * d  # latents, rollouts, decoder's latents
  count += (16 * 16 * 3 + 1) * (d - base) + (2 * d * outputs + outputs)
  shapes = flatten(abstract_variables({**PRESETS, **ALIT_PRESETS}[preset]))
  own = {k: v for k, v in shapes.items() if "/vqgan/" not in k and "/vae/" not in k}
  assert sum(leaf.size for leaf in own.values()) == count
  # MAGE's VQGAN, MAR's KL-VAE.
  under = sum(leaf.size for leaf in shapes.values()) - count
  assert under == (54_515_587 if preset.startswith("karl") else 66_456_019)


@pytest.mark.parametrize("name", ["karl", "karl-vae", "alit"])
def test_what_the_mask_hides_does_not_matter(name):
  config = CONFIGS[name]
  variables = variables_of(config)
  tokens = applied(config, "encode")(variables, IMAGE)
  again = applied(config, "encode")(variables, IMAGE)
  jax.tree.map(np.testing.assert_array_equal, tokens, again)
  tokens.check()
  mask = np.array([[1, 1, 0, 1, 0, 1]] * 2 + [[0, 1, 1, 0, 0, 0]] * 2, bool)
  kind, array = tokens.kind, np.asarray(tokens.array)
  other = (array + 1) % 16 if kind == "ids" else array + 1
  wide = mask if kind == "ids" else mask[..., None]
  changed = np.where(wide, array, other)
  decode = applied(config, "decode")
  made = decode(variables, tokens.replace(mask=mask))
  same = decode(variables, tokens.replace(mask=mask, **{kind: changed}))
  np.testing.assert_allclose(made, same, rtol=1e-6, atol=1e-6)
  seen = decode(variables, tokens.replace(mask=mask, **{kind: other}))
  assert np.abs(np.asarray(seen) - np.asarray(made)).max() > 1e-4


def test_each_image_has_a_mask_of_its_own():
  variables = variables_of(KARL)
  encode = applied(KARL, "encode")
  together = encode(variables, IMAGE)
  counts = np.asarray(together.mask).sum(1)
  assert len(set(counts)) > 1, counts
  for i in range(len(IMAGE)):
    alone = encode(variables, IMAGE[i : i + 1])
    np.testing.assert_array_equal(alone.mask[0], together.mask[i])
    np.testing.assert_array_equal(alone.ids[0], together.ids[i])
  assert (np.asarray(together.ids)[~np.asarray(together.mask)] == 0).all()


def test_the_wished_error_is_rounded_up_and_seen():
  found = bin_of(jnp.array([0.0, 0.005, 0.0051, 0.05, 0.11, 0.38, 2.0]))
  np.testing.assert_array_equal(found, [0, 0, 1, 5, 10, 18, 18])
  variables = variables_of(KARL)
  encode = jax.jit(lambda v, x, e: KARL.build().apply(v, x, error=e, method="encode"))
  fine, coarse = (encode(variables, IMAGE, jnp.float32(e)) for e in (0.04, 0.38))
  assert (np.asarray(fine.mask) != np.asarray(coarse.mask)).any()
  each = encode(variables, IMAGE, jnp.array([0.04, 0.38, 0.035, 0.9]))
  np.testing.assert_array_equal(each.mask[0::2], fine.mask[0::2])
  np.testing.assert_array_equal(each.mask[1::2], coarse.mask[1::2])


@pytest.mark.slow
def test_alit_chooses_the_first_rollout_that_is_good_enough():
  config = dataclasses.replace(ALIT, base=None)
  variables, decode = variables_of(config), applied(config, "decode")
  fixed = [applied(config, "encode", num_tokens=n)(variables, IMAGE) for n in (2, 4, 6)]
  errors = np.stack(
    [
      np.abs(np.asarray(decode(variables, t)) - IMAGE).mean((1, 2, 3)) / 2
      for t in fixed
    ]
  )
  bar = float(np.median(errors))
  wished = applied(config, "encode", error=bar)(variables, IMAGE)
  enough = errors < bar
  best = np.where(enough.any(0), enough.argmax(0), errors.argmin(0))
  assert len(set(best)) > 1
  np.testing.assert_array_equal(np.asarray(wished.mask).sum(1), 2 * (best + 1))
  for i, rollout in enumerate(best):
    own = np.asarray(fixed[rollout].ids[i])
    np.testing.assert_array_equal(np.asarray(wished.ids)[i, : len(own)], own)
  free = applied(config, "encode", error=9.0)(variables, IMAGE)
  assert (np.asarray(free.mask).sum(1) == 2).all()
  assert free.length == 6


def test_image_tokens_drop_out_by_the_key():
  config = dataclasses.replace(ALIT, dropping_threshold=0.0)
  module, variables = config.build(), variables_of(config)

  @jax.jit
  def encode(variables, key):
    return module.apply(variables, IMAGE, num_tokens=6, rng=key, method="encode")

  first, again, other = (
    np.asarray(encode(variables, jax.random.key(seed)).ids) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_halting_losses_by_hand():
  logits = jnp.array([[2.0, -1.0, 0.5, 9.0]])
  kept, needed = jnp.array([1, 1, 1, 0], bool), jnp.array([1, 1, 0, 0], bool)
  found = halting_losses(logits, kept, needed)
  soft = np.log1p(np.exp([2.0, -1.0, -0.5]))
  np.testing.assert_allclose(found["active"], soft[:2].mean(), rtol=1e-6)
  np.testing.assert_allclose(found["halted"], soft[2], rtol=1e-6)
  assert halting_losses(logits, kept, kept)["halted"] == 0
  shares = next_shares(first_shares(), jnp.array([0.5, 0.025]))
  raw = np.array([0.2, 0.2, 0.2, 0.2 * 0.99, 0.2 * 0.99])
  np.testing.assert_allclose(shares[:5], raw / raw.sum(), rtol=1e-6)
  assert np.asarray(shares[5:]).sum() == 0 and len(shares) == len(ERRORS)


def test_halting_learns_how_many_tokens_an_error_stands_for():
  """Second passes alone, with errors that 4, 8 and 16 of 16 tokens are said to have reached."""
  config = dataclasses.replace(
    CONFIGS["karl-pixels"], num_tokens=16, max_tokens=16, quantizer="none"
  )
  task, module = Finetuning(model=config, critics=None), config.build()
  reached = {0.3: 4, 0.12: 8, 0.04: 16}
  optimizer = optax.adam(5e-3)

  def loss(params, error, length):
    def run(module):
      glance = module.base.look(IMAGE)
      errors = jnp.full(len(IMAGE), error)
      return task.tokenize(module, IMAGE, glance, errors, length)[1]

    terms = module.apply({"params": params}, method=run)
    return sum(terms.values())

  @jax.jit
  def train(params):
    def step(carry, turn):
      params, state = carry
      change, state = optimizer.update(jax.grad(loss)(params, *turn), state)
      return (optax.apply_updates(params, change), state), None

    turns = [jnp.tile(jnp.asarray(list(each)), 100) for each in zip(*reached.items())]
    return jax.lax.scan(step, (params, optimizer.init(params)), tuple(turns))[0][0]

  with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer
    params = train(module.init(jax.random.key(0), IMAGE)["params"])
  encode = jax.jit(
    lambda p, e: module.apply({"params": p}, IMAGE, error=e, method="encode")
  )
  for error, length in reached.items():
    counts = np.asarray(encode(params, jnp.float32(error)).mask).sum(1)
    assert (3 * np.abs(counts - length) <= length).all(), (error, counts)


def test_critics_take_turns():
  critics = Critics(weights=((0, 0.0), (3, 0.2), (12, 0.8)), cycle=3)
  weights = [float(critics.weight(jnp.int32(step))) for step in (0, 2, 3, 11, 12)]
  np.testing.assert_allclose(weights, [0, 0, 0.2, 0.2, 0.8])
  turns = [
    {k: bool(v) for k, v in critics.turns(jnp.int32(s)).items()} for s in range(7)
  ]
  assert [t["model"] for t in turns] == [True] * 3 + [False, False, True, False]
  assert [t["discriminator"] for t in turns] == [False] * 3 + [True, True, False, True]
  # The k-th step that moves a model is that of rollout k.
  moving = [s for s in range(20) if bool(critics.turns(jnp.int32(s))["model"])]
  assert [int(_turn(critics, jnp.int32(s))) for s in moving] == list(range(len(moving)))
  chosen = [int(critics.choose(n)) for n in (1, 63, 64, 255, 256, 368)]
  assert chosen == [0, 0, 1, 6, 7, 7]


CRITICS = Critics(PatchGAN(width=4, layers=1), 2, 2, ((0, 0.0), (3, 0.2)), cycle=2)
TASKS = {
  "stage1": Distillation(model=KARL, lengths=(2, 5, 8)),
  "stage2": Finetuning(
    model=CONFIGS["karl-pixels"], lengths=(2, 5, 8), critics=CRITICS
  ),
  "alit-stage2": ALITFinetuning(
    model=dataclasses.replace(ALIT, num_tokens=4, base=None), critics=CRITICS
  ),
}
FALLS = {"stage1": "tokenize_cross_entropy", "stage2": "tokenize_felt"}


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["stage1", "stage2", pytest.param("alit-stage2", marks=pytest.mark.slow)]
)
def test_training(name):
  task = TASKS[name]
  recipe = experiment._nano(name, task, 4, 24)
  optimizers = {
    player: dataclasses.replace(optimizer, peak_lr=5e-3, warmup_steps=0)
    for player, optimizer in recipe.optimizers.items()
  }
  recipe = dataclasses.replace(recipe, optimizers=optimizers)
  mesh = make_mesh(MeshShape(), jax.devices()[:1])
  batch = {"image": jnp.asarray(0.6 + 0.1 * IMAGE)}
  layout = lay_out(recipe, batch, mesh)
  state = make_state(recipe, layout, batch)
  step = make_step(recipe, layout)
  seen, critic = [], []
  for _ in range(24):
    state, metrics = step(state, batch)
    seen.append({k: float(v) for k, v in metrics.items()})
    if "discriminator" in state.params:
      leaf = state.params["discriminator"]["conv_out"]["kernel"]
      critic.append(np.asarray(leaf).copy())
  key = FALLS.get(name, "felt")
  first, last = ([m[key] for m in part] for part in (seen[:6], seen[-6:]))
  assert np.mean(last) < 0.97 * np.mean(first), (first, last)
  assert np.isfinite([list(m.values()) for m in seen]).all()
  if critic:
    # Still until step 3, then in the first steps of the cycles alone.
    moves = [bool((a != b).any()) for a, b in itertools.pairwise(critic)]
    assert not any(moves[:3]) and moves[3] and not moves[4] and moves[5]
  if "task" in state.collections:
    assert float(state.collections["task"]["error_shares"].sum()) == pytest.approx(1)


def test_what_each_stage_trains():
  batch = {"image": jnp.asarray(IMAGE)}
  mesh = make_mesh(MeshShape(), jax.devices()[:1])
  for task, word in (
    (Distillation(model=KARL), "vqgan/"),
    (Finetuning(model=KARL, critics=CRITICS), "vqgan/quantizer/"),
  ):
    recipe = experiment._nano("stage", task, 4, 24)
    layout = lay_out(recipe, batch, mesh)
    params = jax.tree_util.tree_leaves_with_path(layout.shapes.params)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in params]
    trained = {path for own in layout.assignment.values() for path in own}
    assert {n for n in names if n not in trained} == {
      n for n in names if n.startswith(word)
    }


@pytest.mark.parametrize(
  "name", ["nano", "karl-small-vae-stage2", "alit-small-vae-stage1"]
)
def test_the_recipes_have_their_players(name):
  recipe = experiment.RECIPES[name]()
  side = recipe.task.model.image_size
  batch = {"image": jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)}
  variables = jax.eval_shape(recipe.task.init, jax.random.key(0), batch)
  assert set(recipe.task.players) == set(recipe.optimizers)
  assert ("task" in variables) == (not name.startswith("alit"))


@BOTH
@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((1, 10, 8, 3), r"10 x 8 pixels does not fit: .* takes 8 x 8 alone"),
    ((1, 8, 8, 1), "convert the channels first"),
    ((8, 8, 3), "stack them to a batch first"),
  ],
)
def test_images_that_do_not_fit(name, shape, message):
  config = CONFIGS[name]
  with pytest.raises(TokzooError, match=message):
    config.build().apply(variables_of(config), jnp.zeros(shape), method="encode")


@BOTH
def test_tokens_and_settings_that_do_not_fit(name):
  config = CONFIGS[name]
  module, variables = config.build(), variables_of(config)

  def encode(**settings):
    return module.apply(variables, IMAGE, **settings, method="encode")

  def decode(tokens, **settings):
    return module.apply(variables, tokens, **settings, method="decode")

  for count in (0, 10):
    with pytest.raises(TokzooError, match=f"{count} tokens were asked for"):
      encode(num_tokens=count)
  for error in (-0.1, float("nan")):
    with pytest.raises(TokzooError, match="the wished error is"):
      encode(error=error)
  with pytest.raises(TokzooError, match="10 tokens were asked for"):
    decode(Tokens.from_ids(jnp.zeros((1, 10), int), 16))
  with pytest.raises(TokzooError, match="id 16 is out of range"):
    decode(Tokens.from_ids(jnp.full((1, 6), 16), 16))
  with pytest.raises(TokzooError, match=r"reads ids .* of 16 codes; these are ids"):
    decode(Tokens.from_ids(jnp.zeros((1, 6), int), 32))
  with pytest.raises(TokzooError, match="16 x 8 pixels does not fit"):
    decode(Tokens.from_ids(jnp.zeros((1, 6), int), 16), size=(16, 8))
  if name == "alit":
    with pytest.raises(TokzooError, match="choose a multiple of 2"):
      encode(num_tokens=3)
    with pytest.raises(TokzooError, match="do not come in rollouts of 4"):
      config = dataclasses.replace(ALIT, tokens_per_rollout=4)
      config.build().apply(variables, IMAGE, method="encode")
