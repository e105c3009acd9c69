"""LlamaGen's image tokenizer: a VQGAN with 16,384 codes of 8 features and unit norm.

Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation",
arXiv 2406.06525. Written from what FoundationVision/LlamaGen @ ce98ec4 computes
(`tokenizer/tokenizer_image/{vq_model,discriminator_patchgan}.py`); weights on the hub:
FoundationVision/LlamaGen and peizesun/llamagen_t2i, MIT.

  image   float32[B, H, W, 3] in [-1, 1], H and W multiples of 16 (VQ-16) or 8 (VQ-8)
  tokens  ids [B, h w], rows first, with the grid (h, w): 16 x 16 of 256 pixels (VQ-16)

Encoder and decoder are those of `nn/vqgan.py`, with attention in the coarsest level alone; a
1x1 convolution leads to 8 features and one leads back. Latent and codes are scaled to unit
norm before the search, and the value is the scaled code (`quantizers/vq.py`, cosine).

Training, as published: l2 + LPIPS + 0.5 * adversarial from step 20,000 + codebook + 0.25 *
commitment, against the PatchGAN at the end of this file (`experiments/image/llamagen.py`).

Differences from the source: the table of the codes that were used lately (`codebook_used`) is
not kept, since no number depends on it; dropout, 0 in every published model, is left out.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tokzoo.contract import Output, Quantized
from tokzoo.nn.vqgan import (
  Decoder,
  Encoder,
  VQGANShape,
  attention_rules,
  ends_rules,
  residual_rules,
)
from tokzoo.quantizers import VectorQuantizer
from tokzoo.quantizers.gradients import unit
from tokzoo.quantizers.regularizers import softmax_entropies
from tokzoo.tokenizers.image.grids import check_num_tokens, check_pictures, grid_of
from tokzoo.tokens import Tokens
from tokzoo.weights import Rule, Table, conv2d_rules


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the tokenizer; the defaults are those of VQ-16."""

  image_size: int = 256
  """Side in pixels of the images that `decode` makes unless told otherwise."""
  channels: int = 3
  """Colour channels."""
  width: int = 128
  """Features of the finest level."""
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  """Features of each level over `width`, from fine to coarse."""
  blocks: int = 2
  """Residual blocks of each encoder level; the decoder's have one more."""
  latent_dim: int = 256
  """Features of the encoder's output and of the decoder's input."""
  groups: int = 32
  """Groups of every GroupNorm."""
  num_codes: int = 16384
  """K, entries of the codebook."""
  code_dim: int = 8
  """D, features of a code."""
  is_unit_norm: bool = True
  """Whether latents and codes are scaled to unit norm; False: plain euclidean codes."""
  entropy_temperature: float | None = None
  """Of the losses `sample_entropy` and `batch_entropy`, 0.01 in the source; None, as in all
  published runs: they are not computed."""
  codes_scale: float | None = None
  """Standard deviation of normal codes at the start of a training; None: uniform in
  [-1/K, 1/K], as in the source."""

  @property
  def shape(self) -> VQGANShape:
    """Of encoder and decoder."""
    return VQGANShape(
      channels=self.channels,
      width=self.width,
      multipliers=self.multipliers,
      encoder_blocks=self.blocks,
      decoder_blocks=self.blocks + 1,
      attention=(len(self.multipliers) - 1,),
      latent_dim=self.latent_dim,
      groups=self.groups,
      deepest_first=True,
    )

  def build(self) -> "LlamaGenVQ":
    return LlamaGenVQ(self)


def _first_codes(
  key: PRNGKeyArray, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32
) -> Float[Array, "K D"]:
  """Uniform in [-1/K, 1/K]; the search scales them to unit norm."""
  bound = 1 / shape[0]
  return jax.random.uniform(key, shape, dtype, -bound, bound)


class LlamaGenVQ(nn.Module):
  """The tokenizer (contract: `tokzoo.contract.Tokenizer`)."""

  config: Config

  def setup(self):
    c = self.config
    self.encoder = Encoder(c.shape)
    self.quant_conv = nn.Conv(c.code_dim, (1, 1))
    codes_init = _first_codes
    if c.codes_scale is not None:
      codes_init = nn.initializers.normal(c.codes_scale)
    self.quantizer = VectorQuantizer(
      c.num_codes,
      c.code_dim,
      metric="cosine" if c.is_unit_norm else "euclidean",
      update=None,
      codes_init=codes_init,
    )
    self.post_quant_conv = nn.Conv(c.latent_dim, (1, 1))
    self.decoder = Decoder(c.shape)

  def encode(
    self,
    x: Float[Array, "B H W C"],
    *,
    num_tokens: int | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Tokens:
    """Images in [-1, 1] to ids. Deterministic: `rng` is not used.

    Raises:
      TokzooError: a size or channel count that the model cannot take, or a number of tokens
        other than that of the size.
    """
    c = self.config
    check_pictures(x.shape, c.channels, c.shape.factor)
    check_num_tokens(num_tokens, x.shape, c.shape.factor)
    latents = self.latents(x)
    return self._to_tokens(self._quantize(latents).ids, latents.shape)

  def decode(
    self,
    tokens: Tokens,
    *,
    size: tuple[int, int] | None = None,
    rng: PRNGKeyArray | None = None,
  ) -> Float[Array, "B H W C"]:
    """Tokens to images in about [-1, 1] (not clipped).

    Args:
      tokens: ids of this tokenizer.
      size: height and width in pixels, for tokens without a grid; the config's square by
        default.
      rng: not used, decoding is deterministic.

    Raises:
      TokzooError: tokens of another tokenizer, ids out of range, or a size that is not theirs.
    """
    c = self.config
    grid = grid_of(tokens, c.num_codes, size, c.image_size, c.shape.factor)
    assert tokens.ids is not None
    codes = self.quantizer.ids_to_codes(tokens.ids)
    codes = codes.reshape(tokens.batch, *grid, c.code_dim)
    dtype = self.post_quant_conv.variables["params"]["kernel"].dtype
    return self.to_image(codes.astype(dtype))

  def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Output:
    """Reconstructs images. Losses: `codebook` and `commitment` (published weights 1, 0.25)."""
    c = self.config
    check_pictures(x.shape, c.channels, c.shape.factor)
    latents = self.latents(x)
    quantized = self._quantize(latents, train)
    values = quantized.values.astype(x.dtype).reshape(latents.shape)
    losses = dict(quantized.losses)
    if c.entropy_temperature is not None:
      losses |= self._entropies(latents, c.entropy_temperature, train)
    return Output(
      reconstruction=self.to_image(values).astype(jnp.float32),
      tokens=self._to_tokens(quantized.ids, latents.shape),
      losses=losses,
      stats=quantized.stats,
    )

  def latents(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    """What is quantized."""
    return self.quant_conv(self.encoder(x))

  def to_image(self, codes: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
    """Codes, in the dtype of the weights, to images."""
    return self.decoder(self.post_quant_conv(codes))

  def _quantize(
    self, latents: Float[Array, "B h w D"], train: bool = False
  ) -> Quantized:
    rows = latents.reshape(latents.shape[0], -1, latents.shape[-1])
    return self.quantizer(rows, train=train)

  def _to_tokens(self, ids: Array, shape: tuple[int, ...]) -> Tokens:
    ids = jax.lax.stop_gradient(ids)
    return Tokens.from_ids(ids, self.config.num_codes, grid=shape[1:3])

  def _entropies(
    self, latents: Float[Array, "B h w D"], temperature: float, train: bool
  ) -> dict[str, Float[Array, ""]]:
    """Of softmax(-d / T), d the squared distances to all codes."""
    z = latents.astype(jnp.float32).reshape(latents.shape[0], -1, latents.shape[-1])
    codes = self.quantizer.codebook()
    if self.config.is_unit_norm:
      z = unit(z)
    product = jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(codes * codes, axis=-1)
    # |z|^2 is the same for every code and cancels in the softmax.
    logits = (2 * product - squares[None, None]) / temperature
    sample, batch = softmax_entropies(logits)
    losses = {"sample_entropy": sample, "batch_entropy": batch}
    return losses if train else jax.tree.map(jnp.zeros_like, losses)


PRESETS = {
  "llamagen-vq-16": Config(),
  "llamagen-vq-8": Config(multipliers=(1, 2, 2, 4)),
}


def _side_rules(side: str, level: str, resize: str) -> tuple[Rule, ...]:
  theirs, ours = f"{side}.conv_blocks.{{l}}", f"params/{side}/{level}_{{l}}"
  middle = f"params/{side}/mid"
  return (
    *residual_rules(f"{theirs}.res.{{j}}", f"{ours}/block_{{j}}"),
    *attention_rules(f"{theirs}.attn.{{j}}", f"{ours}/attn_{{j}}"),
    *conv2d_rules(f"{theirs}.{resize}.conv", f"{ours}/{resize}/conv"),
    *residual_rules(f"{side}.mid.0", f"{middle}/block_1"),
    *attention_rules(f"{side}.mid.1", f"{middle}/attn_1"),
    *residual_rules(f"{side}.mid.2", f"{middle}/block_2"),
    *ends_rules(side, f"params/{side}"),
  )


WEIGHTS = Table(
  rules=(
    *_side_rules("encoder", "down", "downsample"),
    *_side_rules("decoder", "up", "upsample"),
    *conv2d_rules("quant_conv", "params/quant_conv"),
    *conv2d_rules("post_quant_conv", "params/post_quant_conv"),
    Rule("quantize.embedding.weight", "params/quantizer/codes"),
  ),
  # A record of recently used codes.
  ignore=(r"quantize\.codebook_used",),
)
