"""KARL: one image at two wished errors and both training passes; ALIT: three rollouts."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, compiled
from tests.parity.instella_t2i import authors_state, gradients
from tests.parity.maskgit_vqgan import channels_first, tied, to_images
from tokzoo.nn.prefix import prefix_mask
from tokzoo.tokenizers.image import maskgit_vqgan
from tokzoo.tokenizers.image.karl import (
  ALIT_WEIGHTS,
  ERRORS,
  WEIGHTS,
  ALITConfig,
  Config,
  Size,
)
from tokzoo.tokenizers.image.karl.base import Glance
from tokzoo.tokenizers.image.karl.model import bin_of
from tokzoo.tokenizers.image.karl.objectives import halting_losses


def make_settings(config: dict) -> dict:
  """What the configs of both have alike."""
  return {
    "image_size": config["img"],
    "patch": config["patch"],
    "encoder": Size(*config["enc"]),
    "decoder": Size(*config["dec"]),
    "mlp_ratio": config["mlp_ratio"],
    "num_codes": config["cb"],
    "code_dim": config["tok"],
    "use_l2_norm": config["vq_l2_norm"],
    # Of the base the fixtures hold the codebook alone.
    "base": maskgit_vqgan.Config(
      num_codes=config["base_cb"],
      code_dim=config["base_dim"],
    ),
  }


def convert(config, table, tensors):
  """The module and its variables, without the base's encoder and decoder."""
  module = config.build()
  image, glance = to_images(tensors["in/image"]), glance_of(tensors)

  def touch(module):
    if isinstance(config, Config):
      prediction = module.run(image, glance, jnp.zeros(()), 1).prediction
    else:
      prediction = module.rollouts(image, glance, config.rollouts)[0].prediction
    return module.base.code(prediction)

  like = jax.eval_shape(lambda: module.init(jax.random.key(0), method=touch))
  return module, table.to_ours(authors_state(tensors), like)


def glance_of(tensors) -> Glance:
  """What the replaced base saw in the images."""
  latents = tensors["in/base_tokens"]
  flat = latents.reshape(*latents.shape[:2], -1).swapaxes(1, 2)
  return Glance(jnp.asarray(flat), jnp.asarray(tensors["in/base_indices"], jnp.int32))


def one(tree, i: int):
  return jax.tree.map(lambda x: x[i : i + 1], tree)


def nearly_equal(config, variables, factors) -> np.ndarray:
  """Where two codes are as good as equally near to what is quantized."""
  codes, z = np.asarray(variables["params"]["codebook"]["codes"]), np.asarray(factors)
  if config["vq_l2_norm"]:
    codes = codes / np.linalg.norm(codes, axis=-1, keepdims=True)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
  return tied(np.square(z[:, :, None] - codes[None, None]).sum(-1))


def pixels_of(config, code) -> np.ndarray:
  """The fixture's stand-in for the base's decoder: [B, 3, H, W]."""
  side = config["grid"]
  grid = np.asarray(code)[..., :3].reshape(len(code), side, side, 3)
  factor = config["img"] // side
  return channels_first(grid.repeat(factor, 1).repeat(factor, 2))


def wished(tensors, name: str):
  """The error of a training pass. Fixtures do not say which bin was drawn, but the table of
  bins has a gradient in that row alone."""
  gradient = np.abs(tensors[f"grad/{name}/rec_loss_embeddings"]).sum(1)
  return jnp.float32(ERRORS[int(gradient.argmax())])


def total(config, losses: dict, terms: dict):
  quantizer = config["commitment_cost"] * losses["commitment"] + losses["codebook"]
  return sum(terms.values()) + quantizer, quantizer


def compare_karl(config, tensors):
  settings = make_settings(config)
  rows = len(tensors["param/latent_tokens"])
  module, variables = convert(
    Config(
      num_tokens=config["T"],
      max_tokens=rows,
      positions=config["max_grid"],
      halting_width=len(tensors["param/halting_mlp.0.bias"]),
      halting_threshold=config["halt_threshold"],
      **settings,
    ),
    WEIGHTS,
    tensors,
  )
  images, glances = to_images(tensors["in/image"]), glance_of(tensors)
  out, bins = {}, np.asarray(ERRORS, np.float32)

  @jax.jit
  def evaluate(variables, error):
    def run(module):
      image, glance = one((images, glances), 0)
      found = module.run(image, glance, error, config["T"], train=True)
      return found, module.base.code(found.prediction)

    return module.apply(variables, method=run)

  for i, error in enumerate(config["eps"]):
    found, code = evaluate(variables, jnp.float32(error))
    probability = np.asarray(jax.nn.sigmoid(found.halting))
    threshold = np.abs(probability - config["halt_threshold"]) < 1e-5
    losses = found.quantized.losses
    names = {
      "attn_mask_halted": Ids(np.asarray(~found.active).astype(np.uint8), threshold),
      "binned": bins[np.asarray(bin_of(jnp.full((1, 1, 1), error)))],
      "decoder_logits": found.prediction,
      "encoder": found.latents,
      "factorized": found.factors,
      "halt_logits": found.halting[..., None],
      "halt_prob": probability[..., None],
      "indices": Ids(
        np.asarray(found.quantized.ids),
        nearly_equal(config, variables, found.factors),
      ),
      "quantized": found.quantized.values,
      "quantizer_loss": total(config, losses, {})[1],
      "recon": pixels_of(config, code),
      "soft_code": code,
    }
    out |= {f"out/eps{i}/{name}": value for name, value in names.items()}

  def train(variables, at, error, length, needed, is_halting):
    """One training pass of `length` tokens among all that the table has."""
    budget = rows if not is_halting else length

    def run(module):
      image, glance = one((images, glances), at)
      kept = None if is_halting else prefix_mask(length, budget)
      found = module.run(image, glance, error, budget, kept, is_halting, True)
      all_kept = prefix_mask(length, budget)
      halting = halting_losses(found.halting, all_kept, prefix_mask(needed, budget))
      apart = module.base.distances(found.prediction, glance.target)
      terms = {
        "nll_loss": apart["cross_entropy"],
        "code_loss": apart["code"],
        "latent_token_active_loss_bce": halting["active"],
        "latent_token_halt_loss_bce": halting["halted"],
      }
      value, quantizer = total(config, found.quantized.losses, terms)
      terms |= {"total_loss": value, "quantization_loss": quantizer}
      return value, (terms, module.base.code(found.prediction))

    return module.apply(variables, method=run)

  T, later = config["T"], config["T_ltc"]
  passes = {
    "eic": (0, wished(tensors, "eic"), T, T, False),
    "ltc": (1, wished(tensors, "ltc"), later, T, True),
  }
  for name, arguments in passes.items():
    (_, (terms, code)), grads = jax.jit(
      jax.value_and_grad(lambda v, a=arguments: train(v, *a), has_aux=True)
    )(variables)
    out |= {f"out/{name}/{key}": value for key, value in terms.items()}
    error = np.abs(tensors["in/image"][:1] - pixels_of(config, code))
    out[f"out/{name}/l1"] = error.mean((1, 2, 3))[:, None]
    own = {
      key.replace(f"grad/{name}/", "grad/"): None
      for key in tensors
      if key.startswith(f"grad/{name}/")
    }
    found = gradients(WEIGHTS, grads, own)
    out |= {key.replace("grad/", f"grad/{name}/"): v for key, v in found.items()}
  return out


def compare_alit(config, tensors):
  module, variables = convert(
    ALITConfig(
      num_tokens=config["init"] * config["iters"],
      tokens_per_rollout=config["init"],
      dropping_threshold=config["thr"],
      **make_settings(config),
    ),
    ALIT_WEIGHTS,
    tensors,
  )
  images, glance = to_images(tensors["in/image"]), glance_of(tensors)
  draws = jnp.asarray(tensors["in/uniform"])

  def train(variables):
    def run(module):
      every = module.rollouts(images, glance, config["iters"], draws, True)
      value = jnp.float32(0)
      for rollout, weight in zip(every, config["loss_weights"], strict=True):
        apart = module.base.distances(rollout.prediction, glance.target)
        terms = {"nll": weight * apart["cross_entropy"], "code": apart["code"]}
        value += total(config, rollout.quantized.losses, terms)[0]
      return value, [
        (rollout, module.to_code(module.ln_post(rollout.latents))) for rollout in every
      ]

    return module.apply(variables, method=run)

  (value, every), grads = compiled(jax.value_and_grad(train, has_aux=True))(variables)
  out = {"out/train_loss": value, **gradients(ALIT_WEIGHTS, grads, tensors)}
  for i, (rollout, factors) in enumerate(every):
    out |= {
      f"out/iter{i}/latents": rollout.latents,
      f"out/iter{i}/image_tokens": rollout.places,
      f"out/iter{i}/decoder_logits": rollout.prediction,
      f"out/iter{i}/indices": Ids(
        np.asarray(rollout.quantized.ids), nearly_equal(config, variables, factors)
      ),
    }
  return out


COMPARISONS = {
  "karl": Comparison(compare_karl),
  "karl-alit": Comparison(compare_alit),
}
