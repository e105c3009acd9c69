"""MaskGIT's VQGAN: encoder with quantizer, and decoder, against the PyTorch port."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, applied, compiled
from tests.parity.instella_t2i import authors_state, gradients
from tokzoo.tokenizers.image.maskgit_vqgan import WEIGHTS, Config


def make_config(config: dict) -> Config:
  return Config(
    image_size=config["H"],
    width=config["hidden"],
    multipliers=tuple(config["mult"]),
    res_blocks=config["nres"],
    code_dim=config["z"],
    num_codes=config["cb"],
    norm_groups=config["norm_groups"],
  )


def to_images(x: np.ndarray) -> jax.Array:
  """NCHW in [0, 1] to NHWC in [-1, 1]."""
  return 2 * jnp.asarray(x.transpose(0, 2, 3, 1)) - 1


def channels_first(x) -> np.ndarray:
  return np.asarray(x).transpose(0, 3, 1, 2)


def tied(distances: np.ndarray) -> np.ndarray:
  """Where the two nearest codes are as good as equally near; distances [..., K]."""
  nearest = np.sort(np.asarray(distances), axis=-1)
  return nearest[..., 1] - nearest[..., 0] < 1e-5


def convert(config: Config, tensors, *parts: str):
  """The model and its variables, of which a fixture holds only some parts."""
  module = config.build()
  image = jnp.zeros((1, config.image_size, config.image_size, config.channels))
  like = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
  kept = {"params": {part: like[part] for part in parts}}
  return module, WEIGHTS.to_ours(authors_state(tensors), kept)


def compare_encoder(config, tensors):
  module, variables = convert(make_config(config), tensors, "encoder", "quantizer")
  image = to_images(tensors["in/image"])

  def run(module, image):
    return module.quantize(image, train=True), module.soft_ids(image, 0.7)

  (quantized, soft), found = applied(
    module, variables, image, method=run, capture_intermediates=True
  )
  inside = found["intermediates"]["encoder"]
  latents = np.asarray(inside["__call__"][0])
  shape = latents.shape
  codes = np.asarray(variables["params"]["quantizer"]["codes"])
  flat = latents.reshape(shape[0], -1, 1, shape[-1])
  distances = np.square(flat - codes[None, None]).sum(-1)
  levels = range(len(config["mult"]))

  def loss(variables):
    losses = module.apply(variables, image, True, method="quantize").losses
    return losses["commitment"] + 0.25 * losses["codebook"]

  value, grads = compiled(jax.value_and_grad(loss))(variables)
  out = {
    "out/encoder": channels_first(latents),
    "out/indices": Ids(np.asarray(quantized.ids), tied(distances)),
    "out/quantized": channels_first(np.asarray(quantized.values).reshape(shape)),
    "out/soft_code": soft,
    "out/vq_loss": value,
  }
  for level in levels:
    out[f"out/down{level}"] = channels_first(inside[f"down_{level}"]["__call__"][0])
  return out | gradients(WEIGHTS, grads, tensors)


def compare_decoder(config, tensors):
  config = make_config(config)
  module, variables = convert(config, tensors, "decoder", "quantizer")
  height, width = tensors["in/quantized"].shape[2:]

  def run(module, ids):
    codes = module.quantizer.ids_to_codes(ids)
    return module.codes_to_image(codes.reshape(-1, height, width, config.code_dim))

  ids = jnp.asarray(tensors["in/indices"], jnp.int32)
  image, found = applied(module, variables, ids, method=run, capture_intermediates=True)
  inside = found["intermediates"]["decoder"]
  return {
    "out/conv_in": channels_first(inside["conv_in"]["__call__"][0]),
    "out/decoder": channels_first((image + 1) / 2),
  }


COMPARISONS = {
  "maskgit-vqgan-encoder": Comparison(compare_encoder),
  "maskgit-vqgan-decoder": Comparison(compare_decoder),
}
