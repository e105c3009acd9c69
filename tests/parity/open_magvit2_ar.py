"""The generators of Open-MAGVIT2 and IBQ against the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, compiled
from tokzoo.generators import open_magvit2
from tokzoo.generators.open_magvit2 import join_factors, split_factors
from tokzoo.tokens import Tokens


def published_state(tensors) -> dict[str, np.ndarray]:
  """The fixture's parameters as a published file names them."""
  return {
    n.replace("param/", "transformer.", 1): v
    for n, v in tensors.items()
    if n.startswith("param/")
  }


def gradients(table, grads, tensors) -> dict[str, np.ndarray]:
  state = table.to_authors(grads)
  return {
    n: state[n.replace("grad/", "transformer.", 1)]
    for n in tensors
    if n.startswith("grad/")
  }


def shared_sizes(config: dict) -> dict:
  return {
    "grid": config["grid"],
    "heads": config["n_head"],
    "num_classes": config["class_num"],
    "multiple_of": config["multiple_of"],
    "norm_eps": config["norm_eps"],
    "rope_theta": config["rope_base"],
  }


def load(c, table, tensors):
  module = c.build()
  like = jax.eval_shape(
    lambda: module.init(jax.random.key(0), *c.example(), method="loss")
  )
  return module, table.to_ours(published_state(tensors), like)


def compare_factorized(config, tensors):
  c = open_magvit2.FactorizedConfig(
    **shared_sizes(config),
    width=config["dim"],
    layers=config["spatial_n_layer"],
    intra_layers=config["factorized_n_layer"],
    factors=tuple(config["factorized_bits"]),
  )
  table = open_magvit2.FACTORIZED_WEIGHTS
  module, variables = load(c, table, tensors)
  pre, post = (tensors[f"in/tokens_{x}"].astype(np.int32) for x in ("pre", "post"))
  ids = join_factors(jnp.asarray(pre), jnp.asarray(post), c.factors)
  labels = jnp.asarray(tensors["in/class_labels"].astype(np.int32)[:, 0])

  def loss(variables):
    tokens = Tokens.from_ids(ids, c.vocab)
    return module.apply(variables, tokens, labels, jax.random.key(0), method="loss")

  (_, named), grads = compiled(jax.value_and_grad(loss, has_aux=True))(variables)
  logits = jax.jit(module.apply)(variables, ids, labels)
  scale = config["cfg_scale"]
  drawn = jax.jit(
    lambda v: module.apply(
      v,
      None,
      labels,
      guidance=scale[0],
      guidance_post=scale[1],
      temperature=0.0,
      method="sample",
    )
  )(variables)
  greedy = split_factors(drawn.ids, c.factors)
  return {
    "out/logits_pre": logits[0],
    "out/logits_post": logits[1],
    "out/loss_pre": named["pre"],
    "out/loss_post": named["post"],
    "out/greedy_pre": Ids(np.asarray(greedy[0])),
    "out/greedy_post": Ids(np.asarray(greedy[1])),
    **gradients(table, grads, tensors),
  }


def compare_ibq(config, tensors):
  c = open_magvit2.IBQConfig(
    **shared_sizes(config),
    width=config["n_embd"],
    layers=config["n_layer"],
    vocab=config["vocab_size"],
  )
  table = open_magvit2.IBQ_WEIGHTS
  module, variables = load(c, table, tensors)
  ids = jnp.asarray(tensors["in/tokens"].astype(np.int32))
  labels = jnp.asarray(tensors["in/class_labels"].astype(np.int32)[:, 0])

  def loss(variables):
    tokens = Tokens.from_ids(ids, c.vocab)
    return module.apply(variables, tokens, labels, jax.random.key(0), method="loss")[0]

  value, grads = compiled(jax.value_and_grad(loss))(variables)
  forward = jax.jit(module.apply)
  cond = forward(variables, ids[:, :-1], labels)
  away = forward(variables, ids[:, :-1], jnp.full_like(labels, c.num_classes))
  return {
    "out/logits_cond": cond,
    "out/logits_uncond": away,
    "out/logits_cfg": away + (cond - away) * config["cfg_scale"],
    "out/train_logits": cond,
    "out/loss": value,
    **gradients(table, grads, tensors),
  }


COMPARISONS = {
  "open-magvit2-ar-factorized": Comparison(compare_factorized),
  "open-magvit2-ar-ibq": Comparison(compare_ibq),
}
