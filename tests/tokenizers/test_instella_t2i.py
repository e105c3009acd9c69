"""Instella-T2I's tokenizer beyond parity: an unseen configuration against a NumPy reading of
the equations, the published sizes, sharding, bfloat16, and images that do not fit."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.models import TOKENIZER, random_variables
from tokzoo.errors import TokzooError
from tokzoo.hub import abstract_variables
from tokzoo.tokenizers.image.instella_t2i import PRESETS, WEIGHTS, Config
from tokzoo.tokens import Tokens
from tokzoo.weights import flatten

# Two down-samplings, another patch, other rotary axes, two channels, more heads.
ODD = Config(
  image_size=32,
  channels=2,
  patch=4,
  num_tokens=3,
  bits=37,
  width=32,
  layers=3,
  head_dim=16,
  down_after=(0, 1),
  decoder_width=48,
  decoder_layers=3,
  decoder_head_dim=16,
  up_after=(0, 1),
  mlp_ratio=2.0,
  rope_dims=(6, 4, 6),
  rope_theta=500.0,
  span=48,
)


def authors_keys(c: Config) -> dict[str, tuple[int, ...]]:
  """The keys and shapes of a published file, as the sheet of the system lists them."""
  keys: dict[str, tuple[int, ...]] = {
    "encoder.patch_embedder.weight": (c.width, c.channels, c.patch, c.patch),
    "encoder.patch_embedder.bias": (c.width,),
    "encoder.latent_tokens": (1, c.num_tokens, c.width),
    "encoder.norm_out.weight": (c.width,),
    "encoder.proj_out.weight": (c.width, c.width),
    "encoder.proj_out.bias": (c.width,),
    "quantizer.proj.0.weight": (c.bits, c.width),
    "quantizer.proj.0.bias": (c.bits,),
    "quantizer.embed": (c.bits, c.width),
    "decoder.input_layer.0.weight": (c.width,),
    "decoder.input_layer.1.weight": (c.decoder_width, c.width),
    "decoder.input_layer.1.bias": (c.decoder_width,),
    "decoder.mask_tokens": (1, 1, c.decoder_width),
    "decoder.norm_out.weight": (c.decoder_width,),
    "to_pixel.weight": (c.patch**2 * c.channels, c.decoder_width),
    "to_pixel.bias": (c.patch**2 * c.channels,),
  }
  for i in range(len(c.down_after)):
    keys[f"encoder.down_layers.{i}.conv.weight"] = (c.width, c.width, 3, 3)
    keys[f"encoder.down_layers.{i}.conv.bias"] = (c.width,)
  for i in range(len(c.up_after)):
    wide = 4 * c.decoder_width
    keys[f"decoder.up_layers.{i}.conv.weight"] = (wide, c.decoder_width, 3, 3)
    keys[f"decoder.up_layers.{i}.conv.bias"] = (wide,)
  for part, layers, width, head in (
    ("encoder", c.layers, c.width, c.head_dim),
    ("decoder", c.decoder_layers, c.decoder_width, c.decoder_head_dim),
  ):
    hidden = int(width * c.mlp_ratio)
    for i in range(layers):
      block = f"{part}.transformer_blocks.{i}"
      keys |= {f"{block}.{n}.weight": (width,) for n in BLOCK_NORMS}
      keys |= {f"{block}.attn.{n}_proj.weight": (width, width) for n in "qkvo"}
      keys |= {f"{block}.attn.norm_{n}.weight": (head,) for n in "qk"}
      keys |= {f"{block}.mlp.{n}_proj.weight": (hidden, width) for n in ("gate", "up")}
      keys[f"{block}.mlp.down_proj.weight"] = (width, hidden)
  return keys


BLOCK_NORMS = ("input_layernorm", "post_attention_layernorm")


class InNumPy:
  """The tokenizer from the sheet's equations, float64, channels first, authors' keys."""

  def __init__(self, state: dict[str, np.ndarray], config: Config):
    self.state = {key: array.astype(np.float64) for key, array in state.items()}
    self.config = config

  def logits(self, image: np.ndarray) -> np.ndarray:
    """[B, C, H, W] -> [B, L, m]."""
    c, p = self.config, self.config.patch
    rows, columns = image.shape[2] // p, image.shape[3] // p
    # A convolution whose stride is its size is a matrix product.
    cut = image.reshape(len(image), c.channels, rows, p, columns, p)
    weight = self.state["encoder.patch_embedder.weight"]
    patches = np.einsum("bchpwq,dcpq->bhwd", cut, weight)
    patches = patches + self.state["encoder.patch_embedder.bias"]
    latents = np.repeat(self.state["encoder.latent_tokens"], len(image), 0)
    x = np.concatenate([latents, patches.reshape(len(image), -1, c.width)], 1)
    span = c.span / p if c.span else None
    for i in range(c.layers):
      x = self.block(f"encoder.transformer_blocks.{i}", x, (rows, columns, span))
      if i in c.down_after:
        x = self.down(f"encoder.down_layers.{c.down_after.index(i)}.conv", x, rows)
        rows, columns, span = rows // 2, columns // 2, span and span // 2
    x = self.rms("encoder.norm_out", x[:, : c.num_tokens])
    return self.linear("quantizer.proj.0", self.linear("encoder.proj_out", x))

  def image(self, bits: np.ndarray, height: int, width: int) -> np.ndarray:
    """[B, L, m] of 0 and 1 -> [B, C, H, W]."""
    c, p = self.config, self.config.patch
    x = self.rms("decoder.input_layer.0", bits @ self.state["quantizer.embed"])
    x = self.linear("decoder.input_layer.1", x)
    factor = 2 * len(c.up_after)
    rows, columns = height // p // factor, width // p // factor
    span = c.span / p // factor if c.span else None
    masks = np.tile(self.state["decoder.mask_tokens"], (len(bits), rows * columns, 1))
    x = np.concatenate([x, masks], 1)
    for i in range(c.decoder_layers):
      x = self.block(f"decoder.transformer_blocks.{i}", x, (rows, columns, span))
      if i in c.up_after:
        x = self.up(f"decoder.up_layers.{c.up_after.index(i)}.conv", x, rows)
        rows, columns, span = 2 * rows, 2 * columns, span and span * 2
    x = self.linear("to_pixel", self.rms("decoder.norm_out", x[:, c.num_tokens :]))
    x = x.reshape(len(bits), rows, columns, p, p, c.channels)
    return x.transpose(0, 5, 1, 3, 2, 4).reshape(len(bits), c.channels, height, width)

  def block(self, key: str, x: np.ndarray, grid: tuple) -> np.ndarray:
    x = x + self.attention(f"{key}.attn", self.rms(f"{key}.input_layernorm", x), grid)
    h = self.rms(f"{key}.post_attention_layernorm", x)
    gate = self.linear(f"{key}.mlp.gate_proj", h)
    gated = gate / (1 + np.exp(-gate)) * self.linear(f"{key}.mlp.up_proj", h)
    return x + self.linear(f"{key}.mlp.down_proj", gated)

  def attention(self, key: str, x: np.ndarray, grid: tuple) -> np.ndarray:
    head = sum(self.config.rope_dims)
    q, k, v = (
      self.linear(f"{key}.{n}_proj", x).reshape(*x.shape[:2], -1, head) for n in "qkv"
    )
    q, k = self.rms(f"{key}.norm_q", q), self.rms(f"{key}.norm_k", k)
    angles = self.angles(*grid)[None, :, None]

    def rotated(y):
      first, second = y[..., : head // 2], y[..., head // 2 :]
      return y * np.cos(angles) + np.concatenate([-second, first], -1) * np.sin(angles)

    scores = np.einsum("bqhd,bkhd->bhqk", rotated(q), rotated(k)) / np.sqrt(head)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
    return self.linear(f"{key}.o_proj", mixed)

  def angles(self, rows: int, columns: int, span: float | None) -> np.ndarray:
    """[L + P, head]: latents at (n, 0, 0), patches at (0, row, column)."""
    c = self.config

    def places(count):
      index = np.arange(count)
      return index if span is None else index / (count - 1) * (span - 1)

    positions = [(n, 0.0, 0.0) for n in range(c.num_tokens)]
    positions += [(0.0, r, k) for r in places(rows) for k in places(columns)]
    return np.array(
      [
        [
          position * c.rope_theta ** (-2 * j / dim)
          for position, dim in zip(at, c.rope_dims, strict=True)
          for j in range(dim // 2)
          for _ in range(2)  # neighbours share an angle
        ]
        for at in positions
      ]
    )

  def down(self, key: str, x: np.ndarray, rows: int) -> np.ndarray:
    latents, grid = self.grid(x, rows)
    b, d, h, w = grid.shape
    # Pixel-unshuffle, then the mean of every four channels that follow one another.
    unshuffled = grid.reshape(b, d, h // 2, 2, w // 2, 2).transpose(0, 1, 3, 5, 2, 4)
    shortcut = unshuffled.reshape(b, 4 * d, h // 2, w // 2)
    shortcut = shortcut.reshape(b, d, 4, h // 2, w // 2).mean(2)
    return self.sequence(latents, self.conv(key, grid)[:, :, ::2, ::2] + shortcut)

  def up(self, key: str, x: np.ndarray, rows: int) -> np.ndarray:
    latents, grid = self.grid(x, rows)
    wide = self.conv(key, grid) + np.repeat(grid, 4, axis=1)
    b, d, h, w = grid.shape
    shuffled = wide.reshape(b, d, 2, 2, h, w).transpose(0, 1, 4, 2, 5, 3)
    return self.sequence(latents, shuffled.reshape(b, d, 2 * h, 2 * w))

  def grid(self, x: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    latents, patches = np.split(x, [self.config.num_tokens], 1)
    grid = patches.reshape(len(x), rows, -1, x.shape[-1])
    return latents, grid.transpose(0, 3, 1, 2)

  def sequence(self, latents: np.ndarray, grid: np.ndarray) -> np.ndarray:
    flat = grid.reshape(*grid.shape[:2], -1).transpose(0, 2, 1)
    return np.concatenate([latents, flat], 1)

  def conv(self, key: str, x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    out = np.einsum("bchwij,dcij->bdhw", windows, self.state[f"{key}.weight"])
    return out + self.state[f"{key}.bias"][:, None, None]

  def linear(self, key: str, x: np.ndarray) -> np.ndarray:
    return x @ self.state[f"{key}.weight"].T + self.state.get(f"{key}.bias", 0)

  def rms(self, key: str, x: np.ndarray) -> np.ndarray:
    root = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x / root * self.state[f"{key}.weight"]


@pytest.mark.parametrize("span", [48, None])
def test_an_unseen_configuration_agrees_with_numpy(span):
  config = dataclasses.replace(ODD, span=span)
  variables = random_variables(config)
  numpy = InNumPy(WEIGHTS.to_authors(variables), config)
  image = np.random.default_rng(1).uniform(-1, 1, (2, 32, 48, 2)).astype(np.float32)

  def run(module, image):
    logits = module.quantizer.proj(module.encoder(image))
    return logits, module(image)

  module = config.build()
  logits, output = jax.jit(lambda v, x: module.apply(v, x, method=run))(
    variables, image
  )
  expected = numpy.logits(image.transpose(0, 3, 1, 2))
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  bits = np.asarray(output.tokens.unpacked())
  sure = np.abs(expected) > 1e-4
  np.testing.assert_array_equal(bits[sure], (expected > 0)[sure])
  made = numpy.image(bits.astype(np.float64), 32, 48).transpose(0, 2, 3, 1)
  np.testing.assert_allclose(output.reconstruction, made, rtol=1e-4, atol=1e-4)
  decoded = module.apply(variables, output.tokens, size=(32, 48), method="decode")
  np.testing.assert_allclose(decoded, made, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [ODD, TOKENIZER])
def test_the_table_maps_the_published_keys_and_no_others(config):
  state = WEIGHTS.to_authors(random_variables(config))
  assert {key: array.shape for key, array in state.items()} == authors_keys(config)
  again = flatten(WEIGHTS.to_ours(state, random_variables(config)))
  for path, array in flatten(random_variables(config)).items():
    np.testing.assert_array_equal(again[path], array)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_published_sizes(name):
  config = PRESETS[name]
  # Encoder: 12 blocks of 4 D^2 (attention) + 12 D^2 (gated MLP) + norms; D = 768.
  d, e, m = 768, 1024, 64
  encoder = 12 * (16 * d**2 + 2 * d + 2 * 64)
  encoder += (16 * 16 * 3 * d + d) + 128 * d + (9 * d**2 + d) + d + (d**2 + d)
  quantizer = (d * m + m) + m * d
  decoder = 16 * (16 * e**2 + 2 * e + 2 * 64)
  decoder += d + (d * e + e) + e + (9 * e * 4 * e + 4 * e) + e + (e * 768 + 768)
  expected = encoder + quantizer + decoder
  assert expected == 427_754_560
  shapes = flatten(abstract_variables(config))
  assert sum(leaf.size for leaf in shapes.values()) == expected
  assert sum(math.prod(shape) for shape in authors_keys(config).values()) == expected
  assert len(shapes) == len(authors_keys(config)) == 328


def test_tokens_do_not_depend_on_how_the_batch_is_spread():
  module, variables = TOKENIZER.build(), random_variables(TOKENIZER)
  image = np.random.default_rng(0).uniform(-1, 1, (16, 8, 8, 1)).astype(np.float32)
  encode = jax.jit(lambda v, x: module.apply(v, x, method="encode"))
  alone = encode(variables, image)
  mesh = Mesh(jax.devices(), ("data",))
  spread = jax.device_put(image, NamedSharding(mesh, PartitionSpec("data")))
  everywhere = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
  together = encode(everywhere, spread)
  assert len(together.packed.sharding.device_set) == 8
  np.testing.assert_array_equal(np.asarray(together.packed), np.asarray(alone.packed))


def test_bfloat16_runs_and_stays_near():
  module, variables = TOKENIZER.build(), random_variables(TOKENIZER)
  image = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
  run = jax.jit(module.apply)
  # Flax's own norms promote by the standard rules.
  with jax.numpy_dtype_promotion("standard"):
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), variables)
    coarse = run(half, jnp.asarray(image, jnp.bfloat16))
  fine = run(variables, image)
  assert coarse.reconstruction.dtype == jnp.float32
  agree = np.asarray(fine.tokens.unpacked()) == np.asarray(coarse.tokens.unpacked())
  assert agree.mean() > 0.9
  decode = jax.jit(lambda v, tokens: module.apply(v, tokens, method="decode"))
  made = np.asarray(decode(variables, coarse.tokens))
  error = np.abs(np.asarray(coarse.reconstruction) - made).mean()
  assert error < 0.05 * np.abs(made).mean()


def test_training_draws_bits_and_evaluation_does_not():
  module, variables = TOKENIZER.build(), random_variables(TOKENIZER)
  image = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
  warm = dataclasses.replace(TOKENIZER, temperature=5.0).build()
  run = jax.jit(lambda key: warm.apply(variables, image, True, rngs={"bits": key}))

  def drawn(seed):
    return np.asarray(run(jax.random.key(seed)).tokens.packed)

  assert (drawn(0) == drawn(0)).all() and (drawn(0) != drawn(1)).any()
  # Without a key there is nothing that could be drawn.
  evaluated = jax.jit(module.apply)(variables, image).tokens
  encoded = jax.jit(lambda x: module.apply(variables, x, method="encode"))(image)
  np.testing.assert_array_equal(
    np.asarray(evaluated.packed), np.asarray(encoded.packed)
  )


def test_the_repa_head_is_there_in_training_alone():
  config = dataclasses.replace(TOKENIZER, repa_dim=5)
  module, variables = config.build(), random_variables(config)
  image = jnp.zeros((2, 8, 8, 1))

  def run(train):
    rngs = {"bits": jax.random.key(0)}
    return jax.eval_shape(lambda: module.apply(variables, image, train, rngs=rngs))

  assert run(True).features["repa"].shape == (2, 4, 5)
  assert run(False).features == {}
  heads = [key for key in WEIGHTS.to_authors(variables) if "repa_proj" in key]
  assert len(heads) == 6


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (64, 32)])
def test_sizes_that_the_model_can_make(size):
  module, variables = ODD.build(), random_variables(ODD)

  def there_and_back(image):
    tokens = module.apply(variables, image, method="encode")
    own_size = module.apply(variables, tokens, method="decode")
    return tokens, own_size, module.apply(variables, tokens, size=size, method="decode")

  tokens, own_size, made = jax.eval_shape(there_and_back, jnp.zeros((1, *size, 2)))
  assert tokens.packed.shape == (1, 3, 2) and tokens.bits == 37
  assert own_size.shape == (1, 32, 32, 2) and made.shape == (1, *size, 2)


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    (
      (1, 30, 32, 2),
      r"30 x 32 pixels does not fit: .* multiples of 16 and at least 32",
    ),
    ((1, 16, 32, 2), "16 x 32 pixels does not fit"),
    ((1, 32, 32, 3), r"images of shape \[B, H, W, 2\] .* convert the channels first"),
    ((32, 32, 2), "stack them to a batch first"),
  ],
)
def test_images_that_do_not_fit(shape, message):
  with pytest.raises(TokzooError, match=message):
    ODD.build().apply(random_variables(ODD), jnp.zeros(shape), method="encode")


def test_tokens_that_do_not_fit():
  module, variables = TOKENIZER.build(), random_variables(TOKENIZER)
  with pytest.raises(TokzooError, match=r"5 tokens were asked for.* always makes 2"):
    module.apply(variables, jnp.zeros((1, 8, 8, 1)), num_tokens=5, method="encode")
  for bits in (jnp.zeros((1, 2, 39)), jnp.zeros((1, 3, 40))):
    with pytest.raises(TokzooError, match="reads 2 tokens of 40 bits; these are"):
      module.apply(variables, Tokens.from_bits(bits), method="decode")
  tokens = Tokens.from_bits(jnp.zeros((1, 2, 40)))
  with pytest.raises(TokzooError, match="10 x 8 pixels does not fit"):
    module.apply(variables, tokens, size=(10, 8), method="decode")
