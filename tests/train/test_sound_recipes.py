"""The recipes of the sound systems fit together, and the benchmark writes what it should."""

import csv
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.codecs import CAUSAL, pretrained
from tokzoo.cli.experiments import load_experiment
from tokzoo.data.packaged import sound_crops
from tokzoo.errors import TokzooError
from tokzoo.metrics import audio as metrics
from tokzoo.nn.sound_critics import (
  MSSTFT,
  Critics,
  MultiBand,
  MultiPeriod,
  MultiResolution,
  MultiScale,
)
from tokzoo.systems import SYSTEMS
from tokzoo.train.optim import make_optimizer, update
from tokzoo.train.plan.programs import batch_shapes
from tokzoo.train.sound_recipes import LouderStart, smaller
from tokzoo.train.step import compute_cast
from tokzoo.weights import flatten

SOUND = [slug for slug, system in SYSTEMS.items() if system.modality == "sound"]
TOKENIZERS = [slug for slug in SOUND if SYSTEMS[slug].kind == "tokenizer"]
RECIPES = [(slug, name) for slug in SOUND for name in load_experiment(slug).RECIPES]


def losses_of(recipe, dtype=jnp.float32):
  """Shapes of a step's losses, without compiling anything."""
  batch, task, key = batch_shapes(recipe), recipe.task, jax.random.key(0)
  variables = jax.eval_shape(task.init, key, batch)

  def step(variables, batch):
    cast = {**variables, "params": compute_cast(variables["params"], dtype)}
    return task.losses(cast, compute_cast(batch, dtype), key, jnp.int32(0))

  return task, jax.eval_shape(step, variables, batch)


# Tracing takes seconds each: every day those with an objective of their own.
EVERYDAY = (("encodec", "nano"), ("dm-codec", "nano"), ("flow-omni", "nano"))
NANO = [
  pytest.param(*pair, marks=() if pair in EVERYDAY else pytest.mark.slow)
  for pair in RECIPES
  if "nano" in pair[1]
]


@pytest.mark.parametrize("slug, name", NANO)
def test_a_nano_recipe_fits_its_data_and_players(slug, name):
  recipe = load_experiment(slug).RECIPES[name]()
  assert recipe.system == slug and recipe.name == name
  assert recipe.data.source.startswith(("tones", "taught-tones", "speech-prompts"))
  task, losses = losses_of(recipe)
  assert set(losses.players) == set(task.players) == set(recipe.optimizers)
  assert all(loss.shape == () for loss in losses.players.values())


def test_critics_are_made_smaller_kind_by_kind():
  kinds = MultiPeriod(skips_first=True), MultiScale(), MultiBand(), MSSTFT()
  every = Critics((*kinds, MultiResolution(conditions=4)), peak=0.8)
  small = smaller(every)
  assert small.peak == 0.8 and small.conditions == 4 and small.networks[0].skips_first
  assert [type(n) for n in small.networks] == [type(n) for n in every.networks]
  wave, key = jax.ShapeDtypeStruct((1, 4_000, 1), jnp.float32), jax.random.key(0)
  sizes = [
    sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(n.init, key, wave)))
    for n in (every, small)
  ]
  assert sizes[1] < sizes[0] / 50
  with pytest.raises(TokzooError, match="Dense is not a critic"):
    smaller(nn.Dense(1))


@pytest.mark.slow
@pytest.mark.parametrize("slug, name", [p for p in RECIPES if "nano" not in p[1]])
def test_a_published_recipe_fits_its_players(slug, name):
  task, losses = losses_of(load_experiment(slug).RECIPES[name]())
  assert set(losses.players) == set(task.players)


@pytest.mark.slow
@pytest.mark.parametrize("slug, name", [p for p in RECIPES if "nano" not in p[1]])
def test_a_published_recipe_has_gradients(slug, name):
  recipe = load_experiment(slug).RECIPES[name]()
  batch, task, key = batch_shapes(recipe), recipe.task, jax.random.key(0)
  variables = jax.eval_shape(task.init, key, batch)

  def loss(params, variables, batch):
    found = task.losses({**variables, "params": params}, batch, key, jnp.int32(0))
    return sum(found.players.values())

  gradient = jax.eval_shape(jax.grad(loss), variables["params"], variables, batch)
  assert jax.tree.structure(gradient) == jax.tree.structure(variables["params"])


def test_critics_and_spectra_compute_in_bfloat16():
  _, losses = losses_of(load_experiment("encodec").RECIPES["nano"](), jnp.bfloat16)
  assert {loss.dtype for loss in losses.players.values()} == {jnp.dtype("float32")}
  wave = jax.ShapeDtypeStruct((1, 600, 1), jnp.bfloat16)
  for critic in (
    MultiScale((2,) * 7, 1),
    MultiPeriod((2,), (2, 2)),
    MultiResolution((32,), 2, conditions=2),
    MultiBand((32,), 2),
  ):

    def judge(wave, critic=critic):
      variables = critic.init(jax.random.key(0), wave)
      params = compute_cast(
        variables["params"], jnp.bfloat16
      )  # what they keep is float32
      return critic.apply({**variables, "params": params}, wave)

    found = jax.eval_shape(judge, wave)
    assert {verdict.logits.dtype for verdict in found} == {jnp.dtype("bfloat16")}


def test_the_taxonomy_has_every_codec():
  assert set(load_experiment("discrete-audio-tokens").TAXONOMY) == set(TOKENIZERS)


def test_the_benchmark_writes_tables_and_a_figure(tmp_path, monkeypatch):
  experiment = load_experiment("discrete-audio-tokens")
  model = dataclasses.replace(
    CAUSAL, sample_rate_hz=2_000, bandwidths_kbps=(1.0, 2.0, 4.0)
  )
  tiny = pretrained(model)
  monkeypatch.setattr(experiment, "_from_catalog", lambda say: [])
  monkeypatch.setattr(experiment, "_nano", lambda source, say: [tiny])
  monkeypatch.setattr(experiment, "_source", lambda: "tones")
  monkeypatch.setattr(experiment, "_SOUNDS", 2)
  monkeypatch.setattr(metrics, "_package", lambda name: None)
  told = []
  lines = experiment.benchmark(tmp_path, told.append)
  with open(tmp_path / "benchmark.csv") as file:
    rows = list(csv.DictReader(file))
  assert [row["codebooks"] for row in rows] == ["1", "2", "4"] and len(told) == 4
  assert "tones stand for sounds" in told[0]
  # 250 frames a second of 4 bits.
  assert [float(row["kbps"]) for row in rows] == [1.0, 2.0, 4.0]
  assert all(row["stoi"] == "" and np.isfinite(float(row["sdr_db"])) for row in rows)
  assert (tmp_path / "rates.png").stat().st_size > 1_000
  text = "\n".join(lines)
  # The first row of a codec says what it is, the others its rates.
  assert (
    "| CNN+RNN, time | RVQ | GAN" in text and "| tiny |  |  |  |  |  |  | 4 |" in text
  )
  assert text.index("## Benchmark") < text.index("The survey's rows")


def test_a_louder_start_scales_the_convolutions_of_seanet_alone():
  recipe = load_experiment("encodec").RECIPES["nano"]()
  fields = {
    f.name: getattr(recipe.task, f.name) for f in dataclasses.fields(recipe.task)
  }
  batch = {"audio": jnp.zeros((1, 400, 1))}
  key, gain = jax.random.key(0), 3.0

  def sizes(task):
    params = task.init(key, batch)["params"]
    return {path: jnp.abs(leaf).sum() for path, leaf in flatten(params).items()}

  # One program for both: what is compared is then all that it computes.
  plain, loud = jax.jit(
    lambda: (sizes(recipe.task), sizes(LouderStart(**fields, gain=gain)))
  )()
  ratios = {path: float(loud[path] / plain[path]) for path in plain if plain[path] > 0}
  scaled = {path for path, ratio in ratios.items() if abs(ratio - gain) < 1e-4}
  assert all(path in scaled or abs(ratio - 1) < 1e-6 for path, ratio in ratios.items())
  # First and last layer, stride, residual block and shortcut of either side; no critic.
  assert {path.split("/")[0] for path in scaled} == {"encoder", "decoder"}
  for name in ("layer_0", "layer_1/block_1", "layer_1/shortcut", "layer_3", "layer_8"):
    assert f"encoder/{name}/kernel" in scaled
  assert any(path.startswith("discriminator/") for path in ratios)


def test_energy_distance_is_zero_between_halves_and_not_between_modes():
  experiment = load_experiment("flow-omni")
  draw = np.random.default_rng(0)
  x, y = draw.normal(size=(2, 400, 2))
  assert abs(experiment.energy_distance(x, y)) < 0.02
  assert experiment.energy_distance(x, y + 3) > 1


@pytest.mark.parametrize("quantizer, ids", [("rvq", (1, 20, 8)), ("fsq", (1, 20))])
def test_the_ablation_quantizes_one_encoder_in_several_ways(quantizer, ids):
  module = load_experiment("discrete-audio-tokens").AblationConfig(quantizer).build()
  wave = jax.ShapeDtypeStruct((1, 640, 1), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), wave)
  output = jax.eval_shape(module.apply, variables, wave)
  assert output.reconstruction.shape == wave.shape and output.tokens.ids.shape == ids


def test_the_benchmark_measures_the_beginnings_of_sounds(monkeypatch):
  experiment = load_experiment("discrete-audio-tokens")
  monkeypatch.setattr(experiment, "_SOUNDS", 3)
  config = sound_crops("test", 2_000, 0.4)
  assert [wave.shape for wave in experiment._waves(config, 2)] == [(800, 2)] * 3
  assert not list(experiment._waves(sound_crops("test", 2_000, 1.5), 1))


def test_encodecs_published_critics_are_the_papers():
  recipes = load_experiment("encodec").RECIPES
  for name, longest, apart in (("24khz", 2048, False), ("48khz", 4096, True)):
    critic = recipes[name]().task.adversary.network
    assert sorted(critic.n_ffts) == [longest // 2**i for i in (4, 3, 2, 1, 0)]
    assert critic.apart == apart


def test_of_mimi_the_transformers_alone_decay():
  recipe = load_experiment("mimi").RECIPES["published"]()
  assert recipe.ema == 0.99
  optimizer = recipe.optimizers["model"]
  assert optimizer.weight_decay == 0.05
  model = load_experiment("mimi").SMALL
  wave = jax.ShapeDtypeStruct((1, 640, 1), jnp.float32)
  like = jax.eval_shape(model.build().init, jax.random.key(0), wave)["params"]
  params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), like)
  rule = make_optimizer(dataclasses.replace(optimizer, peak_lr=1.0), recipe.steps)
  still = jax.tree.map(jnp.zeros_like, params)
  change, _ = update(rule, still, rule.init(params), params)
  falls = {path.split("/")[0] for path, x in flatten(change).items() if (x < 1).any()}
  assert falls == {"encoder_transformer", "decoder_transformer"}


def test_dm_codecs_published_data_are_not_cut():
  """The frames of a language model do not lie evenly over a sound."""
  recipe = load_experiment("dm-codec").RECIPES["librispeech"]()
  assert recipe.data.crop == recipe.evaluators["held_out"].data.crop == "none"
  assert recipe.data.seconds == 3.0


def test_x_codecs_published_objective_is_the_authors():
  recipe = load_experiment("xcodec").RECIPES["librispeech"]()
  task, optimizer = recipe.task, recipe.optimizers["model"]
  assert task.weights == {"commitment": 1.0, "semantic": 100.0} and task.mel is None
  assert [r.n_fft for r in task.stft.resolutions] == [512, 1024, 2048]
  assert recipe.batch_size == 64 and recipe.data.seconds == 3.0
  assert (optimizer.peak_lr, optimizer.eps, optimizer.clip_norm) == (2e-4, 1e-6, 2.0)
  assert np.isclose(optimizer.decay ** (281_241 / 64), 0.999)
  # The teacher stays what was loaded, untouched by the decay of weights.
  assert recipe.freeze == ("^semantic_model/",)
  # 20 times the mean over all maps.
  network, wave = task.adversary.network, jax.ShapeDtypeStruct((1, 9_000, 1), float)
  found, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), wave)
  maps = sum(len(verdict.maps) for verdict in found)
  assert np.isclose(task.adversary.feature_weight * maps, 20)
