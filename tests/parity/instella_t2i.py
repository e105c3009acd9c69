"""Instella-T2I: the tokenizer and both generators against the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, applied, compiled
from tokzoo.generators import instella_t2i as generators
from tokzoo.tokenizers.image import instella_t2i as bae
from tokzoo.tokens import Tokens
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
    model = bae_config(config, scale).build()
    like = jax.eval_shape(model.init, jax.random.key(0), image)
    variables = bae.WEIGHTS.to_ours(authors_state(tensors), like)

    def run(model, image):
      latents = model.encoder(image)
      logits = model.quantizer.proj(latents)
      quantized = model.quantizer(latents, train=True)
      rows, columns = (side // model.config.patch for side in image.shape[1:3])
      patches, _ = model.decoder(quantized.values, rows, columns)
      return latents, logits, quantized, patches, model(image, train=True)

    latents, logits, quantized, patches, output = applied(
      model, variables, image, method=run
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
      value, grads = compiled(jax.value_and_grad(loss))(variables)
      out["out/scale/loss"] = value
      out |= gradients(bae.WEIGHTS, grads, tensors)
  assert set(flatten(like)) == set(flatten(variables))
  return out


def generator_config(kind, config: dict):
  return kind(
    num_tokens=config["num_img_tkns"],
    bits=config["in_channels"],
    width=config["head_dim"] * config["heads"],
    layers=config["num_layers"],
    head_dim=config["head_dim"],
    condition_width=config["text_cond_dim"],
  )


def text_features(config, tensors):
  """The prompts' features and the empty prompt's: the two halves of the batch."""
  layers = range(config["num_layers"])
  features = jnp.stack([jnp.asarray(tensors[f"in/llm_feature_{i}"]) for i in layers])
  mask = jnp.asarray(tensors["in/text_mask"]).astype(bool)
  b = config["B"]
  return (
    generators.TextFeatures(features[:, :b], mask[:b]),
    generators.TextFeatures(features[:, b:], mask[b:]),
  )


def bce(logits, bits):
  return -(bits * jax.nn.log_sigmoid(logits) + (1 - bits) * jax.nn.log_sigmoid(-logits))


def compare_diffusion(config, tensors):
  module = generator_config(generators.DiffusionConfig, config).build()
  prompt, empty = text_features(config, tensors)
  x_t, t = jnp.asarray(tensors["in/x_t"]), jnp.asarray(tensors["in/t"])
  bits = jnp.asarray(tensors["in/bits"])
  like = jax.eval_shape(module.init, jax.random.key(0), x_t, t, prompt)
  table = generators.DIFFUSION_WEIGHTS
  variables = table.to_ours(authors_state(tensors), like)

  def loss(variables):
    logits = module.apply(variables, x_t, t, prompt, method=module.bit_logits)
    return bce(logits, bits).mean(), logits

  (value, logits), grads = compiled(jax.value_and_grad(loss, has_aux=True))(variables)
  out = {
    "out/raw": applied(module, variables, x_t, t, prompt),
    "out/bit_logits": logits,
    "out/loss": value,
    **gradients(table, grads, tensors),
  }
  uniforms = jnp.asarray(tensors["in/uniform"])
  for protocol in (1, 2):
    tokens = applied(
      module,
      variables,
      None,
      prompt,
      null=empty,
      steps=config["steps"],
      guidance=config["cfg"],
      temperature=config["temp"],
      protocol=protocol,
      uniform=lambda k: uniforms[k],
      method=module.sample,
    )
    bits_out = np.asarray(tokens.unpacked(), np.float32)
    out[f"out/sample_protocal_{protocol}"] = Ids(bits_out)
  return out


def compare_ar(config, tensors):
  module = generator_config(generators.ARConfig, config).build()
  prompt, empty = text_features(config, tensors)
  bits = jnp.asarray(tensors["in/bits"])
  like = jax.eval_shape(module.init, jax.random.key(0), bits, prompt)
  table = generators.AR_WEIGHTS
  variables = table.to_ours(authors_state(tensors), like)

  def loss(variables):
    logits = module.apply(variables, bits, prompt)
    return bce(logits, bits).mean(), logits

  (value, logits), grads = compiled(jax.value_and_grad(loss, has_aux=True))(variables)
  uniforms = jnp.asarray(tensors["in/uniform"])
  tokens = applied(
    module,
    variables,
    None,
    prompt,
    null=empty,
    guidance=config["cfg"],
    temperature=config["temp"],
    uniform=lambda i: uniforms[i][:, 0],
    method=module.sample,
  )
  # The loss of the contract, on packed tokens, is the fixture's as well.
  packed, _ = applied(
    module,
    variables,
    Tokens.from_bits(bits),
    prompt,
    jax.random.key(0),
    method=module.loss,
  )
  np.testing.assert_allclose(packed, value, rtol=1e-6)
  return {
    "out/raw": logits,
    "out/bit_logits": logits,
    "out/loss": value,
    "out/sample": Ids(np.asarray(tokens.unpacked(), np.float32)),
    **gradients(table, grads, tensors),
  }


COMPARISONS = {
  "instella-t2i-bae": Comparison(compare_bae),
  "instella-t2i-ar": Comparison(compare_ar),
  "instella-t2i-diff": Comparison(compare_diffusion),
}
