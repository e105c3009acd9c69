"""LlamaGen: the tokenizer and its discriminator against the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, compiled
from tests.parity.instella_t2i import authors_state, gradients
from tokzoo import losses
from tokzoo.nn.discriminator import PatchGAN, patchgan_weights
from tokzoo.tokenizers.image import llamagen
from tokzoo.tokens import Tokens


def nhwc(x: np.ndarray) -> jax.Array:
  return jnp.asarray(x.transpose(0, 2, 3, 1))


def nchw(x: jax.Array) -> np.ndarray:
  return np.asarray(x).transpose(0, 3, 1, 2)


def vq_config(config: dict) -> llamagen.Config:
  # eps is 1e-6 in every published network, and the attention's place follows from the depth.
  assert config["group_norm_eps"] == 1e-6
  return llamagen.Config(
    image_size=config["image_size"],
    width=config["ch"],
    multipliers=tuple(config["ch_mult"]),
    blocks=config["num_res_blocks"],
    latent_dim=config["z_channels"],
    groups=config["group_norm_groups"],
    num_codes=config["codebook_size"],
    code_dim=config["codebook_embed_dim"],
    is_unit_norm=config["codebook_l2_norm"],
    entropy_temperature=config["entropy_temperature"],
  )


def compare_vq(config, tensors):
  model = vq_config(config).build()
  image = nhwc(tensors["in/image"])
  like = jax.eval_shape(model.init, jax.random.key(0), image)
  variables = llamagen.WEIGHTS.to_ours(authors_state(tensors), like)
  ratio = config["entropy_loss_ratio"]

  def loss(variables):
    output = model.apply(variables, image, train=True)
    named = output.losses
    rec = jnp.square(output.reconstruction - image).mean()
    commit = config["commit_loss_beta"] * named["commitment"]
    entropy = ratio * (named["sample_entropy"] - named["batch_entropy"])
    total = rec + named["codebook"] + commit + entropy
    return total, (rec, named["codebook"], commit, entropy, output)

  # Operation by operation this takes minutes.
  (total, found), grads = compiled(jax.value_and_grad(loss, has_aux=True))(variables)
  rec, vq, commit, entropy, output = found

  def inside(model, image):
    encoded = model.encoder(image)
    latents = model.quant_conv(encoded)
    rows = latents.reshape(len(latents), -1, latents.shape[-1])
    quantized = model.quantizer(rows).values.reshape(latents.shape)
    return encoded, latents, quantized, model.quantizer.codebook()

  run = compiled(lambda v: model.apply(v, image, method=inside))
  encoded, latents, quantized, codes = run(variables)
  gap = top2_gap(np.asarray(latents), np.asarray(codes), config["codebook_l2_norm"])
  tokens = compiled(lambda v: model.apply(v, image, method="encode"))(variables)
  ids = np.asarray(tensors["out/indices"]).reshape(len(image), -1)
  given = Tokens.from_ids(jnp.asarray(ids, jnp.int32), config["codebook_size"])
  decode = compiled(
    lambda v: model.apply(v, given, size=image.shape[1:3], method="decode")
  )
  return {
    "out/encoder": nchw(encoded),
    "out/quant_conv": nchw(latents),
    "out/indices": Ids(np.asarray(tokens.ids).reshape(-1), gap < 1e-5),
    "out/top2_gap": gap,
    "out/quantized": nchw(quantized),
    "out/decoded": nchw(output.reconstruction),
    "out/decoded_from_indices": nchw(decode(variables)),
    "out/loss_rec_l2": rec,
    "out/loss_vq": vq,
    "out/loss_commit": commit,
    "out/loss_entropy": entropy,
    "out/loss_total": total,
    **gradients(llamagen.WEIGHTS, grads, tensors),
  }


def top2_gap(latents: np.ndarray, codes: np.ndarray, is_unit_norm: bool) -> np.ndarray:
  """Second-best minus best squared distance of every place."""
  z = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
  if is_unit_norm:
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
  best = np.sort(((z[:, None] - codes[None]) ** 2).sum(-1), axis=1)
  return best[:, 1] - best[:, 0]


def compare_patchgan(config, tensors):
  critic = PatchGAN(config["ndf"], config["n_layers"])
  table = patchgan_weights(config["n_layers"])
  real, fake = nhwc(tensors["in/real"]), nhwc(tensors["in/fake"])
  like = jax.eval_shape(critic.init, jax.random.key(0), real)
  variables = table.to_ours(authors_state(tensors), like)
  params, state = variables["params"], {"batch_stats": variables["batch_stats"]}

  def judge(params, state, image):
    return critic.apply({"params": params, **state}, image, mutable=["batch_stats"])

  def hinge(params):
    logits, after = judge(params, state, real)
    shown, after = judge(params, after, fake)
    return losses.hinge_discriminator(logits, shown), (logits, shown, after)

  run = compiled(jax.value_and_grad(hinge, has_aux=True))
  (telling, (logits, shown, after)), grads = run(params)
  kept = table.to_authors({"params": params, **after})
  return {
    "out/logits_train_real": nchw(logits),
    "out/logits_train_fake": nchw(shown),
    "out/logits_eval_real": nchw(compiled(critic.apply)(variables, real)),
    "out/hinge_d": telling,
    "out/hinge_g": losses.hinge_generator(shown),
    **gradients(table, {"params": grads}, tensors),
    **{n: kept[n.removeprefix("after/")] for n in tensors if n.startswith("after/")},
  }


COMPARISONS = {
  "llamagen-vq": Comparison(compare_vq),
  "llamagen-patchgan": Comparison(compare_patchgan),
}
