"""TiTok: the three variants of the tokenizer, and its discriminator, with the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.parity.base import Comparison, Ids, applied, compiled
from tests.parity.instella_t2i import authors_state, gradients
from tests.parity.maskgit_vqgan import channels_first, tied, to_images
from tokzoo.losses import hinge_discriminator, hinge_generator, l2, lecam
from tokzoo.nn import blur_discriminator
from tokzoo.tokenizers.image import maskgit_vqgan
from tokzoo.tokenizers.image.titok import WEIGHTS, Config, Gaussian, Size


def make_size(config: dict, name: str) -> Size:
  """The fixtures list [small, base] and name one of them."""
  at = ("small", "base").index(config[name])
  return Size(*(config[what][at] for what in ("width", "layers", "heads")))


def make_settings(config: dict) -> dict:
  """Arguments of a `Config`, or of one that extends it."""
  pixels = None
  if "pix_cb" in config:
    pixels = maskgit_vqgan.Config(
      width=config["pix_hidden"],
      multipliers=tuple(config["pix_mult"]),
      res_blocks=config["pix_nres"],
      code_dim=config["pix_z"],
      num_codes=config["pix_cb"],
    )
  return {
    "image_size": config["img"],
    "patch": config["patch"],
    "num_tokens": config["K"],
    "encoder": make_size(config, "enc"),
    "decoder": make_size(config, "dec"),
    "mlp_ratio": config["mlp_ratio"],
    "quantizer": config.get("quantize_mode", "vq"),
    "num_codes": config["cb"],
    "code_dim": config["tok"],
    "use_l2_norm": config.get("use_l2_norm", False),
    "is_legacy": config["is_legacy"],
    "pixels": pixels,
  }


def convert(config, tensors):
  """The module, its variables from the fixture, and the fixture's images."""
  module = config.build()
  image = to_images(tensors["in/image"])
  like = jax.eval_shape(module.init, jax.random.key(0), image)
  return module, WEIGHTS.to_ours(authors_state(tensors), like), image


def channels_then_tokens(x) -> np.ndarray:
  """[B, K, c] to the authors' [B, c, 1, K]."""
  return np.asarray(x).swapaxes(1, 2)[:, :, None]


def quantized_tensors(config: dict, module, variables, image) -> dict:
  """What the fixtures of the VQ variants hold of the encoder and the quantizer."""

  def run(module, x):
    return module.latents(x), module.quantize(x, True)

  latents, quantized = applied(module, variables, image, method=run)
  codes = np.asarray(variables["params"]["quantizer"]["codes"])
  z = np.asarray(latents)
  if config.get("use_l2_norm"):
    codes = codes / np.linalg.norm(codes, axis=-1, keepdims=True)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
  distances = np.square(z[:, :, None] - codes[None, None]).sum(-1)
  commitment = config["commitment_cost"] * quantized.losses["commitment"]
  return {
    "out/encoder": channels_then_tokens(latents),
    "out/indices": Ids(np.asarray(quantized.ids)[:, None], tied(distances)[:, None]),
    "out/quantized": channels_then_tokens(quantized.values),
    "out/commitment_loss": commitment,
    "out/codebook_loss": quantized.losses["codebook"],
    "out/quantizer_loss": commitment + quantized.losses["codebook"],
  }


def cross_entropy(logits, targets):
  """Mean over places, targets [B, h * w] row by row."""
  rows = logits.reshape(targets.shape[0], -1, logits.shape[-1])
  labels = jnp.asarray(targets, jnp.int32)
  return optax.softmax_cross_entropy_with_integer_labels(rows, labels).mean()


def compare_legacy(config, tensors):
  module, variables, image = convert(Config(**make_settings(config)), tensors)

  def run(module, image):
    logits, _ = module.proxy_logits(image)
    soft = module.pixels.soft_codes(logits)
    return logits, soft, module(image).reconstruction

  logits, soft, image_out = applied(module, variables, image, method=run)
  return quantized_tensors(config, module, variables, image) | {
    "out/decoder_logits": channels_first(logits),
    "out/stage1_cross_entropy": cross_entropy(logits, tensors["in/target_codes"]),
    "out/soft_code": channels_first(soft),
    "out/decoder": channels_first((image_out + 1) / 2),
  }


def compare_rgb(config, tensors):
  module, variables, image = convert(Config(**make_settings(config)), tensors)

  def loss(variables):
    output = module.apply(variables, image, True)
    # The authors' pixels are half as far apart as ours.
    error = l2(output.reconstruction, image) / 4
    losses = output.losses
    commitment = config["commitment_cost"] * losses["commitment"]
    return error + commitment + losses["codebook"], output.reconstruction

  (value, made), grads = compiled(jax.value_and_grad(loss, has_aux=True))(variables)
  found = quantized_tensors(config, module, variables, image)
  found |= {"out/loss": value, "out/decoder": channels_first((made + 1) / 2)}
  return found | gradients(WEIGHTS, grads, tensors)


def compare_vae(config, tensors):
  module, variables, image = convert(Config(**make_settings(config)), tensors)
  moments = applied(module, variables, image, method="latents")
  gaussian = Gaussian(moments)
  made = applied(module, variables, image).reconstruction
  return {
    "out/moments": channels_then_tokens(moments),
    "out/mean": channels_then_tokens(gaussian.mean),
    "out/logvar": channels_then_tokens(gaussian.logvar),
    "out/kl": gaussian.kl(),
    "out/decoder": channels_first((made + 1) / 2),
  }


def compare_discriminator(config, tensors):
  table = blur_discriminator.WEIGHTS
  module = blur_discriminator.BlurDiscriminator(
    config["hidden_channels"], config["num_stages"]
  )
  real, fake = (to_images(tensors[f"in/{name}"]) for name in ("real", "fake"))
  like = jax.eval_shape(module.init, jax.random.key(0), real)
  variables = table.to_ours(authors_state(tensors), like)
  averages = [jnp.asarray(tensors[f"in/ema_{name}"]) for name in ("real", "fake")]

  def judge(variables, image):
    return jnp.asarray(module.apply(variables, image))

  def disc_loss(variables):
    on_real, on_fake = judge(variables, real), judge(variables, fake)
    hinge = hinge_discriminator(on_real, on_fake)
    leaning = lecam(on_real.mean()[None], on_fake.mean()[None], *averages)
    return hinge + 0.001 * leaning, (hinge, leaning, on_real, on_fake)

  (value, parts), grads = compiled(jax.value_and_grad(disc_loss, has_aux=True))(
    variables
  )
  hinge, leaning, on_real, on_fake = parts
  generator = compiled(
    jax.value_and_grad(lambda fake: hinge_generator(judge(variables, fake)))
  )
  gen_loss, to_fake = generator(fake)
  return {
    "out/disc_loss": value,
    "out/gen_loss": gen_loss,
    "out/hinge": hinge,
    "out/lecam": leaning,
    "out/logits_real": channels_first(on_real),
    "out/logits_fake": channels_first(on_fake),
    # Of the authors' pixels in [0, 1], which are half as far apart as ours.
    "grad_in/fake_from_gen_loss": 2 * channels_first(to_fake),
    **gradients(table, grads, tensors),
  }


COMPARISONS = {
  # Group norms of few, nearly constant channels in a tiny random pixel decoder.
  "titok-legacy": Comparison(compare_legacy, noisy={"out/decoder": 1e-3}),
  "titok-rgb": Comparison(compare_rgb),
  "titok-vae": Comparison(compare_vae),
  "titok-discriminator": Comparison(compare_discriminator),
}
