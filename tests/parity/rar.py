"""RAR against the authors' code: any order, the cache, the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.parity.base import Comparison, Ids, applied
from tests.parity.instella_t2i import authors_state, gradients
from tokzoo.generators import rar


def model_config(config: dict, tensors) -> rar.Config:
  # The fixture's tables are cut to fewer rows than the published ones have.
  return rar.Config(
    grid=(config["K"],),
    vocab=config["cb"],
    width=config["dim"],
    layers=config["layers"],
    heads=config["heads"],
    mlp_width=config["mlp"],
    num_classes=config["ncls"],
    spare_positions=tensors["param/pos_embed"].shape[1] - config["K"],
    spare_conditions=tensors["param/timesteps_embeddings"].shape[1] - config["K"],
    norm_eps=config["ln_eps"],
  )


def compare_rar(config, tensors):
  c = model_config(config, tensors)
  module = c.build()
  like = jax.eval_shape(
    lambda: module.init(jax.random.key(0), *c.example(), method="loss")
  )
  variables = rar.WEIGHTS.to_ours(authors_state(tensors), like)
  ids, labels, orders = (
    jnp.asarray(tensors[f"in/{name}"].astype(np.int32))
    for name in ("tokens", "condition_label", "orders")
  )
  permuted = jnp.take_along_axis(ids, orders, axis=1)

  def loss(variables):
    logits = module.apply(variables, permuted, labels, orders)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], permuted)
    return ce.mean(), logits

  (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
  forward = jax.jit(module.apply)
  null = jnp.full_like(labels, c.num_classes)
  step = jax.jit(lambda *xs: module.apply(variables, *xs, method="step"))
  said, memory = applied(module, variables, labels, method="start")
  stepwise = [said]
  for i in range(tensors["out/logits_kv_cache_cond"].shape[1] - 1):
    said, memory = step(ids[:, i], jnp.int32(i), memory, labels)
    stepwise.append(said)
  # Greedy: the fixture's temperature is 1e-4.
  drawn = jax.jit(
    lambda v: module.apply(
      v,
      None,
      labels,
      guidance=4.0,
      guidance_power=1.5,
      temperature=0.0,
      method="sample",
    )
  )(variables)
  return {
    "out/condition_id": Ids(np.asarray(labels) + c.vocab + 1),
    "out/labels_orders": Ids(np.asarray(permuted)),
    "out/logits_orders": logits,
    "out/logits_raster": forward(variables, ids, labels),
    "out/logits_prefix3_uncond": forward(variables, ids[:, :3], null),
    "out/logits_kv_cache_cond": jnp.stack(stepwise, axis=1),
    "out/ar_loss": value,
    "out/generate_greedy_cfg4_pow1.5": Ids(np.asarray(drawn.ids)),
    **gradients(rar.WEIGHTS, grads, tensors),
  }


COMPARISONS = {"rar": Comparison(compare_rar)}
