"""Open-MAGVIT2's and IBQ's tokenizers: parity, tables, sizes, bad input, first steps."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import random_variables
from tests.parity.base import compare, compiled
from tests.parity.open_magvit2 import COMPARISONS
from tests.tokenizers.training import first_steps, shapes
from tokzoo.cli.experiments import load_experiment
from tokzoo.errors import TokzooError
from tokzoo.files import read_safetensors
from tokzoo.hub import abstract_variables, catalog
from tokzoo.tokenizers.image import llamagen
from tokzoo.tokenizers.image.open_magvit2 import (
  IBQ_PRESETS,
  IBQ_WEIGHTS,
  PRESETS,
  WEIGHTS,
  Config,
  IBQConfig,
)
from tokzoo.tokens import Tokens
from tokzoo.weights import flatten, write_safetensors

DATA = Path(__file__).parents[1] / "parity/data"

LFQ = Config(image_size=8, width=8, multipliers=(1, 2), blocks=1, bits=5, groups=4)
IBQ = IBQConfig(
  image_size=8,
  width=8,
  multipliers=(1, 2),
  blocks=1,
  attention=(1,),
  latent_dim=8,
  groups=4,
  num_codes=32,
  code_dim=4,
)
BOTH = pytest.mark.parametrize(
  ("config", "table"), [(LFQ, WEIGHTS), (IBQ, IBQ_WEIGHTS)], ids=("lfq", "ibq")
)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
  draw = np.random.default_rng(0)
  return draw.uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)


def fixture_of(kind: str) -> Path:
  return next(DATA.glob(f"{kind}*.safetensors"))


@pytest.mark.parametrize("kind", COMPARISONS)
def test_fixture(kind):
  rows = compare(fixture_of(kind))
  assert [row for row in rows if not row.passed] == [] and len(rows) > 10


def test_a_changed_parameter_goes_red(tmp_path):
  path = fixture_of("open-magvit2-lfq")
  tensors, metadata = read_safetensors(path, "fixture")
  key = "param/decoder.adaptive.0.gamma.weight"
  weight = tensors[key].copy()
  weight.flat[0] += 0.1 * np.abs(weight).max()
  write_safetensors(tmp_path / path.name, {**tensors, key: weight}, metadata)
  failed = {row.name for row in compare(tmp_path / path.name) if not row.passed}
  assert "out/decoded" in failed and "out/encoder" not in failed


@BOTH
def test_the_table_is_total_both_ways(config, table):
  variables = random_variables(config)
  state = table.to_authors(variables)
  again = flatten(table.to_ours(state, variables))
  for path, array in flatten(variables).items():
    np.testing.assert_array_equal(again[path], array)
  with pytest.raises(TokzooError, match=r"lack 'decoder.conv_in.weight'"):
    kept = {k: v for k, v in state.items() if k != "decoder.conv_in.weight"}
    table.to_ours(kept, variables)


def test_the_tables_speak_of_the_published_keys():
  lfq = WEIGHTS.to_authors(random_variables(LFQ))
  ibq = IBQ_WEIGHTS.to_authors(random_variables(IBQ))
  assert "encoder.conv_in.bias" not in lfq and "decoder.conv_in.bias" in lfq
  for state, wanted in (
    (
      lfq,
      {
        "encoder.down.0.downsample.weight": (8, 8, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (16, 8, 1, 1),
        "encoder.mid_block.0.conv1.weight": (16, 16, 3, 3),
        # The finest level is number 0, on both sides.
        "decoder.adaptive.0.gamma.weight": (16, 5),
        "decoder.up.1.upsample.conv1.weight": (64, 16, 3, 3),
      },
    ),
    (
      ibq,
      {
        "encoder.down.1.attn.0.proj_out.weight": (16, 16, 1, 1),
        "encoder.mid.block_1.norm1.bias": (16,),
        "decoder.up.1.upsample.conv.weight": (16, 16, 3, 3),
        "quant_conv.bias": (4,),
        "quantize.embedding.weight": (32, 4),
      },
    ),
  ):
    assert {key: state[key].shape for key in wanted} == wanted


@BOTH
def test_running_averages_are_preferred(config, table):
  variables = random_variables(config)
  state = table.to_authors(variables)
  other = table.to_authors(random_variables(config, seed=1))
  averages = {f"model_ema.{k.replace('.', '')}": v for k, v in other.items()}
  logits = {"loss.discriminator.main.0.bias": np.zeros(3)}
  extra = {"model_ema.decay": np.zeros(()), "model_ema.lossdiscriminatormain0bias": 0}
  # In either order: a file may begin with its averages.
  for file in ({**state, **averages}, {**averages, **state}):
    ours = table.to_ours({**logits, **extra, **file}, variables)
    for path, array in flatten(random_variables(config, seed=1)).items():
      np.testing.assert_array_equal(flatten(ours)[path], array)
  with pytest.raises(TokzooError, match="model_ema"):
    table.to_ours({**state, "model_ema.encoderconvon": np.zeros(3)}, variables)
  # Unless the file's own weights are asked for.
  ours = table.raw().to_ours({**logits, **extra, **state, **averages}, variables)
  for path, array in flatten(variables).items():
    np.testing.assert_array_equal(flatten(ours)[path], array)


def test_each_generator_has_the_weights_that_its_authors_decode_with():
  for name, entry in catalog().items():
    if entry.system == "open-magvit2" and entry.part.endswith("ar"):
      assert entry.tokenizer is not None
      tokenizer = catalog()[entry.tokenizer]
      assert tokenizer.averaged == (entry.part == "ibq-ar"), name


@pytest.mark.parametrize(
  ("preset", "millions"),
  [
    # Counted from the published layout; the papers give no number.
    (PRESETS["open-magvit2-256"], 115.1),
    (PRESETS["open-magvit2-128"], 112.0),
    (IBQ_PRESETS["ibq-16384"], 111.0),
    (IBQ_PRESETS["ibq-262144"], 173.9),
  ],
)
def test_the_published_sizes(preset, millions):
  leaves = flatten(abstract_variables(preset)).values()
  assert abs(sum(leaf.size for leaf in leaves) / 1e6 - millions) < 0.1


@BOTH
def test_pictures_of_any_fitting_size(config, table, picture):
  module, variables = config.build(), random_variables(config)
  output = compiled(module.apply)(variables, picture)
  tokens = output.tokens
  assert tokens.ids.shape == (2, 24) and tokens.grid == (4, 6) and tokens.vocab == 32
  assert len(np.unique(tokens.ids)) > 1
  decode = compiled(lambda v, t: module.apply(v, t, method="decode"))
  shown = decode(variables, tokens)
  np.testing.assert_allclose(output.reconstruction, shown, rtol=1e-4, atol=1e-4)


def test_the_first_channel_is_the_lowest_bit():
  module, variables = LFQ.build(), random_variables(LFQ)
  signs = module.apply(variables, jnp.arange(32), method="ids_to_codes")
  bits = (np.arange(32)[:, None] >> np.arange(5)) & 1
  np.testing.assert_array_equal(signs, 2.0 * bits - 1)
  latents = jnp.asarray(signs).reshape(1, 4, 8, 5)
  found = module.apply(variables, latents, method="quantize")
  np.testing.assert_array_equal(found.ids[0], np.arange(32))
  zero = module.apply(variables, jnp.zeros((1, 2, 2, 5)), method="quantize")
  np.testing.assert_array_equal(zero.ids, np.zeros((1, 4)))


@BOTH
def test_pictures_and_tokens_that_do_not_fit(config, table, picture):
  module, variables = config.build(), random_variables(config)
  with pytest.raises(
    TokzooError, match=r"9 x 8 pixels does not fit: .* multiples of 2"
  ):
    module.apply(variables, jnp.zeros((1, 9, 8, 3)), method="encode")
  with pytest.raises(TokzooError, match=r"3 tokens were asked for.* always has 24"):
    module.apply(variables, picture, num_tokens=3, method="encode")
  ids = jnp.zeros((1, 16), jnp.int32)
  for wrong, said in (
    (Tokens.from_ids(ids + 32, 32, grid=(4, 4)), "id 32 is out of range.* 0 to 31"),
    (Tokens.from_ids(ids, 64, grid=(4, 4)), "32 codes; these are ids of 64 codes"),
    (Tokens.from_ids(ids, 32, grid=(3, 5)), "3 x 5 tokens are not those"),
  ):
    with pytest.raises(TokzooError, match=said):
      module.apply(variables, wrong, method="decode")


def test_a_single_token_has_no_variance_over_space():
  module, variables = LFQ.build(), random_variables(LFQ)
  said = "2 x 2 pixels gives a single token.* at least 4 pixels"
  with pytest.raises(TokzooError, match=said):
    module.apply(variables, jnp.zeros((1, 2, 2, 3)), method="encode")
  one = Tokens.from_ids(jnp.zeros((1, 1), jnp.int32), 32, grid=(1, 1))
  with pytest.raises(TokzooError, match=said):
    module.apply(variables, one, method="decode")


def test_the_first_steps_of_nano():
  recipe = load_experiment("open-magvit2").RECIPES["nano"]()
  seen = first_steps(recipe, LFQ)
  assert seen["l1"][-1] < 0.9 * seen["l1"][0]
  assert seen["discriminator"][-1] < seen["discriminator"][4]
  assert np.isfinite(seen["lecam"]).all() and seen["sample_entropy"][0] > 0


def test_ibq_weighs_its_losses_and_learns():
  task = load_experiment("open-magvit2").RECIPES["ibq-nano"]().task
  task = dataclasses.replace(task, model=IBQ, perceptual=(), adversary=None)
  batch = {"image": np.zeros((2, 8, 8, 3), np.float32) + np.float32(0.5)}
  variables = random_variables(IBQ)

  def total(params):
    found = task.losses({"params": params}, batch, jax.random.key(0), jnp.int32(0))
    return found.players["model"], found.metrics

  (loss, seen), slope = compiled(jax.value_and_grad(total, has_aux=True))(
    variables["params"]
  )
  wanted = seen["l1"] + seen["quantization"] + seen["commitment"]
  wanted += 0.25 * seen["codebook"]
  wanted += 0.05 * (seen["sample_entropy"] - seen["batch_entropy"])
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  # Every code is moved, not only those that were chosen.
  assert (np.abs(slope["quantizer"]["codes"]).max(1) > 0).all()


def test_the_published_recipes_can_be_planned():
  recipes = load_experiment("open-magvit2").RECIPES
  assert {name: make().name for name, make in recipes.items()} == dict(
    zip(recipes, recipes, strict=True)
  )
  blurred = shapes(recipes["lfq-pretrain-16384"]())["params"]["discriminator"]
  assert blurred["conv_2"]["kernel"].shape == (3, 3, 256, 512)
  assert blurred["norm_2"] and "conv_3" not in blurred
  assert shapes(recipes["ibq-ar-b"]())["params"]["tok_emb"]


def test_the_published_recipes_are_those_of_the_source():
  made = {
    name: make() for name, make in load_experiment("open-magvit2").RECIPES.items()
  }
  for name, recipe in made.items():
    model = recipe.optimizers["model"]
    if "nano" in name:
      continue
    if "ar-" in name:
      # Gains and biases decay as well.
      assert (model.weight_decay, model.decay_axes) == (0.05, 1)
      continue
    assert not recipe.data.flip and (model.b1, model.b2) == (0.5, 0.9)
    assert recipe.batch_size == 256 and model.peak_lr == 1e-4
    crop = "center" if "pretrain" in name else "random"
    assert recipe.data.crop == crop
    assert (recipe.steps == 1_500_000) == ("pretrain" in name)
  assert len([name for name in made if "pretrain" in name]) == 4


VQ_WEIGHTS = {"codebook": 1.0, "commitment": 0.25}
"""Published, of the nearest code."""
NEAREST = llamagen.Config(num_codes=32, code_dim=4, is_unit_norm=False)


@pytest.mark.parametrize("config", [IBQ, NEAREST], ids=("ibq", "nearest"))
@pytest.mark.parametrize(
  ("scale", "deviation"), [(None, 1 / 32 / 3**0.5), (2.0, 2.0)], ids=("published", "2")
)
def test_codes_start_as_configured(config, scale, deviation):
  module = dataclasses.replace(config, codes_scale=scale).build()
  start = module.init(jax.random.key(0), method=lambda m: m.quantizer.codebook())
  codes = np.asarray(start["params"]["quantizer"]["codes"])
  assert codes.shape == (32, 4)
  assert codes.std() == pytest.approx(deviation, rel=0.15)
  if scale is None:
    assert np.abs(codes).max() <= 1 / 32


def test_the_baseline_of_claim_1_starts_where_ibq_does():
  experiment = load_experiment("open-magvit2")
  many, plain = experiment.MANY, experiment.MANY_PLAIN
  assert plain.codes_scale == many.codes_scale and plain.num_codes == many.num_codes
  tenth = {name: 0.1 * weight for name, weight in VQ_WEIGHTS.items()}
  assert pytest.approx(tenth) == experiment.SMALL_VQ_WEIGHTS
