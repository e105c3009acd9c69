"""What the comparisons of all quantizers share."""

import functools

import jax
import jax.numpy as jnp

from tests.parity.base import Comparison, Ids, Tensors

KIND = "discrete-tokenization-survey-"
layer = functools.partial(Comparison, tolerance=1e-5)


def run(quantizer, variables, tensors: Tensors, mask=None, weigh=None) -> dict:
  """What all fixtures of one package share: eval and train outputs, objective, gradients.

  Args:
    weigh: named losses -> the loss that the fixture's `train_loss` is.

  Returns:
    `out`, tensors by the fixture's names; `after`, the collections after a training step;
    `losses` and `stats`, of that step; `evaluated`, of an evaluation; `grads`, of the objective with respect to the parameters.
  """
  x, cotangent = jnp.asarray(tensors["in/x"]), jnp.asarray(tensors["in/cotangent"])
  rngs = {"codebook": jax.random.key(0)}
  params = variables.get("params", {})

  def objective(x, params):
    quantized, after = quantizer.apply(
      {**variables, "params": params},
      x,
      mask,
      train=True,
      rngs=rngs,
      mutable=["codebook"],
    )
    loss = weigh(quantized.losses) if weigh else jnp.zeros(())
    return jnp.sum(quantized.values * cotangent) + loss, (quantized, loss, after)

  differentiate = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
  value, (grad, grads) = jax.jit(differentiate)(x, params)
  total, (train, train_loss, after) = value
  evaluated = jax.jit(quantizer.apply)(variables, x, mask)
  out = {
    "out/train_quantized": train.values,
    "out/train_indices": Ids(train.ids),
    "out/train_objective": total,
    "out/eval_quantized": evaluated.values,
    "out/eval_indices": Ids(evaluated.ids),
    "grad/x": grad,
  }
  if weigh:
    out |= {"out/train_loss": train_loss, "out/eval_loss": weigh(evaluated.losses)}
  return {
    "after": after,
    "losses": train.losses,
    "stats": train.stats,
    "evaluated": evaluated,
    "grads": grads,
    "out": out,
  }
