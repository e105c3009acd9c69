"""Instella-T2I: the tokenizer and both generators against the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids
from tokzoo.tokenizers.image import instella_t2i as bae
from tokzoo.weights import flatten


def authors_state(tensors) -> dict[str, np.ndarray]:
  """The fixture's parameters under the authors' names."""
  return {
    n.removeprefix("param/"): v for n, v in tensors.items() if n.startswith("param/")
  }


def gradients(table, grads, tensors) -> dict[str, np.ndarray]:
  """The gradients that the fixture asks for, in the authors' names and layouts."""
  state = table.to_authors(grads)
  return {n: state[n.removeprefix("grad/")] for n in tensors if n.startswith("grad/")}


def bae_config(config: dict, scale: bool) -> bae.Config:
  width = config["encoder_head_dim"] * config["encoder_num_heads"]
  return bae.Config(
    image_size=config["img"][0],
    channels=config["in_channels"],
    patch=config["patch_size"],
    num_tokens=config["num_latent_tkns"],
    bits=config["codebook_size"],
    width=width,
    layers=config["encoder_layers"],
    head_dim=config["encoder_head_dim"],
    down_after=tuple(config["downsample_idx"]),
    decoder_width=config["decoder_head_dim"] * config["decoder_num_heads"],
    decoder_layers=config["decoder_layers"],
    decoder_head_dim=config["decoder_head_dim"],
    up_after=tuple(config["upsample_idx"]),
    mlp_ratio=config["mlp_ratio"],
    rope_dims=tuple(config["axes_dims_rope"]),
    rope_theta=config["rope_theta"],
    norm_eps=config["rms_eps"],
    span=config["scale"] if scale else None,
    # The fixture's gradients are of deterministic bits.
    temperature=0.0,
  )


def compare_bae(config, tensors):
  image = jnp.asarray(tensors["in/image"].transpose(0, 2, 3, 1))
  out = {}
  for case, scale in (("noscale", False), ("scale", True)):
    model = bae.InstellaBAE(bae_config(config, scale))
    like = jax.eval_shape(model.init, jax.random.key(0), image)
    variables = bae.WEIGHTS.to_ours(authors_state(tensors), like)

    def run(model, image):
      latents = model.encoder(image)
      logits = model.quantizer.proj(latents)
      quantized = model.quantizer(latents, train=True)
      rows, columns = (side // model.config.patch for side in image.shape[1:3])
      patches, _ = model.decoder(quantized.values, rows, columns)
      return latents, logits, quantized, patches, model(image, train=True)

    latents, logits, quantized, patches, output = model.apply(
      variables, image, method=run
    )
    tied = np.abs(np.asarray(logits)) < 1e-5
    out |= {
      f"out/{case}/encoder": latents,
      f"out/{case}/logits": logits,
      f"out/{case}/bits": Ids(np.asarray(quantized.ids), tied),
      f"out/{case}/quantized": quantized.values,
      f"out/{case}/code_loss": quantized.losses["code"],
      f"out/{case}/decoder": patches,
      f"out/{case}/recon": np.asarray(output.reconstruction).transpose(0, 3, 1, 2),
    }

    def loss(variables, model=model):
      output = model.apply(variables, image, train=True)
      error = jnp.abs(output.reconstruction - image)
      smooth_l1 = jnp.where(error < 1, 0.5 * error**2, error - 0.5).mean()
      return smooth_l1 + 0.1 * output.losses["code"]

    if scale:
      value, grads = jax.value_and_grad(loss)(variables)
      out["out/scale/loss"] = value
      out |= gradients(bae.WEIGHTS, grads, tensors)
  assert set(flatten(like)) == set(flatten(variables))
  return out


COMPARISONS = {"instella-t2i-bae": Comparison(compare_bae)}
