"""LlamaGen's GPT for classes and for captions against the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.parity.base import Comparison, Ids, applied
from tests.parity.instella_t2i import authors_state, gradients
from tokzoo.generators import llamagen
from tokzoo.nn.sampling import kept
from tokzoo.tokens import Tokens


def model_config(config: dict) -> llamagen.Config:
  return llamagen.Config(
    grid=config["grid"],
    vocab=config["vocab_size"],
    width=config["dim"],
    layers=config["n_layer"],
    heads=config["n_head"],
    num_classes=config["num_classes"] if config["model_type"] == "c2i" else None,
    caption_tokens=config["cls_token_num"],
    caption_width=config["caption_dim"],
    multiple_of=config["multiple_of"],
    norm_eps=config["norm_eps"],
    rope_theta=config["rope_base"],
  )


def compare_gpt(config, tensors):
  c = model_config(config)
  module = c.build()
  ids = jnp.asarray(tensors["in/tokens"].astype(np.int32))
  like = jax.eval_shape(
    lambda: module.init(jax.random.key(0), *c.example(), method="loss")
  )
  table = llamagen.WEIGHTS
  variables = table.to_ours(authors_state(tensors), like)
  if c.num_classes is not None:
    condition = jnp.asarray(tensors["in/class_labels"].astype(np.int32))
    null = jnp.full_like(condition, c.num_classes)
    masked = condition
  else:
    features = jnp.asarray(tensors["in/caption_emb"])
    mask = jnp.asarray(tensors["in/emb_masks"] > 0)
    # The fixture's teacher-forced passes see the padding, its decoding does not.
    condition = llamagen.Caption(features, jnp.ones_like(mask))
    own = jnp.asarray(variables["buffers"]["null_caption"])
    null = condition.replace(features=jnp.broadcast_to(own, features.shape))
    masked = llamagen.Caption(features, mask)

  forward = jax.jit(module.apply)
  cond, away = forward(variables, ids, condition), forward(variables, ids, null)
  guided = away + (cond - away) * config["cfg_scale"]
  tokens = Tokens.from_ids(ids, c.vocab)

  def loss(params):
    given = {**variables, "params": params}
    return module.apply(given, tokens, condition, jax.random.key(0), method="loss")[0]

  value, grads = jax.jit(jax.value_and_grad(loss))(variables["params"])
  train_logits = forward(variables, ids[:, :-1], condition)[:, c.prefix - 1 :]
  ce = optax.softmax_cross_entropy_with_integer_labels(train_logits, ids).mean()
  np.testing.assert_allclose(value, ce, rtol=1e-5)
  rotary = applied(module, variables, method="_rotary")

  def greedy(**settings):
    drawn = jax.jit(
      lambda v: module.apply(
        v, None, masked, temperature=0.0, **settings, method="sample"
      )
    )(variables)
    return Ids(np.asarray(drawn.ids))

  grads = {"params": grads, **{k: v for k, v in variables.items() if k != "params"}}
  scale = config["cfg_scale"]
  return {
    "out/logits_cond": cond,
    "out/logits_uncond": away,
    "out/logits_cfg": guided,
    "out/train_logits": train_logits,
    "out/train_loss": value,
    "out/freqs_cis": jnp.stack([rotary.cos, rotary.sin], axis=-1),
    "out/greedy_nocfg": greedy(guidance=1.0),
    "out/greedy_cfg": greedy(guidance=scale),
    "out/greedy_cfg_interval": greedy(
      guidance=scale, guidance_until=config["cfg_interval"]
    ),
    "out/filter_topk7_topp0.8_keep": Ids(np.asarray(kept(guided[:, -1], 7, 0.8))),
    **gradients(table, grads, tensors),
  }


COMPARISONS = {
  "llamagen-gpt-c2i": Comparison(compare_gpt),
  "llamagen-gpt-t2i": Comparison(compare_gpt),
}
