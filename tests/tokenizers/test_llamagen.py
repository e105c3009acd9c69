"""LlamaGen's tokenizer: parity, the table, sizes, bad input, the first steps of training."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import random_variables
from tests.parity.base import compare, compiled
from tests.parity.llamagen import COMPARISONS
from tests.tokenizers.training import first_steps, shapes
from tokzoo.cli.experiments import load_experiment
from tokzoo.errors import TokzooError
from tokzoo.files import read_safetensors
from tokzoo.hub import abstract_variables
from tokzoo.tokenizers.image.llamagen import PRESETS, WEIGHTS, Config
from tokzoo.tokens import Tokens
from tokzoo.weights import flatten, write_safetensors

DATA = Path(__file__).parents[1] / "parity/data"

TINY = Config(
  image_size=8,
  width=8,
  multipliers=(1, 2),
  blocks=1,
  latent_dim=8,
  groups=4,
  num_codes=32,
  code_dim=4,
)


@pytest.fixture(scope="module")
def tiny():
  """The module, variables, and two pictures of 8 x 12 pixels."""
  picture = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
  return TINY.build(), random_variables(TINY), picture


def fixture_of(kind: str) -> Path:
  paths = DATA.glob(f"{kind}*.safetensors")
  return next(p for p in paths if read_safetensors(p, "fixture")[1]["kind"] == kind)


@pytest.mark.parametrize("kind", COMPARISONS)
def test_fixture(kind):
  rows = compare(fixture_of(kind))
  assert [row for row in rows if not row.passed] == [] and len(rows) > 3


def test_a_changed_parameter_goes_red(tmp_path):
  path = fixture_of("llamagen-vq")
  tensors, metadata = read_safetensors(path, "fixture")
  weight = tensors["param/post_quant_conv.weight"].copy()
  weight.flat[0] += 0.01 * np.abs(weight).max()
  changed = {**tensors, "param/post_quant_conv.weight": weight}
  write_safetensors(tmp_path / path.name, changed, metadata)
  assert any(not row.passed for row in compare(tmp_path / path.name))


def test_the_table_is_total_both_ways_and_speaks_of_the_published_keys():
  variables = random_variables(TINY)
  state = WEIGHTS.to_authors(variables)
  again = flatten(WEIGHTS.to_ours(state, variables))
  for path, array in flatten(variables).items():
    np.testing.assert_array_equal(again[path], array)
  for key, shape in {
    "encoder.conv_blocks.0.downsample.conv.weight": (8, 8, 3, 3),
    "encoder.conv_blocks.1.attn.0.proj_out.weight": (16, 16, 1, 1),
    "encoder.mid.1.q.bias": (16,),
    # The decoder's first block is its coarsest level.
    "decoder.conv_blocks.0.upsample.conv.weight": (16, 16, 3, 3),
    "decoder.conv_blocks.1.res.0.nin_shortcut.weight": (8, 16, 1, 1),
    "quant_conv.weight": (4, 8, 1, 1),
    "quantize.embedding.weight": (32, 4),
  }.items():
    assert state[key].shape == shape, key
  used = {**state, "quantize.codebook_used": np.zeros(65536, np.float32)}
  assert len(flatten(WEIGHTS.to_ours(used, variables))) == len(again)
  with pytest.raises(TokzooError, match=r"hold 'encoder.conv_blocks.7"):
    key = "encoder.conv_blocks.7.res.0.norm1.bias"
    WEIGHTS.to_ours({**state, key: np.zeros(8)}, variables)


@pytest.mark.parametrize(("preset", "millions"), [("16", 72), ("8", 70)])
def test_the_published_sizes(preset, millions):
  leaves = flatten(abstract_variables(PRESETS[f"llamagen-vq-{preset}"])).values()
  assert round(sum(leaf.size for leaf in leaves) / 1e6) == millions


def test_pictures_of_any_fitting_size(tiny):
  module, variables, picture = tiny
  tokens = compiled(lambda v, x: module.apply(v, x, method="encode"))(
    variables, picture
  )
  assert tokens.ids.shape == (2, 24) and tokens.grid == (4, 6) and tokens.vocab == 32
  shown = module.apply(variables, tokens, method="decode")
  again = compiled(module.apply)(variables, picture)
  np.testing.assert_array_equal(again.tokens.ids, tokens.ids)
  np.testing.assert_allclose(again.reconstruction, shown, rtol=1e-4, atol=1e-4)
  # Latents and codes count by their direction alone.
  scaled = jax.tree.map(lambda x: x, variables)
  scaled["params"]["quantizer"]["codes"] = variables["params"]["quantizer"]["codes"] * 3
  np.testing.assert_allclose(
    module.apply(scaled, tokens, method="decode"), shown, rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize(
  ("shape", "said"),
  [
    ((1, 9, 8, 3), "9 x 8 pixels does not fit: .* multiples of 2"),
    ((1, 8, 8, 1), r"\[B, H, W, 3\] were expected"),
    ((8, 8, 3), "stack them to a batch"),
  ],
)
def test_pictures_that_do_not_fit(tiny, shape, said):
  module, variables, _ = tiny
  with pytest.raises(TokzooError, match=said):
    module.apply(variables, jnp.zeros(shape), method="encode")


def test_numbers_and_tokens_that_do_not_fit(tiny):
  module, variables, picture = tiny
  with pytest.raises(TokzooError, match=r"25 tokens were asked for.* always has 24"):
    module.apply(variables, picture, num_tokens=25, method="encode")

  def decode(tokens, **settings):
    return module.apply(variables, tokens, **settings, method="decode")

  ids = jnp.zeros((1, 16), jnp.int32)
  with pytest.raises(TokzooError, match=r"id 32 is out of range.* 0 to 31"):
    decode(Tokens.from_ids(ids.at[0, 3].set(32), 32, grid=(4, 4)))
  with pytest.raises(TokzooError, match="32 codes; these are ids of 64 codes"):
    decode(Tokens.from_ids(ids, 64, grid=(4, 4)))
  with pytest.raises(TokzooError, match="not those of a picture of 8 x 16 pixels"):
    decode(Tokens.from_ids(ids, 32, grid=(4, 4)), size=(8, 16))


def test_the_entropies_are_those_of_the_distances(tiny):
  _, variables, picture = tiny
  config = dataclasses.replace(TINY, entropy_temperature=0.5)
  model = config.build()
  found = compiled(lambda v, x: model.apply(v, x, train=True).losses)(
    variables, picture
  )
  z = np.asarray(model.apply(variables, picture, method="latents"), np.float64)
  z, codes = z.reshape(-1, 4), np.float64(variables["params"]["quantizer"]["codes"])
  z, codes = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, codes))
  p = np.exp(-((z[:, None] - codes[None]) ** 2).sum(-1) / 0.5)
  p /= p.sum(1, keepdims=True)
  mean = p.mean(0)
  sample = -(p * np.log(p)).sum(1).mean()
  # The source adds 1e-5 to every probability inside the logarithm.
  np.testing.assert_allclose(found["sample_entropy"], sample, rtol=1e-3)
  np.testing.assert_allclose(
    found["batch_entropy"], -(mean * np.log(mean)).sum(), rtol=1e-3
  )


def test_the_first_steps_of_nano():
  recipe = load_experiment("llamagen").RECIPES["nano"]()
  seen = first_steps(recipe, TINY)
  assert seen["l2"][-1] < 0.8 * seen["l2"][0]
  assert seen["discriminator"][-1] < seen["discriminator"][4]


def test_the_published_recipes_can_be_planned():
  recipes = load_experiment("llamagen").RECIPES
  assert {name: make().name for name, make in recipes.items()} == dict(
    zip(recipes, recipes, strict=True)
  )
  assert {"discriminator", "encoder"} <= set(shapes(recipes["vq-16"]())["params"])
  captioned = shapes(recipes["t2i-xl-512"]())
  assert captioned["params"]["cap_proj"]["fc1"]["kernel"].shape == (2048, 1280)
