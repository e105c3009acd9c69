"""Instella-T2I's image tokenizer (BAE): 128 binary tokens of 64 bits per image.

Wang et al., "Instella-T2I: Pushing the Limits of 1D Discrete Latent Space Image Generation",
arXiv 2506.21022. Written from the paper and from what AMD-AIG-AIMA/Instella-T2I @ 9a1a753
computes (`bae.ae_model.BAE_Model`); weights on the hub: amd/Instella-T2I, research use only.

  image   float32[B, H, W, C] in [-1, 1], H and W multiples of patch * 2^len(down_after)
  tokens  binary, [B, num_tokens] of `bits` bits, whatever the size of the image

Learned latent tokens and the image's patches pass one transformer; the patch grid is halved
on the way. The latents are quantized to bits (`quantizers/binary.py`); the decoder lets mask
tokens on the coarse grid attend to them, doubles the grid on the way, and maps each to pixels.

Differences from the source: bf16 runs keep positions in float32 (the source rounds them to
the dtype of the weights); a model without down-sampling works here (the source crashes).
The training losses are ours to choose, since none were published: see experiments.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from tokzoo.contract import Output
from tokzoo.errors import TokzooError
from tokzoo.nn.layers import (
  GatedMLP,
  attend,
  merge_heads,
  rows_dot_general,
  split_heads,
)
from tokzoo.nn.rotary import axis_angles, rotate_split_half
from tokzoo.quantizers.binary import Binary
from tokzoo.tokens import Tokens
from tokzoo.weights import LINEAR, Rule, Table, conv2d_rules, linear_rules


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the tokenizer; the defaults are the published ones."""

  image_size: int = 1024
  """Side in pixels of the images that `decode` makes unless told otherwise."""
  channels: int = 3
  """Colour channels."""
  patch: int = 16
  """Side of a patch in pixels."""
  num_tokens: int = 128
  """Latent tokens per image."""
  bits: int = 64
  """Bits per token."""
  width: int = 768
  """Features of the encoder and of the codes."""
  layers: int = 12
  """Blocks of the encoder."""
  head_dim: int = 64
  """Features per head of the encoder."""
  down_after: tuple[int, ...] = (7,)
  """Encoder blocks (from 0) after which the patch grid is halved."""
  decoder_width: int = 1024
  """Features of the decoder."""
  decoder_layers: int = 16
  """Blocks of the decoder."""
  decoder_head_dim: int = 64
  """Features per head of the decoder; the rotary axes share `rope_dims` with the encoder."""
  up_after: tuple[int, ...] = (7,)
  """Decoder blocks after which the patch grid is doubled."""
  mlp_ratio: float = 4.0
  """Hidden features of the gated MLP over its width (4, not 8/3)."""
  rope_dims: tuple[int, int, int] = (8, 28, 28)
  """Features of a head that the latent index, the row and the column turn."""
  rope_theta: float = 10000.0
  """Base of the rotary frequencies."""
  span: int | None = 1024
  """Positions of every resolution are stretched over span / patch places (the source's
  set_scale); None: positions are the integers of the grid."""
  temperature: float = 0.1
  """Of the Bernoulli draw of the bits in training."""
  norm_eps: float = 1e-6
  """Of every RMSNorm."""
  repa_dim: int | None = None
  """Features of a teacher that a training-only head predicts (REPA); None: no head."""
  repa_after: int = 0
  """Decoder block whose patch tokens the REPA head reads."""

  def build(self) -> "InstellaBAE":
    return InstellaBAE(self)


class Grid(NamedTuple):
  """The patch grid at some depth: its size, and how many places its positions span."""

  rows: int
  columns: int
  span: float | None

  def halved(self) -> "Grid":
    return Grid(
      self.rows // 2, self.columns // 2, None if self.span is None else self.span // 2
    )

  def doubled(self) -> "Grid":
    return Grid(
      self.rows * 2, self.columns * 2, None if self.span is None else self.span * 2
    )


class Attention(nn.Module):
  """Full self-attention with RMSNorm on queries and keys per head, and rotary positions."""

  head_dim: int
  eps: float

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], rotary: tuple) -> Float[Array, "B L D"]:
    dense = functools.partial(
      nn.Dense, x.shape[-1], use_bias=False, dot_general=rows_dot_general
    )
    q, k, v = (
      split_heads(dense(name=f"{name}_proj")(x), self.head_dim) for name in "qkv"
    )
    q = rotate_split_half(nn.RMSNorm(self.eps, name="norm_q")(q), *rotary)
    k = rotate_split_half(nn.RMSNorm(self.eps, name="norm_k")(k), *rotary)
    x = merge_heads(attend(q, k, v))
    return dense(name="o_proj")(x)


class Block(nn.Module):
  """Pre-norm transformer block."""

  head_dim: int
  mlp_ratio: float
  eps: float

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], rotary: tuple) -> Float[Array, "B L D"]:
    hidden = int(x.shape[-1] * self.mlp_ratio)
    attention = Attention(self.head_dim, self.eps, name="attn")
    x = x + attention(nn.RMSNorm(self.eps, name="input_norm")(x), rotary)
    x = x + GatedMLP(hidden, name="mlp")(nn.RMSNorm(self.eps, name="post_norm")(x))
    return checkpoint_name(x, "block")


class Down(nn.Module):
  """Halves the grid: strided convolution plus the mean of each 2x2 (DC-AE's shortcut)."""

  @nn.compact
  def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h/2 w/2 D"]:
    padding = ((1, 1), (1, 1))
    conv = nn.Conv(x.shape[-1], (3, 3), strides=2, padding=padding, name="conv")
    # The source's pixel-unshuffle puts the four values of one channel side by side and
    # averages groups of four: a plain 2x2 mean.
    return conv(x) + reduce(x, "b (h i) (w j) d -> b h w d", "mean", i=2, j=2)


class Up(nn.Module):
  """Doubles the grid: convolution with pixel shuffle plus a nearest copy."""

  @nn.compact
  def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B 2h 2w D"]:
    width = x.shape[-1]
    conv = nn.Conv(4 * width, (3, 3), padding=((1, 1), (1, 1)), name="conv")
    shuffled = rearrange(conv(x), "b h w (d i j) -> b (h i) (w j) d", i=2, j=2)
    return shuffled + repeat(x, "b h w d -> b (h i) (w j) d", i=2, j=2)


class Encoder(nn.Module):
  """Image -> latent vectors."""

  config: Config

  @nn.compact
  def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B L D"]:
    c = self.config
    patches = nn.Conv(
      c.width,
      (c.patch, c.patch),
      strides=c.patch,
      padding="VALID",
      name="patch_embedder",
    )(image)
    rows, columns = patches.shape[1:3]
    grid = Grid(rows, columns, None if c.span is None else c.span / c.patch)
    latents = self.param(
      "latent_tokens", nn.initializers.normal(0.02), (1, c.num_tokens, c.width)
    )
    latents = repeat(latents.astype(patches.dtype), "1 l d -> b l d", b=image.shape[0])
    x = jnp.concatenate([latents, rearrange(patches, "b h w d -> b (h w) d")], axis=1)
    rotary = rotary_tables(c, grid)
    for i in range(c.layers):
      x = Block(c.head_dim, c.mlp_ratio, c.norm_eps, name=f"blocks_{i}")(x, rotary)
      if i in c.down_after:
        x = _resize(x, c, grid, Down(name=f"down_{c.down_after.index(i)}"))
        grid = grid.halved()
        rotary = rotary_tables(c, grid)
    x = nn.RMSNorm(c.norm_eps, name="norm_out")(x[:, : c.num_tokens])
    return nn.Dense(c.width, name="proj_out")(x)


class Decoder(nn.Module):
  """Codes -> features of every patch, and the REPA prediction in training."""

  config: Config

  @nn.compact
  def __call__(
    self, codes: Float[Array, "B L D"], rows: int, columns: int, train: bool = False
  ) -> tuple[Float[Array, "B P D"], Float[Array, "B P R"] | None]:
    c = self.config
    x = nn.RMSNorm(c.norm_eps, name="norm_in")(codes)
    x = nn.Dense(c.decoder_width, name="proj_in")(x)
    grid = Grid(rows, columns, None if c.span is None else c.span / c.patch)
    if c.up_after:
      # The source divides once by 2n instead of n times by 2: the same for n of 1 and 2.
      factor = 2 * len(c.up_after)
      span = None if grid.span is None else grid.span // factor
      grid = Grid(rows // factor, columns // factor, span)
    mask_token = self.param(
      "mask_tokens", nn.initializers.normal(0.02), (1, 1, c.decoder_width)
    )
    masks = jnp.broadcast_to(
      mask_token.astype(x.dtype),
      (x.shape[0], grid.rows * grid.columns, c.decoder_width),
    )
    x = jnp.concatenate([x, masks], axis=1)
    rotary = rotary_tables(c, grid)
    prediction = None
    for i in range(c.decoder_layers):
      block = Block(c.decoder_head_dim, c.mlp_ratio, c.norm_eps, name=f"blocks_{i}")
      x = block(x, rotary)
      if c.repa_dim and i == c.repa_after and (train or self.is_initializing()):
        prediction = RepaHead(c.repa_dim, name="repa")(x[:, c.num_tokens :])
      if i in c.up_after:
        x = _resize(x, c, grid, Up(name=f"up_{c.up_after.index(i)}"))
        grid = grid.doubled()
        rotary = rotary_tables(c, grid)
    return nn.RMSNorm(c.norm_eps, name="norm_out")(x[:, c.num_tokens :]), prediction


class RepaHead(nn.Module):
  """Predicts a teacher's features from patch tokens (REPA, arXiv 2410.06940)."""

  dim: int

  @nn.compact
  def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P R"]:
    x = nn.Dense(x.shape[-1], name="linear_1")(x)
    x = nn.relu(nn.LayerNorm(epsilon=1e-5, name="norm")(x))
    return nn.Dense(self.dim, name="linear_2")(x)


class InstellaBAE(nn.Module):
  """The tokenizer (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    c = self.config
    self.encoder = Encoder(c)
    self.quantizer = self.make_quantizer()
    self.decoder = Decoder(c)
    self.to_pixel = nn.Dense(c.patch * c.patch * c.channels)

  def encode(
    self,
    x: Float[Array, "B H W C"],
    *,
    num_tokens: int | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """Images in [-1, 1] to binary tokens. Deterministic: `rng` is not used.

    Raises:
      TokzooError: a size or channel count that the model cannot take, or a number of tokens
        other than the model's.
    """
    c = self.config
    if num_tokens not in (None, c.num_tokens):
      raise TokzooError(
        f"{num_tokens} tokens were asked for, but this tokenizer always makes {c.num_tokens}: "
        "leave num_tokens out."
      )
    check_image_shape(c, x.shape)
    return self.to_tokens(self.quantizer(self.encoder(x)).ids)

  def decode(
    self,
    tokens: Tokens,
    *,
    size: tuple[int, int] | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Float[Array, "B H W C"]:
    """Tokens to images in about [-1, 1] (not clipped).

    Args:
      tokens: binary tokens of this layout.
      size: height and width in pixels; the config's square by default. A 1D token carries no
        size of its own.
      rng: not used, decoding is deterministic.

    Raises:
      TokzooError: tokens of another layout, or a size that the model cannot make.
    """
    c = self.config
    if tokens.bits != c.bits or tokens.length != c.num_tokens:
      raise TokzooError(
        f"this tokenizer reads {c.num_tokens} tokens of {c.bits} bits; these are "
        f"{tokens.length} of {tokens.bits} bits: decode with the tokenizer that made them."
      )
    height, width = size or (c.image_size, c.image_size)
    check_image_shape(c, (tokens.batch, height, width, c.channels))
    codes = self.quantizer.ids_to_codes(tokens.unpacked())
    return self._to_image(codes, height, width)[0]

  def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Output:
    """Reconstructs images; `train` draws the bits (rng stream "bits")."""
    check_image_shape(self.config, x.shape)
    quantized = self.quantizer(self.encoder(x), train=train)
    image, prediction = self._to_image(
      quantized.values.astype(x.dtype), *x.shape[1:3], train=train
    )
    features = {} if prediction is None else {"repa": prediction}
    return Output(
      reconstruction=image.astype(jnp.float32),
      tokens=self.to_tokens(jax.lax.stop_gradient(quantized.ids)),
      losses=quantized.losses,
      stats=quantized.stats,
      features=features,
    )

  # What an ablation of the quantizer replaces (the one-hot baseline of experiments/).

  def make_quantizer(self) -> nn.Module:
    """The bottleneck."""
    c = self.config
    return Binary(c.bits, c.width, c.temperature)

  def to_tokens(self, ids: Array) -> Tokens:
    """Tokens of what the quantizer calls ids: bits here."""
    return Tokens.from_bits(ids)

  def _to_image(self, codes: Array, height: int, width: int, train: bool = False):
    c = self.config
    rows, columns = height // c.patch, width // c.patch
    patches, prediction = self.decoder(codes, rows, columns, train)
    image = rearrange(
      self.to_pixel(patches),
      "b (h w) (p q c) -> b (h p) (w q) c",
      h=rows,
      p=c.patch,
      q=c.patch,
    )
    return image, prediction


def rotary_tables(config: Config, grid: Grid) -> tuple[Array, Array]:
  """cos and sin, `float32[L + P, head_dim]`: latents at (n, 0, 0), patches at (0, row, column).

  A quirk of the published weights: each angle stands twice in a row, as for a rotation of
  neighbouring features, but `rotate_split_half` pairs feature j with j + d/2. The result is
  no rotation. It is what the weights were trained with.
  """
  latents = np.zeros((config.num_tokens, 3))
  latents[:, 0] = np.arange(config.num_tokens)
  places = np.zeros((grid.rows, grid.columns, 3))
  places[..., 1] = _places(grid.rows, grid.span)[:, None]
  places[..., 2] = _places(grid.columns, grid.span)[None, :]
  positions = np.concatenate([latents, places.reshape(-1, 3)]).astype(np.float32)
  angles = axis_angles(positions, config.rope_dims, config.rope_theta)
  twice = np.repeat(angles, 2, axis=1)
  return jnp.asarray(np.cos(twice), jnp.float32), jnp.asarray(
    np.sin(twice), jnp.float32
  )


def check_image_shape(config: Config, shape: tuple[int, ...]) -> None:
  """Raises TokzooError unless images of `shape` fit the tokenizer."""
  c = config
  unit = c.patch * 2 ** max(len(c.down_after), len(c.up_after))
  # A stretched grid of one row has no spacing (the source divides by zero there).
  least = unit if c.span is None else 2 * unit
  if len(shape) != 4 or shape[3] != c.channels:
    raise TokzooError(
      f"images of shape [B, H, W, {c.channels}] were expected; these are {list(shape)}: "
      f"{'stack them to a batch' if len(shape) == 3 else 'convert the channels'} first."
    )
  if any(side % unit or side < least for side in shape[1:3]):
    raise TokzooError(
      f"an image of {shape[1]} x {shape[2]} pixels does not fit: height and width must be "
      f"multiples of {unit} and at least {least}; resize, crop or tile it."
    )


def _places(count: int, span: float | None) -> np.ndarray:
  index = np.arange(count, dtype=np.float32)
  if span is None:
    return index
  return index / np.float32(count - 1) * np.float32(span - 1)


def _resize(x: Array, config: Config, grid: Grid, layer: nn.Module) -> Array:
  """Applies `layer` to the patch tokens as an image; the latents pass untouched."""
  latents, patches = x[:, : config.num_tokens], x[:, config.num_tokens :]
  patches = rearrange(patches, "b (h w) d -> b h w d", h=grid.rows)
  patches = rearrange(layer(patches), "b h w d -> b (h w) d")
  return jnp.concatenate([latents, patches], axis=1)


PRESETS = {
  # One tokenizer was published; it serves 512 and 1024 pixels.
  "instella-bae-1024": Config(),
  "instella-bae-512": Config(image_size=512),
}


def _blocks(part: str) -> tuple[Rule, ...]:
  key = f"{part}.transformer_blocks.{{i}}"
  path = f"params/{part}/blocks_{{i}}"
  return (
    Rule(f"{key}.input_layernorm.weight", f"{path}/input_norm/scale"),
    Rule(f"{key}.post_attention_layernorm.weight", f"{path}/post_norm/scale"),
    Rule(f"{key}.attn.norm_{{x}}.weight", f"{path}/attn/norm_{{x}}/scale"),
    Rule(f"{key}.attn.{{name}}.weight", f"{path}/attn/{{name}}/kernel", LINEAR),
    Rule(f"{key}.mlp.{{name}}.weight", f"{path}/mlp/{{name}}/kernel", LINEAR),
  )


WEIGHTS = Table(
  rules=(
    *_blocks("encoder"),
    *_blocks("decoder"),
    Rule("encoder.latent_tokens", "params/encoder/latent_tokens"),
    *conv2d_rules("encoder.patch_embedder", "params/encoder/patch_embedder"),
    *conv2d_rules("encoder.down_layers.{i}.conv", "params/encoder/down_{i}/conv"),
    Rule("encoder.norm_out.weight", "params/encoder/norm_out/scale"),
    *linear_rules("encoder.proj_out", "params/encoder/proj_out"),
    *linear_rules("quantizer.proj.0", "params/quantizer/proj"),
    Rule("quantizer.embed", "params/quantizer/embed"),
    Rule("decoder.input_layer.0.weight", "params/decoder/norm_in/scale"),
    *linear_rules("decoder.input_layer.1", "params/decoder/proj_in"),
    Rule("decoder.mask_tokens", "params/decoder/mask_tokens"),
    *conv2d_rules("decoder.up_layers.{i}.conv", "params/decoder/up_{i}/conv"),
    Rule("decoder.norm_out.weight", "params/decoder/norm_out/scale"),
    *linear_rules("decoder.repa_proj.0", "params/decoder/repa/linear_1"),
    Rule("decoder.repa_proj.1.weight", "params/decoder/repa/norm/scale"),
    Rule("decoder.repa_proj.1.bias", "params/decoder/repa/norm/bias"),
    *linear_rules("decoder.repa_proj.3", "params/decoder/repa/linear_2"),
    *linear_rules("to_pixel", "params/to_pixel"),
  )
)
