"""MaskGIT's own checkpoints: Flax files of tokenizer and generator, named as published."""

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tokzoo
from tests.parity.instella_t2i import authors_state
from tokzoo.cli.converting import convert
from tokzoo.errors import TokzooError
from tokzoo.files import read_safetensors
from tokzoo.generators.maskgit import original
from tokzoo.hub import abstract_variables, catalog
from tokzoo.tokenizers.image import maskgit_vqgan
from tokzoo.weights import flatten, read_state, unflatten

DATA = Path(__file__).parents[1] / "parity/data"
TINY = maskgit_vqgan.Config(image_size=32, width=32, code_dim=8, num_codes=16)
ASYMMETRIC = dataclasses.replace(TINY, multipliers=(1, 3, 2), res_blocks=1)
PICTURES = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
GENERATOR = original.MaskGITConfig(
  grid=(2, 2), vocab=16, mlp_width=32, num_classes=3, width=16, layers=2, heads=2
)


# ------------------------------------ the tokenizer stated again, numbered by Flax itself


class ResBlock(nn.Module):
  features: int

  @nn.compact
  def __call__(self, x):
    h = x
    for _ in range(2):
      h = nn.silu(nn.GroupNorm(32)(h))
      h = nn.Conv(self.features, (3, 3), use_bias=False)(h)
    if x.shape[-1] == self.features:
      return x + h
    return h + nn.Conv(self.features, (1, 1), use_bias=False)(h)


class Encoder(nn.Module):
  widths: tuple[int, ...]
  blocks: int
  features: int

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(self.widths[0], (3, 3), use_bias=False)(x)
    for level, width in enumerate(self.widths):
      if level:
        x = sum(x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4.0
      for _ in range(self.blocks):
        x = ResBlock(width)(x)
    for _ in range(self.blocks):
      x = ResBlock(self.widths[-1])(x)
    return nn.Conv(self.features, (1, 1))(nn.silu(nn.GroupNorm(32)(x)))


class Decoder(nn.Module):
  widths: tuple[int, ...]
  blocks: int

  @nn.compact
  def __call__(self, z):
    x = nn.Conv(self.widths[-1], (3, 3))(z)
    for _ in range(self.blocks):
      x = ResBlock(self.widths[-1])(x)
    for level, width in enumerate(reversed(self.widths)):
      if level:
        x = nn.Conv(x.shape[-1], (3, 3))(x.repeat(2, 1).repeat(2, 2))
      for _ in range(self.blocks):
        x = ResBlock(width)(x)
    return nn.Conv(3, (3, 3))(nn.silu(nn.GroupNorm(32)(x)))


class Codes(nn.Module):
  count: int

  @nn.compact
  def __call__(self, z):
    init = nn.initializers.normal(1.0)
    codes = self.param("codebook", init, (self.count, z.shape[-1]))
    distances = jnp.square(z[..., None, :] - codes[None, None, None]).sum(-1)
    ids = distances.argmin(-1)
    return codes[ids], ids


class Restated(nn.Module):
  config: maskgit_vqgan.Config

  def setup(self):
    c = self.config
    widths = tuple(c.width * m for m in c.multipliers)
    self.encoder = Encoder(widths, c.res_blocks, c.code_dim)
    self.quantizer = Codes(c.num_codes)
    self.decoder = Decoder(widths, c.res_blocks)

  def __call__(self, image):
    codes, ids = self.quantizer(self.encoder(image))
    return self.decoder(codes), ids


def shapes_of(config):
  side = config.image_size
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return jax.eval_shape(Restated(config).init, jax.random.key(0), image)


def random_params(config, seed: int = 0):
  """Parameters of the restatement, none of them zero or one."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    fan = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 2 else 1
    drawn = rng.normal(size=leaf.shape) / np.sqrt(fan)
    return (drawn if len(leaf.shape) > 1 else 0.3 * drawn + 0.7).astype(np.float32)

  return jax.tree.map(draw, shapes_of(config))


def publish(path: Path, variables) -> Path:
  path.write_bytes(flax.serialization.to_bytes(variables))
  return path


@pytest.fixture(autouse=True)
def presets(tmp_path, monkeypatch):
  """Tiny models in the place of the published ones, and a cache of their own."""
  monkeypatch.setenv("TOKZOO_CACHE", str(tmp_path / "cache"))
  for side in (256, 512):
    name = f"maskgit-vqgan-imagenet-f16-{side}"
    monkeypatch.setitem(maskgit_vqgan.PRESETS, name, TINY)
    monkeypatch.setitem(original.PRESETS, f"maskgit-imagenet-{side}", GENERATOR)


PRESET = "maskgit-vqgan-imagenet-f16-256"


@pytest.mark.parametrize("config", [TINY, ASYMMETRIC], ids=["published", "asymmetric"])
def test_a_tokenizer_equals_its_restatement(tmp_path, monkeypatch, config):
  monkeypatch.setitem(maskgit_vqgan.PRESETS, PRESET, config)
  variables = random_params(config)
  path = publish(tmp_path / "tokenizer_imagenet256_checkpoint", variables)
  model = tokzoo.load(path, preset=PRESET)
  shown, ids = jax.jit(Restated(config).apply)(variables, (PICTURES + 1) / 2)
  output = jax.jit(model.module.apply)(model.variables, PICTURES)
  np.testing.assert_array_equal(output.tokens.ids, ids.reshape(2, -1))
  assert len(np.unique(ids)) > 1
  shown = np.asarray(2 * shown - 1)
  np.testing.assert_allclose(output.reconstruction, shown, atol=1e-4 * shown.std())
  tokens = model.encode(PICTURES)
  assert tokens.grid == (32 // config.factor,) * 2
  np.testing.assert_array_equal(tokens.ids, ids.reshape(2, -1))


@pytest.mark.parametrize("side", [256, 512])
def test_the_published_keys_and_shapes(side):
  config = maskgit_vqgan.Config(image_size=side)
  found = maskgit_vqgan.flax_weights(config).published_shapes(
    abstract_variables(config)
  )
  wanted = {k: tuple(v.shape) for k, v in flatten(shapes_of(config)["params"]).items()}
  assert found == wanted and len(found) == 168
  assert found["encoder/ResBlock_8/Conv_2/kernel"] == (1, 1, 512, 512)
  assert found["decoder/ResBlock_11/GroupNorm_1/scale"] == (128,)
  assert found["decoder/Conv_5/kernel"] == (3, 3, 128, 3)
  assert found["quantizer/codebook"] == (1024, 256)


def test_files_that_do_not_fit(tmp_path):
  whole = random_params(TINY)["params"]
  path = tmp_path / "w"

  def refused(tree, said, preset=PRESET):
    publish(path, tree)
    with pytest.raises(TokzooError, match=said) as caught:
      tokzoo.load(path, preset=preset)
    assert "\n" not in str(caught.value)

  flat = flatten(whole)
  lacking = {k: v for k, v in flat.items() if k != "decoder/ResBlock_3/Conv_1/kernel"}
  refused(
    {"params": unflatten(lacking)}, "lack 'decoder/ResBlock_3/Conv_1/kernel', which"
  )
  more = {**flat, "encoder/ResBlock_12/Conv_0/kernel": np.ones(1)}
  refused(
    {"params": unflatten(more)}, "hold 'encoder/ResBlock_12/Conv_0/kernel', which"
  )
  refused({"params": whole, "batch_stats": {}}, "'params' alone was expected")
  refused(whole, "of 'decoder', 'encoder', 'quantizer', where 'params' alone was")
  refused(
    {"params": whole}, "does not know: it may be of another", "maskgit-imagenet-256"
  )
  refused({"params": whole}, "titok tokenizer were not published as one", "titok-l32")
  publish(path, {"params": whole})
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(TokzooError, match="not a whole one"):
    tokzoo.load(path, preset=PRESET)
  with pytest.raises(
    TokzooError, match="name the published config they were made with"
  ):
    tokzoo.load(path)


def test_the_sizes_of_another_preset(tmp_path, monkeypatch):
  path = publish(tmp_path / "w", random_params(TINY))
  wider = dataclasses.replace(TINY, width=64)
  monkeypatch.setitem(maskgit_vqgan.PRESETS, PRESET, wider)
  with pytest.raises(TokzooError, match=r"of shape .* expects .*choose the preset"):
    tokzoo.load(path, preset=PRESET)
  monkeypatch.setitem(maskgit_vqgan.PRESETS, PRESET, ASYMMETRIC)
  with pytest.raises(TokzooError, match=r"hold 'decoder/.*choose the preset"):
    tokzoo.load(path, preset=PRESET)
  # One level less than the file has: its last block has no number there.
  shallow = dataclasses.replace(TINY, multipliers=(1, 1, 2, 4))
  monkeypatch.setitem(maskgit_vqgan.PRESETS, PRESET, shallow)
  with pytest.raises(TokzooError, match=r"hold '.*(choose the preset|does not know)"):
    tokzoo.load(path, preset=PRESET)


def test_convert_there_and_back(tmp_path, capsys):
  variables = random_params(TINY)
  path = publish(tmp_path / "tokenizer_imagenet256_checkpoint", variables)
  ours, again = tmp_path / "ours.safetensors", tmp_path / "again.msgpack"
  convert(path, out=ours, preset=PRESET, system="maskgit-vqgan")
  capsys.readouterr()
  convert(ours, out=again, to="authors", json=True)
  report = json.loads(capsys.readouterr().out)
  rows = {row["key"]: row["path"] for row in report["rows"]}
  assert rows["encoder/ResBlock_8/Conv_2/kernel"] == (
    "params/encoder/down_4/block_0/nin_shortcut/kernel"
  )
  state = read_state(path)
  back = flax.serialization.msgpack_restore(again.read_bytes())
  assert set(back) == {"params"} and len(state) == 168
  for key, array in flatten(back["params"]).items():
    np.testing.assert_array_equal(array, state[key])
  same = tokzoo.load(ours).fingerprint
  assert tokzoo.load(path, preset=PRESET).fingerprint == same
  # The port's names, from the same checkpoint, are the same model.
  port = tmp_path / "port.safetensors"
  convert(ours, out=port, to="authors")
  assert "encoder.down.4.block.0.nin_shortcut.weight" in read_state(port)
  assert tokzoo.load(port, preset=PRESET).fingerprint == same
  with pytest.raises(TokzooError, match=r"end in \.safetensors; --out"):
    convert(path, out=again, preset=PRESET)


def test_a_system_without_flax_files_is_not_written_as_one(tmp_path):
  packaged = Path(tokzoo.__file__).parents[1] / "checkpoints"
  with pytest.raises(
    TokzooError, match=r"llamagen tokenizer were not published as one"
  ):
    convert(
      packaged / "llamagen-digits-nano.safetensors",
      out=tmp_path / "a.msgpack",
      to="authors",
    )
  assert not (tmp_path / "a.msgpack").exists()


def test_a_generator_gives_the_authors_numbers(tmp_path, monkeypatch):
  tensors, metadata = read_safetensors(DATA / "maskgit-tiny.safetensors", "fixture")
  params = unflatten(authors_state(tensors))
  path = publish(tmp_path / "maskgit_imagenet256_checkpoint", {"params": params})
  told = json.loads(metadata["config"])
  config = original.MaskGITConfig(
    grid=(told["seq"],),
    vocab=told["codebook_size"],
    width=told["hidden_size"],
    layers=told["layers"],
    heads=told["heads"],
    mlp_width=told["intermediate"],
    num_classes=told["num_classes"],
  )
  monkeypatch.setitem(original.PRESETS, "maskgit-imagenet-256", config)
  model = tokzoo.load(
    path, preset="maskgit-imagenet-256", tokenizer="llamagen-digits-nano"
  )
  seen = jnp.asarray(tensors["in/masked_tokens"])
  labels = jnp.asarray(tensors["in/tokens"])[:, 0] - config.vocab
  logits = jax.jit(model.module.apply)(model.variables, seen[:, 1:], labels)
  np.testing.assert_allclose(logits, tensors["out/logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [256, 512])
def test_by_catalog_name(tmp_path, monkeypatch, side):
  """The four entries: files of no ending from plain addresses, a generator with its tokenizer."""
  site = "https://storage.googleapis.com/maskgit-public/checkpoints"
  made = original.WEIGHTS.to_authors(
    jax.tree.map(
      lambda leaf: np.random.default_rng(0).normal(size=leaf.shape) * 0.2,
      abstract_variables(GENERATOR),
    )
  )
  held = {
    f"{site}/tokenizer_imagenet{side}_checkpoint": random_params(TINY),
    f"{site}/maskgit_imagenet{side}_checkpoint": {"params": unflatten(made)},
  }
  fetched = []

  def fetch(url, sha256):
    assert sha256 is None
    fetched.append(url)
    return publish(tmp_path / url.rsplit("/", 1)[1], held[url])

  monkeypatch.setattr("tokzoo.hub.loading.download_url", fetch)
  model = tokzoo.load(f"maskgit-imagenet-{side}")
  assert sorted(fetched) == sorted(held)
  assert model.card.sampling == {"steps": 16, "choice_temperature": 4.5}
  assert model.tokenizer.card.name == f"maskgit-vqgan-imagenet-{side}"
  pictures = model.generate(np.array([0, 2]))
  assert pictures.shape == (2, 32, 32, 3) and np.isfinite(pictures).all()
  metrics = {
    256: {"published_gfid_imagenet_256": 6.06},
    512: {"published_gfid_imagenet_512": 7.32},
  }
  assert catalog()[f"maskgit-imagenet-{side}"].metrics == metrics[side]
