"""What KARL and ALIT stand on: a 2D tokenizer whose latents they distil, or plain pixels.

Each of the three below answers the same four questions:

  look      what the encoder sees of an image beside its patches, and what the decoder is to
            predict of it
  code      the latents that a prediction stands for
  image     the picture of these latents
  distances how far a prediction is from its target

  VQGAN   MAGE's tokenizer. The source calls it "taming", but it is MaskGIT's VQGAN (no
          attention, no bias in blocks, the shortcut's quirk) with taming's names, written as
          `tokzoo.tokenizers.image.maskgit_vqgan`; nothing reads the attention at 16 x 16 that
          its configuration names. Predictions are logits over its codes.
  KLVAE   MAR's KL-VAE with 16 channels. Predictions are its latents times 0.2325, and are
          decoded as such: the source never divides by that number again.
  Pixels  none: predictions are patches of RGB. Not in the source; for small models.

Images come in [-1, 1]; the published networks work in [0, 1].
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.nn import vqgan
from tokzoo.tokenizers.image import maskgit_vqgan
from tokzoo.weights import CONV2D, Rule, conv2d_rules, norm_rules


@struct.dataclass
class Glance:
  """What a base sees in images, P places row by row.

  latents:  float[B, P, c], for the encoder; c is 0 for pixels
  target:   ids int32[B, P], or values float[B, P, c], without a gradient
  """

  latents: Float[Array, "B P c"]
  target: Int[Array, "B P"] | Float[Array, "B P c"]


class VQGAN(maskgit_vqgan.MaskGITVQGAN):
  """MAGE's tokenizer as a base."""

  def look(self, x: Float[Array, "B H W C"], rng: PRNGKeyArray | None = None) -> Glance:
    """The latents before quantization, and the codes nearest to them."""
    latents = self.encoder((x + 1) / 2)
    flat = latents.reshape(len(x), -1, latents.shape[-1])
    return Glance(flat, jax.lax.stop_gradient(self.quantizer(flat).ids))

  def code(self, prediction: Float[Array, "B P V"]) -> Float[Array, "B P c"]:
    """softmax(logits) @ codebook; the codebook gets no gradient, as in the source."""
    weights = jax.nn.softmax(prediction.astype(jnp.float32), axis=-1)
    codes = jax.lax.stop_gradient(self.quantizer.codebook())
    return jnp.einsum("bpk,kd->bpd", weights, codes).astype(prediction.dtype)

  def image(self, code: Float[Array, "B P c"]) -> Float[Array, "B H W C"]:
    """Latents to images in about [-1, 1], of a square."""
    return self.codes_to_image(_square(code))

  def distances(
    self, prediction: Float[Array, "B P V"], target: Int[Array, "B P"]
  ) -> dict[str, Float[Array, ""]]:
    """`cross_entropy` with the codes, and `code`, the mean squared error of the soft code.

    The source builds a loss with smoothed labels and then leaves the smooth part out.
    """
    logits = prediction.astype(jnp.float32)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    true = jax.lax.stop_gradient(self.quantizer.ids_to_codes(target))
    error = jnp.square(self.code(prediction).astype(jnp.float32) - true)
    return {"cross_entropy": nll.mean(), "code": error.mean()}


@dataclasses.dataclass(frozen=True)
class KLVAEConfig:
  """Sizes of MAR's KL-VAE; the defaults are the published ones."""

  channels: int = 3
  """Colour channels."""
  width: int = 128
  """Features of the finest level."""
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  """Features of each level over `width`, from fine to coarse."""
  res_blocks: int = 2
  """Residual blocks of each encoder level; the decoder's have one more."""
  latent_dim: int = 16
  """Channels of the latents."""
  groups: int = 32
  """Groups of every GroupNorm."""
  scale: float = 0.2325
  """Of the latents, so that they have about unit variance."""

  def shape(self, attention: tuple[int, ...]) -> vqgan.VQGANShape:
    """Of a side with attention in these levels; the encoder makes two moments."""
    return vqgan.VQGANShape(
      channels=self.channels,
      width=self.width,
      multipliers=self.multipliers,
      encoder_blocks=self.res_blocks,
      decoder_blocks=self.res_blocks + 1,
      attention=attention,
      latent_dim=2 * self.latent_dim,
      groups=self.groups,
    )


class KLVAE(nn.Module):
  """MAR's KL-VAE as a base."""

  config: KLVAEConfig

  def setup(self):
    c = self.config
    # Attention in the encoder's last level and in both middles.
    self.encoder = vqgan.Encoder(c.shape((len(c.multipliers) - 1,)))
    self.quant_conv = nn.Conv(2 * c.latent_dim, (1, 1))
    self.post_quant_conv = nn.Conv(c.latent_dim, (1, 1))
    self.decoder = vqgan.Decoder(c.shape(()))

  def look(self, x: Float[Array, "B H W C"], rng: PRNGKeyArray | None = None) -> Glance:
    """Scaled latents, drawn with a key; their means without. They are the target, too."""
    moments = self.quant_conv(self.encoder((x + 1) / 2))
    flat = moments.reshape(len(x), -1, moments.shape[-1])
    mean, logvar = jnp.split(flat, 2, axis=-1)
    if rng is not None:
      deviation = jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0))
      mean = mean + deviation * jax.random.normal(rng, mean.shape, mean.dtype)
    latents = self.config.scale * mean
    return Glance(latents, jax.lax.stop_gradient(latents))

  def code(self, prediction: Float[Array, "B P c"]) -> Float[Array, "B P c"]:
    """The prediction itself."""
    return prediction

  def image(self, code: Float[Array, "B P c"]) -> Float[Array, "B H W C"]:
    """Scaled latents to images in about [-1, 1], of a square."""
    return 2 * self.decoder(self.post_quant_conv(_square(code))) - 1

  def distances(
    self, prediction: Float[Array, "B P c"], target: Float[Array, "B P c"]
  ) -> dict[str, Float[Array, ""]]:
    """`code`, the mean squared error of the latents."""
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return {"code": jnp.square(error).mean()}


class Pixels(nn.Module):
  """No base: patches of the picture itself.

  patch:     side of a patch in pixels
  channels:  colour channels
  """

  patch: int
  channels: int

  def look(self, x: Float[Array, "B H W C"], rng: PRNGKeyArray | None = None) -> Glance:
    """No latents; the patches in [-1, 1], where a new decoder is nearer, are the target."""
    p = self.patch
    patches = rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)
    return Glance(patches[:, :, :0], patches)

  def code(self, prediction: Float[Array, "B P c"]) -> Float[Array, "B P c"]:
    """The prediction itself."""
    return prediction

  def image(self, code: Float[Array, "B P c"]) -> Float[Array, "B H W C"]:
    """Patches to images in about [-1, 1], of a square."""
    p, grid = self.patch, _square(code)
    return rearrange(grid, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)

  def distances(
    self, prediction: Float[Array, "B P c"], target: Float[Array, "B P c"]
  ) -> dict[str, Float[Array, ""]]:
    """`code`, the mean squared error of the pixels."""
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return {"code": jnp.square(error).mean()}


Base = VQGAN | KLVAE | Pixels
BaseConfig = maskgit_vqgan.Config | KLVAEConfig | None


def features_of(config: BaseConfig) -> int:
  """Features of the latents that the encoder sees beside patches."""
  match config:
    case maskgit_vqgan.Config():
      return config.code_dim
    case KLVAEConfig():
      return config.latent_dim
    case None:
      return 0


def outputs_of(config: BaseConfig, patch: int, channels: int) -> int:
  """Numbers that the decoder predicts per place."""
  match config:
    case maskgit_vqgan.Config():
      return config.num_codes
    case KLVAEConfig():
      return config.latent_dim
    case None:
      return patch**2 * channels


def last_kernel(config: BaseConfig) -> str:
  """Path of the last layer before the pixels: where adversarial weights adapt."""
  match config:
    case maskgit_vqgan.Config():
      return "vqgan/decoder/conv_out/kernel"
    case KLVAEConfig():
      return "vae/decoder/conv_out/kernel"
    case None:
      return "decoder/trunk/ffn_2/kernel"


class OnBase(nn.Module):
  """A tokenizer over one of the three, under the name that the source gives its weights."""

  def set_base(
    self, config: maskgit_vqgan.Config | KLVAEConfig | None, patch: int, channels: int
  ) -> None:
    """To be called in `setup`; without a config the base is patches of `patch` pixels."""
    match config:
      case maskgit_vqgan.Config():
        self.vqgan = VQGAN(config)
      case KLVAEConfig():
        self.vae = KLVAE(config)
      case None:
        self.pixels = Pixels(patch, channels)

  @property
  def base(self) -> VQGAN | KLVAE | Pixels:
    """The tokenizer underneath."""
    found = (getattr(self, name, None) for name in ("vqgan", "vae", "pixels"))
    return next(base for base in found if base is not None)


def _square(code: Float[Array, "B P c"]) -> Float[Array, "B h w c"]:
  side = round(code.shape[1] ** 0.5)
  return code.reshape(len(code), side, side, code.shape[-1])


def _mage_rules(key: str, path: str) -> tuple[Rule, ...]:
  """MaskGIT's VQGAN in the names of MAGE's copy of taming-transformers."""
  enc, dec = f"{path}/encoder", f"{path}/decoder"
  rules: list[Rule] = [
    Rule(f"{key}.encoder.conv_in.weight", f"{enc}/conv_in/kernel", CONV2D),
    *vqgan.residual_rules(
      f"{key}.encoder.down.{{l}}.block.{{j}}", f"{enc}/down_{{l}}/block_{{j}}"
    ),
    *conv2d_rules(f"{key}.decoder.conv_in", f"{dec}/conv_in"),
    *vqgan.residual_rules(
      f"{key}.decoder.up.{{l}}.block.{{j}}", f"{dec}/up_{{l}}/block_{{j}}"
    ),
    *conv2d_rules(
      f"{key}.decoder.up.{{l}}.upsample.conv", f"{dec}/up_{{l}}/upsample_conv"
    ),
    Rule(f"{key}.quantize.embedding.weight", f"{path}/quantizer/codes"),
  ]
  for theirs, ours in ((f"{key}.encoder", enc), (f"{key}.decoder", dec)):
    rules += [
      # They count from 1.
      *vqgan.residual_rules(f"{theirs}.mid.block_1", f"{ours}/mid_0"),
      *vqgan.residual_rules(f"{theirs}.mid.block_2", f"{ours}/mid_1"),
      *norm_rules(f"{theirs}.norm_out", f"{ours}/norm_out"),
      *conv2d_rules(f"{theirs}.conv_out", f"{ours}/conv_out"),
    ]
  return tuple(rules)


BASE_RULES = (
  *_mage_rules("base_tokenizer.vqgan", "params/vqgan"),
  *vqgan.taming_rules("base_tokenizer.vae.", "params/vae"),
  *conv2d_rules("base_tokenizer.vae.quant_conv", "params/vae/quant_conv"),
  *conv2d_rules("base_tokenizer.vae.post_quant_conv", "params/vae/post_quant_conv"),
)
"""Rules of either base inside a published file."""
