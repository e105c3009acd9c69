"""TiTok, One-D-Piece and MaskGIT's VQGAN: parity, published files, prefixes, the first stage."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import random_variables
from tests.parity import maskgit_vqgan as vqgan_parity
from tests.parity import one_d_piece as piece_parity
from tests.parity import titok as titok_parity
from tests.parity.base import compare
from tests.tokenizers.training import first_steps, shapes
from tokzoo.cli.experiments import load_experiment
from tokzoo.errors import TokzooError
from tokzoo.files import read_safetensors
from tokzoo.hub import abstract_variables
from tokzoo.tokenizers.image import maskgit_vqgan, one_d_piece, titok
from tokzoo.tokenizers.image.titok import ProxyCodes, Size
from tokzoo.tokens import Tokens
from tokzoo.train.step import compute_cast
from tokzoo.weights import flatten, write_safetensors

DATA = Path(__file__).parents[1] / "parity/data"
KINDS = {
  kind for m in (titok_parity, piece_parity, vqgan_parity) for kind in m.COMPARISONS
}
FIXTURES = [
  path
  for path in sorted(DATA.glob("*.safetensors"))
  if read_safetensors(path, "fixture")[1]["kind"] in KINDS
]

PIXELS = maskgit_vqgan.Config(
  image_size=8,
  width=8,
  multipliers=(1, 2),
  res_blocks=1,
  code_dim=4,
  num_codes=16,
  norm_groups=4,
)
TINY = titok.Config(
  image_size=8,
  patch=2,
  num_tokens=3,
  encoder=Size(16, 1, 2),
  decoder=Size(24, 1, 2),
  num_codes=11,
  code_dim=5,
  pixels=PIXELS,
)
RGB = dataclasses.replace(TINY, is_legacy=False, use_l2_norm=False, pixels=None)
VAE = dataclasses.replace(RGB, quantizer="vae")
PIECE = one_d_piece.Config(
  **{f.name: getattr(TINY, f.name) for f in dataclasses.fields(TINY)}
)
CONFIGS = {"legacy": TINY, "rgb": RGB, "vae": VAE, "piece": PIECE, "vqgan": PIXELS}
EACH = pytest.mark.parametrize("name", CONFIGS)
PICTURE = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


def table_of(config):
  return maskgit_vqgan.WEIGHTS if config is PIXELS else titok.WEIGHTS


def program(config, method, **settings):
  """A compiled method of the random model."""
  module, variables = config.build(), random_variables(config)
  compiled = jax.jit(
    lambda v, rngs, *arrays: module.apply(
      v, *arrays, rngs=rngs, method=method, **settings
    )
  )
  return lambda *arrays, rngs=None: compiled(variables, rngs, *arrays)


def run(config, *arguments, method, rngs=None, **settings):
  return program(config, method, **settings)(*arguments, rngs=rngs)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture(path):
  rows = compare(path)
  assert [row for row in rows if not row.passed] == [] and len(rows) >= 2


def test_the_fixtures_cover_the_kinds():
  assert {read_safetensors(path, "fixture")[1]["kind"] for path in FIXTURES} == KINDS


def test_a_changed_parameter_goes_red(tmp_path):
  path = next(path for path in FIXTURES if path.stem == "titok-rgb-tiny")
  tensors, metadata = read_safetensors(path, "fixture")
  key = "param/decoder.latent_token_positional_embedding"
  table = tensors[key].copy()
  table[0, ::2] += 0.05
  write_safetensors(tmp_path / path.name, {**tensors, key: table}, metadata)
  assert any(not row.passed for row in compare(tmp_path / path.name))


@EACH
def test_the_table_is_total_both_ways(name):
  config = CONFIGS[name]
  variables, table = random_variables(config), table_of(config)
  state = table.to_authors(variables)
  again = flatten(table.to_ours(state, variables))
  for path, array in flatten(variables).items():
    np.testing.assert_array_equal(again[path], array)
  with pytest.raises(TokzooError, match="lack"):
    table.to_ours(dict(list(state.items())[1:]), variables)


def vit_keys(side: str, size: Size, places: int, tokens: int) -> dict[str, tuple]:
  """The keys of one transformer of TiTok, as the sheet lists them."""
  width = size.width
  keys = {
    f"{side}.class_embedding": (1, width),
    f"{side}.positional_embedding": (places + 1, width),
    f"{side}.latent_token_positional_embedding": (tokens, width),
  }
  for name in ("ln_pre", "ln_post"):
    keys |= {f"{side}.{name}.{part}": (width,) for part in ("weight", "bias")}
  for i in range(size.layers):
    block = f"{side}.transformer.{i}"
    for name in ("ln_1", "ln_2"):
      keys |= {f"{block}.{name}.{part}": (width,) for part in ("weight", "bias")}
    keys |= {
      f"{block}.attn.in_proj_weight": (3 * width, width),
      f"{block}.attn.in_proj_bias": (3 * width,),
      f"{block}.attn.out_proj.weight": (width, width),
      f"{block}.attn.out_proj.bias": (width,),
      f"{block}.mlp.c_fc.weight": (4 * width, width),
      f"{block}.mlp.c_fc.bias": (4 * width,),
      f"{block}.mlp.c_proj.weight": (width, 4 * width),
      f"{block}.mlp.c_proj.bias": (width,),
    }
  return keys


def published_keys(c: titok.Config) -> dict[str, tuple]:
  """The keys of a published file but those of the pixel decoder."""
  keys = vit_keys("encoder", c.encoder, c.side**2, c.num_tokens)
  keys |= vit_keys("decoder", c.decoder, c.side**2, c.num_tokens)
  out = c.code_dim * (2 if c.quantizer == "vae" else 1)
  keys |= {
    "latent_tokens": (c.num_tokens, c.encoder.width),
    "encoder.patch_embed.weight": (c.encoder.width, 3, c.patch, c.patch),
    "encoder.patch_embed.bias": (c.encoder.width,),
    "encoder.conv_out.weight": (out, c.encoder.width, 1, 1),
    "encoder.conv_out.bias": (out,),
    "decoder.decoder_embed.weight": (c.decoder.width, c.code_dim),
    "decoder.decoder_embed.bias": (c.decoder.width,),
    "decoder.mask_token": (1, 1, c.decoder.width),
  }
  if c.quantizer == "vq":
    keys["quantize.embedding.weight"] = (c.num_codes, c.code_dim)
  wide = c.decoder.width
  if c.pixels is None:
    keys |= {
      "decoder.ffn.0.weight": (3 * c.patch**2, wide, 1, 1),
      "decoder.ffn.0.bias": (3 * c.patch**2,),
      "decoder.conv_out.weight": (3, 3, 3, 3),
      "decoder.conv_out.bias": (3,),
    }
    return keys
  return keys | {
    "decoder.ffn.0.weight": (2 * wide, wide, 1, 1),
    "decoder.ffn.0.bias": (2 * wide,),
    "decoder.ffn.2.weight": (1024, 2 * wide, 1, 1),
    "decoder.ffn.2.bias": (1024,),
    "pixel_quantize.embedding.weight": (1024, 256),
  }


@pytest.mark.parametrize("preset", titok.PRESETS)
def test_the_published_keys_and_shapes(preset):
  config = titok.PRESETS[preset]
  like = abstract_variables(config)
  found = titok.WEIGHTS.published_shapes(like)
  rest = {key: shape for key, shape in found.items() if "pixel_decoder." not in key}
  assert rest == published_keys(config)
  assert (len(rest) < len(found)) == (config.pixels is not None)


@EACH
def test_pictures_to_tokens_and_back(name):
  config = CONFIGS[name]
  tokens = run(config, PICTURE, method="encode")
  decode = program(config, "decode")
  again = decode(tokens)
  assert tokens.batch == 2 and again.shape == (2, 8, 8, 3)
  # What `__call__` shows is what the tokens decode to.
  output = run(config, PICTURE, method="__call__")
  np.testing.assert_allclose(output.reconstruction, again, rtol=1e-4, atol=1e-4)
  losses = {"kl"} if name == "vae" else {"commitment", "codebook"}
  key = jax.random.key(0)
  trained = run(config, PICTURE, method="__call__", train=True, rngs={"bits": key})
  assert set(trained.losses) == losses
  # Every token counts.
  for place in (0, tokens.length - 1):
    at = (slice(None), place)
    if name == "vae":
      other = tokens.replace(values=tokens.values.at[at].add(1))
    else:
      ids = (tokens.ids.at[at].add(1)) % tokens.vocab
      other = tokens.replace(ids=ids)
    assert np.abs(np.asarray(decode(other) - again)).max() > 1e-3


def test_any_prefix_of_one_d_pieces_tokens_is_an_encoding():
  whole = run(PIECE, PICTURE, method="encode")
  two = run(PIECE, PICTURE, method="encode", num_tokens=2)
  np.testing.assert_array_equal(whole.ids[:, :2], two.ids)
  # Cut off, or masked: the decoder sees the same.
  masked = whole.replace(mask=jnp.array([[True, True, False]] * 2))
  shown = [run(PIECE, tokens, method="decode") for tokens in (two, masked)]
  np.testing.assert_allclose(shown[0], shown[1], rtol=1e-4, atol=1e-5)
  assert np.abs(np.asarray(run(PIECE, whole, method="decode") - shown[0])).max() > 1e-3
  # In training the lengths are 1 to 3, one for the batch; the tokens stay all.
  made = set()
  train = program(PIECE, "__call__", train=True)
  for seed in range(12):
    output = train(PICTURE, rngs={"bits": jax.random.key(seed)})
    assert output.tokens.length == 3
    made.add(round(float(jnp.abs(output.reconstruction).sum()), 2))
  assert len(made) == 3


def test_pictures_and_tokens_that_do_not_fit():
  for name, settings, message in (
    ("piece", {"num_tokens": 4}, "4 tokens were asked for, but this .* 1 to 3"),
    ("piece", {"num_tokens": 0}, "0 tokens were asked for"),
    ("legacy", {"num_tokens": 2}, "always has 3"),
    ("vqgan", {"num_tokens": 2}, "always has 16"),
  ):
    with pytest.raises(TokzooError, match=message):
      run(CONFIGS[name], PICTURE, method="encode", **settings)
  with pytest.raises(TokzooError, match=r"10 x 8 pixels does not fit: .* 8 x 8 alone"):
    run(TINY, np.zeros((1, 10, 8, 3), np.float32), method="encode")
  with pytest.raises(TokzooError, match="multiples of 2"):
    run(PIXELS, np.zeros((1, 9, 8, 3), np.float32), method="encode")
  module, variables = TINY.build(), random_variables(TINY)
  for tokens, message in (
    (Tokens.from_ids(jnp.full((1, 3), 11), 11), "id 11 is out of range"),
    (Tokens.from_ids(jnp.zeros((1, 3)), 12), "11 codes; these are ids .* of 12 codes"),
    (Tokens.from_ids(jnp.zeros((1, 2)), 11), "2 tokens were asked for or given"),
    (Tokens.from_values(jnp.zeros((1, 3, 5))), "reads ids"),
  ):
    with pytest.raises(TokzooError, match=message):
      module.apply(variables, tokens, method="decode")


def test_the_first_stage_learns_the_codes_of_its_teacher():
  task, batch = ProxyCodes(model=TINY), {"image": jnp.asarray(PICTURE)}
  key = jax.random.key(0)
  teacher = random_variables(PIXELS)
  mine = jax.jit(task.init)(key, batch)
  start = task.adopt({"params": teacher["params"]})
  pixels = {**mine["params"]["pixels"], **start["params"]["pixels"]}
  variables = {
    "params": {**mine["params"], "pixels": pixels},
    "teacher": start["teacher"],
  }
  # The targets are the ids that the teacher alone gives.
  ids = run(PIXELS, PICTURE, method="encode").ids
  loss = jax.jit(task.losses)(variables, batch, key, jnp.int32(0))
  logits = run_proxy(task, variables["params"])
  expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)
  np.testing.assert_allclose(loss.metrics["cross_entropy"], expected.mean(), rtol=1e-4)
  total = sum(w * loss.metrics[name] for name, w in task.weights.items())
  np.testing.assert_allclose(
    loss.players["model"], loss.metrics["cross_entropy"] + total, rtol=1e-5
  )
  # Nothing of the teacher is trained.
  pattern = dict(task.players)["model"]
  assert pattern == r"(?!pixels/)"


def test_the_teacher_gives_its_codes_in_float32_whatever_the_run_computes_in():
  task = ProxyCodes(model=TINY)
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.uniform(-1, 1, (64, 8, 8, 3)), jnp.float32)
  start = task.adopt({"params": random_variables(PIXELS)["params"]})
  mine = random_variables(TINY)["params"]
  params = {**mine, "pixels": {**mine["pixels"], **start["params"]["pixels"]}}
  cast = {"params": compute_cast(params, jnp.bfloat16), "teacher": start["teacher"]}
  batch = compute_cast({"image": image}, jnp.bfloat16) | dict.fromkeys(
    task.exact, image
  )
  # In bfloat16 one id in 200 is another.
  ids = run(PIXELS, image, method="encode").ids
  assert np.array_equal(jax.jit(task.targets)(cast, batch["image"]), ids)
  with jax.numpy_dtype_promotion("standard"):  # flax's norms raise bfloat16
    loss = jax.jit(task.losses)(cast, batch, jax.random.key(0), jnp.int32(0))
    low = compute_cast({"image": image}, jnp.bfloat16)["image"]
    logits = run_proxy(task, cast["params"], low).astype(jnp.float32)
  expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)
  np.testing.assert_allclose(loss.metrics["cross_entropy"], expected.mean(), rtol=1e-4)


def test_the_divergence_counts_every_token():
  moments = np.asarray(run(VAE, PICTURE, method="latents"))
  mean, logvar = np.split(moments, 2, axis=-1)
  logvar = np.clip(logvar, -30, 20)
  each = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)
  key = jax.random.key(0)
  output = run(VAE, PICTURE, method="__call__", train=True, rngs={"bits": key})
  np.testing.assert_allclose(output.losses["kl"], each.sum((1, 2)).mean(), rtol=1e-5)


def run_proxy(task: ProxyCodes, params, image=PICTURE) -> jax.Array:
  module = task.model.build()
  logits, _ = jax.jit(
    lambda p: module.apply({"params": p}, image, method="proxy_logits")
  )(params)
  return logits.reshape(len(image), 16, -1)


@pytest.mark.parametrize("slug", ["titok", "maskgit-vqgan", "one-d-piece"])
def test_the_recipes(slug):
  recipes = {name: make() for name, make in load_experiment(slug).RECIPES.items()}
  assert all(recipe.name == name for name, recipe in recipes.items())
  # One of each kind; the others differ in sizes.
  kinds = {(type(r.task), len(r.task.players)): r for r in recipes.values()}
  for recipe in kinds.values():
    assert shapes(recipe)["params"]


def test_the_nano_recipe_learns_and_its_critic_plays():
  recipe = load_experiment("titok").RECIPES["nano"]()
  model = dataclasses.replace(recipe.task.model, encoder=Size(32, 1, 2))
  model = dataclasses.replace(model, decoder=Size(32, 1, 2))
  seen = first_steps(recipe, model)
  assert seen["l2"][-1] < 0.9 * seen["l2"][0]
  assert seen["discriminator"][-1] < seen["discriminator"][4]
