"""MaskGIT, ImageBert and UViT against the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids
from tests.parity.instella_t2i import authors_state, gradients
from tokzoo.generators.maskgit import imagebert, original, uvit
from tokzoo.nn.schedules import mask_schedule


def load(c, table, tensors):
  module = c.build()
  like = jax.eval_shape(
    lambda: module.init(jax.random.key(0), *c.example(), method="loss")
  )
  return module, table.to_ours(authors_state(tensors), like)


def compare_original(config, tensors):
  c = original.MaskGITConfig(
    grid=(config["seq"],),
    vocab=config["codebook_size"],
    width=config["hidden_size"],
    layers=config["layers"],
    heads=config["heads"],
    mlp_width=config["intermediate"],
    num_classes=config["num_classes"],
    norm_eps=config["layer_norm_eps"],
    label_smoothing=config["label_smoothing"],
  )
  module, variables = load(c, original.WEIGHTS, tensors)
  sequence = {n: jnp.asarray(tensors[f"in/{n}"]) for n in ("tokens", "masked_tokens")}
  labels = sequence["tokens"][:, 0] - c.vocab
  masked = jnp.asarray(tensors["in/mask"]) > 0
  logits = jax.jit(module.apply)(variables, sequence["masked_tokens"][:, 1:], labels)
  each = original.smoothed_cross_entropy(logits, sequence["tokens"], c.label_smoothing)
  # The recorded noise has a column for the class, which is never drawn.
  of_draw, of_choice = (
    jnp.asarray(tensors[f"in/gumbel_{n}"])[:, :, 1:] for n in ("tokens", "choice")
  )
  start = jnp.asarray(tensors["in/decode_init"])
  classes = start[:, :1]
  steps = config["num_iter"]
  decoded = jax.jit(
    lambda v: module.apply(
      v,
      start[:, 1:],
      classes[:, 0] - c.vocab,
      lambda s: (of_draw[s], of_choice[s]),
      steps=steps,
      choice_temperature=config["choice_temperature"],
      method="decode_steps",
    )
  )(variables)

  def with_class(ids):
    shown = jnp.broadcast_to(classes[:, None], (*ids.shape[:2], 1))
    return Ids(np.asarray(jnp.concatenate([shown, ids], axis=-1)))

  ratios = jnp.arange(1, steps + 1, dtype=jnp.float32) / steps
  names = ("cosine", "uniform", "log", "exp", "pow2.0", "pow3.0")
  schedules = {
    f"out/schedule_{name.replace('.', '_')}": mask_schedule(name)(ratios, c.num_tokens)
    for name in names
  }
  return {
    "out/logits": logits,
    "out/loss_per_token_smoothed": each,
    "out/loss_masked_mean": each.mean(where=masked),
    "out/decode_samples": with_class(decoded.samples),
    "out/decode_states": with_class(decoded.states),
    "out/masked_counts": Ids(np.asarray(decoded.masked)),
    **schedules,
  }


def compare_masked(kind, table):
  def compare(config, tensors):
    c = kind(
      grid=(config["K"],),
      vocab=config["cb"],
      width=config["dim"],
      layers=config["layers"],
      heads=config["heads"],
      mlp_width=config["mlp"],
      num_classes=config["ncls"],
      norm_eps=config["ln_eps"],
      label_smoothing=config["label_smoothing"],
      unmasked_weight=config["loss_weight_unmasked_token"],
    )
    module, variables = load(c, table, tensors)
    ids, seen, labels = (
      jnp.asarray(tensors[f"in/{n}"].astype(np.int32))
      for n in ("tokens", "masked_tokens", "condition")
    )
    masked = jnp.asarray(tensors["in/mask"]) > 0

    def loss(variables):
      logits = module.apply(variables, seen, labels)
      value, named = module.apply(variables, logits, ids, masked, method="masked_loss")
      return value, (logits, named)

    (value, (logits, named)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
      variables
    )

    def drawn(**settings):
      sample = jax.jit(
        lambda v: module.apply(
          v, jax.random.key(0), labels, temperature=0.0, **settings, method="sample"
        )
      )
      return Ids(np.asarray(sample(variables).ids))

    null = jnp.full_like(labels, c.num_classes)
    return {
      "out/logits_cond": logits,
      "out/logits_uncond": jax.jit(module.apply)(variables, seen, null),
      "out/mlm_loss": value,
      "out/correct_tokens": named["accuracy"],
      "out/generate_constant2_anneal_steps3": drawn(
        steps=3, guidance=2.0, guidance_decay="constant", anneal_softmax=True
      ),
      "out/generate_linear3_steps4": drawn(
        steps=4, guidance=3.0, guidance_decay="linear"
      ),
      "out/generate_powercosine4_pow2_steps5": drawn(
        steps=5, guidance=4.0, guidance_decay="power-cosine", guidance_power=2.0
      ),
      **gradients(table, grads, tensors),
    }

  return compare


COMPARISONS = {
  "maskgit": Comparison(compare_original),
  "maskgit-imagebert": Comparison(
    compare_masked(imagebert.ImageBertConfig, imagebert.WEIGHTS)
  ),
  "maskgit-uvit": Comparison(compare_masked(uvit.UViTConfig, uvit.WEIGHTS)),
}
