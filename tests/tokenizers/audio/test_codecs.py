"""What every codec promises: lengths, rates, prefixes, one sentence for what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.parity.base import compiled
from tests.tokenizers.audio.tiny import (
  CONFIGS,
  mostly_slow,
  run,
  sound,
  variables_of,
)
from tokzoo.contract import Tokenizer
from tokzoo.errors import TokzooError
from tokzoo.systems import find_part, part_of_config
from tokzoo.tokenizers.audio import (
  dac,
  encodec,
  mimi,
  snac,
  speechtokenizer,
  wavtokenizer,
  xcodec,
)
from tokzoo.tokens import Tokens
from tokzoo.train import from_json, to_json
from tokzoo.train.mesh import ambient

STREAMS = ("params", "quantizer", "codebook", "noise")


def keys(seed: int) -> dict:
  return {name: jax.random.key(seed + i) for i, name in enumerate(STREAMS)}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_says_what_there_is(name):
  config = CONFIGS[name]
  assert isinstance(config.build(), Tokenizer)
  assert isinstance(config.is_causal, bool)
  for field in ("sample_rate_hz", "channels", "hop", "num_codebooks", "num_codes"):
    assert isinstance(getattr(config, field), int) and getattr(config, field) > 0
  rates = config.rates_kbps
  assert list(rates) == sorted(rates) and max(rates.values()) == config.num_codebooks
  assert all(isinstance(kbps, float | int) and kbps > 0 for kbps in rates)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_kept_as_json(name):
  config = CONFIGS[name]
  assert from_json(to_json(config)) == config
  assert find_part(*part_of_config(config)).config.endswith("Config")


@pytest.mark.parametrize("name", CONFIGS)
def test_half_precision_stays_half(name):
  """bfloat16 weights and audio: what quantizers and norms give goes on in bfloat16."""
  config, half = CONFIGS[name], jnp.bfloat16
  variables = {
    **variables_of(name),
    "params": jax.tree.map(lambda p: p.astype(half), variables_of(name)["params"]),
  }
  x = sound(config, config.hop * 3).astype(half)
  module = config.build()
  decoder = "backbone" if name == "wavtokenizer" else "decoder"

  def run(variables):
    output, found = module.apply(variables, x, capture_intermediates=True)
    return output, found["intermediates"][decoder]["__call__"][0]

  with jax.numpy_dtype_promotion("standard"):
    output, inside = jax.eval_shape(run, variables)
  assert output.reconstruction.dtype == jnp.float32 and inside.dtype == half


@pytest.mark.parametrize("name", mostly_slow("encodec-stereo", "mimi", "xcodec"))
def test_one_sample_comes_back(name):
  check_any_length(name, 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_any_length_comes_back(name):
  check_any_length(name, 5)


def check_any_length(name: str, hops: int) -> None:
  """So many hops and one sample."""
  config = CONFIGS[name]
  samples = hops * config.hop + 1
  x = sound(config, samples)

  def both(module, x):
    tokens, output = module.encode(x), module(x)
    return tokens, output, module.decode(tokens)

  tokens, output, audio = run(name, both, x)
  frames = tokens.ids.shape[1]
  assert tokens.ids.shape == (2, frames, config.num_codebooks)
  assert tokens.vocab == config.num_codes
  if name != "encodec-stereo":
    multiple = getattr(config, "multiple", config.hop)
    assert frames == -(-samples // multiple) * multiple // config.hop
  tokens.check()
  np.testing.assert_array_equal(tokens.ids, output.tokens.ids)
  assert output.reconstruction.shape == x.shape
  assert output.reconstruction.dtype == jnp.float32 and np.isfinite(audio).all()
  # Decoding may fall short by a few samples where strides are odd, as published. Straight
  # through, a code differs in its last digit, which tiny random networks amplify.
  length = min(samples, audio.shape[1])
  np.testing.assert_allclose(
    audio[:, :length], output.reconstruction[:, :length], atol=2e-4
  )
  assert audio.shape[1] >= samples or name == "dac"
  if name == "speechtokenizer":
    assert output.features["semantic"].shape == (2, frames, config.semantic_dim)


@pytest.mark.parametrize(
  "name", [n for n, c in CONFIGS.items() if len(c.rates_kbps) > 1]
)
def test_fewer_codebooks_are_a_prefix(name):
  config = CONFIGS[name]
  x, few = sound(config, config.hop * 3), min(2, config.num_codebooks - 1)

  def both(module, x):
    return module.encode(x), module.encode(x, num_codebooks=few), module(x, False, few)

  whole, part, output = run(name, both, x)
  np.testing.assert_array_equal(part.ids, whole.ids[..., :few])
  np.testing.assert_array_equal(output.tokens.ids, part.ids)
  audio = run(name, "decode", part)
  assert not np.allclose(audio, run(name, "decode", whole))
  length = min(x.shape[1], audio.shape[1])
  np.testing.assert_allclose(
    audio[:, :length], output.reconstruction[:, :length], atol=2e-4
  )


@pytest.mark.parametrize("name", CONFIGS)
def test_what_does_not_fit_is_one_sentence(name):
  config = CONFIGS[name]
  module, variables = config.build(), variables_of(name)
  x = sound(config, config.hop)

  def encode(x, **settings):
    return module.apply(variables, x, method="encode", **settings)

  def decode(ids, vocab=config.num_codes):
    given = Tokens.from_ids(ids, vocab)
    if name == "encodec-stereo":
      given = given.replace(scale=jnp.ones((1, 1)))
    return module.apply(variables, given, method="decode")

  with pytest.raises(TokzooError, match=r"audio of shape \[B, T, \d\] was expected"):
    encode(jnp.tile(x, (1, 1, 3)))
  with pytest.raises(TokzooError, match=r"expected; this is .*: add the missing axes"):
    encode(x[0])
  with pytest.raises(TokzooError, match="no samples"):
    encode(x[:, :0])
  many = config.num_codebooks + 1
  with pytest.raises(TokzooError, match=rf"{many} codebooks were asked for"):
    encode(x, num_codebooks=many)
  with pytest.raises(TokzooError, match="0 codebooks were asked for"):
    encode(x, num_codebooks=0)
  with pytest.raises(TokzooError, match="999 frames of tokens were asked for"):
    encode(x, num_tokens=999)
  ids = jnp.zeros((1, 1, config.num_codebooks), jnp.int32)
  with pytest.raises(TokzooError, match="made them"):
    decode(ids, vocab=17)
  with pytest.raises(TokzooError, match=rf"have {many} codebooks"):
    decode(jnp.zeros((1, 1, many), jnp.int32))
  with pytest.raises(TokzooError, match="no frames"):
    decode(ids[:, :0])
  with pytest.raises(TokzooError, match=r"id 16 is out of range: .* 0 to 15"):
    decode(ids + 16)
  values = Tokens.from_values(jnp.zeros((1, 2, 3)))
  with pytest.raises(TokzooError, match="these are values"):
    module.apply(variables, values, method="decode")


@pytest.mark.parametrize("name", mostly_slow("encodec", "dac", "mimi"))
def test_training_moves_everything(name):
  """Each parameter gets a gradient, each codebook a step, in one program."""
  config = CONFIGS[name]
  module, variables = config.build(), variables_of(name)
  params = variables["params"]
  state = {k: v for k, v in variables.items() if k != "params"}
  x = sound(config, config.hop * 8)

  def loss(params, state, seed):
    output, after = module.apply(
      {"params": params, **state},
      x,
      train=True,
      rngs=keys(seed),
      mutable=["codebook"],
    )
    error = jnp.square(output.reconstruction - x).mean() + sum(output.losses.values())
    error = error + sum(jnp.square(f).mean() for f in output.features.values())
    return error, (output, after)

  step = compiled(jax.grad(loss, has_aux=True))
  # Dropped codebooks get none: some seed uses all.
  totals = None
  for seed in range(6 if "quantizer" in params or config.num_codebooks > 1 else 1):
    grads, (output, after) = step(params, state, 10 * seed)
    sizes = jax.tree.map(lambda g: float(jnp.abs(g).max()), grads)
    totals = sizes if totals is None else jax.tree.map(max, totals, sizes)
    assert all(np.isfinite(size) for size in jax.tree.leaves(sizes))
  still = {
    jax.tree_util.keystr(path)
    for path, size in jax.tree_util.tree_leaves_with_path(totals)
    if size == 0
  }
  # The teacher does not learn; a bias before a softmax over keys has no effect.
  assert {p for p in still if "semantic_model" not in p and "['k']" not in p} == set()
  assert set(output.losses) >= {"commitment"}
  assert output.stats["counts"].shape[1] == config.num_codes
  if state:
    before, now = (
      np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
      for tree in (state["codebook"], after["codebook"])
    )
    assert (before != now).any() and np.isfinite(now).all()


@pytest.mark.parametrize("name", ["encodec", "mimi", "xcodec"])
def test_commitment_is_the_mean_over_the_codebooks_in_use(name):
  """As the authors' penalties: those that the drawn rate left out do not count."""
  config = CONFIGS[name]
  module, variables = config.build(), variables_of(name)
  x = sound(config, config.hop * 8)
  mutable = [kind for kind in variables if kind != "params"]

  def step(seed):
    rngs = {"quantizer": seed, "codebook": seed}
    return module.apply(variables, x, train=True, rngs=rngs, mutable=mutable)[0]

  run, seen = compiled(step), set()
  for seed in range(12):
    output = run(jax.random.key(seed))
    used = int((output.tokens.ids[0, 0] >= 0).sum())
    # Of a level left out the loss is 0, in the stats as well.
    total = float(output.stats["commitment"].sum())
    assert output.losses["commitment"] == pytest.approx(total / used, rel=1e-5)
    seen.add(used)
  assert len(seen) > 1


def test_x_codec_decodes_the_states_of_its_teacher_for_a_loss():
  config = CONFIGS["xcodec"]
  output = run("xcodec", "__call__", sound(config, config.hop * 8))
  far = output.features["semantic"] - output.features["semantic_target"]
  expected = np.square(np.asarray(far)).mean()
  assert output.losses["semantic"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["encodec", "mimi"])
def test_codebooks_start_from_the_first_batch(name):
  config = CONFIGS[name]
  module = config.build()
  x = sound(config, config.hop * 32)
  fresh = compiled(lambda: module.init(keys(0), x))()

  def step(variables):
    return module.apply(variables, x, train=True, rngs=keys(1), mutable=["codebook"])

  _, after = compiled(step)(fresh)
  flags = jax.tree_util.tree_leaves_with_path(after["codebook"])
  started = [bool(x) for path, x in flags if path[-1].key == "is_started"]
  # Codebooks that the drawn rate left out start when their turn comes.
  assert started[0] and len(started) == config.num_codebooks


def test_published_rates():
  presets = {
    "encodec-24khz": (encodec, {1.5: 2, 3.0: 4, 6.0: 8, 12.0: 16, 24.0: 32}),
    "encodec-48khz": (encodec, {3.0: 2, 6.0: 4, 12.0: 8, 24.0: 16}),
    "encodec-32khz": (encodec, {2.2: 4}),
    "snac-24khz": (snac, {0.984: 7}),
    "snac-32khz": (snac, {1.875: 15}),
    "snac-44khz": (snac, {2.584: 15}),
    "wavtokenizer-75": (wavtokenizer, {0.9: 1}),
    "wavtokenizer-40": (wavtokenizer, {0.48: 1}),
    "xcodec-hubert-librispeech": (xcodec, {0.5: 1, 1: 2, 1.5: 3, 2: 4, 4: 8}),
  }
  for name, (module, rates) in presets.items():
    assert rates == module.PRESETS[name].rates_kbps, name
  assert mimi.PRESETS["mimi"].rates_kbps[1.1] == 8
  assert speechtokenizer.PRESETS["speechtokenizer-hubert-avg"].rates_kbps[4.0] == 8
  hops = {name: config.hop for name, config in dac.PRESETS.items()}
  assert hops == {"dac-16khz": 320, "dac-24khz": 320, "dac-44khz": 512}
  assert dac.PRESETS["dac-24khz"].rates_kbps[24.0] == 32


@pytest.mark.parametrize("name", ["encodec", "dac", "speechtokenizer"])
def test_one_device_equals_eight(name):
  """A batch split over devices: the same tokens, the same step of the codebooks."""
  config = CONFIGS[name]
  module, variables = config.build(), variables_of(name)
  mesh = Mesh(np.array(jax.devices()), ("data",))
  x = sound(config, config.hop * 4, batch=8)
  split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
  mutable = [k for k in variables if k != "params"]

  def step(variables, x):
    tokens = module.apply(variables, x, method="encode")
    output, after = module.apply(
      variables, x, train=True, rngs=keys(0), mutable=mutable
    )
    return tokens.ids, output.losses, after

  alone = compiled(step)(variables, x)
  copies = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
  shared = compiled(ambient(mesh, step))(copies, split)
  np.testing.assert_array_equal(alone[0], shared[0])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    alone[1:],
    shared[1:],
  )
