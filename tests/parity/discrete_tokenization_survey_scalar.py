"""FSQ, LFQ and BSQ against the reference code that the survey's equations were read in."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity._survey import KIND, layer, run
from tests.parity.base import Ids, Tensors
from tokzoo.quantizers import FiniteScalar, LookupFree
from tokzoo.quantizers.gradients import unit


LOG_FLOOR = 1e-5
"""Below which the reference takes no logarithm."""


def fsq(config: dict, tensors: Tensors) -> dict:
  symmetric = config.get("preserve_symmetry", False)
  quantizer = FiniteScalar(tuple(config["levels"]), symmetric)
  out = run(quantizer, {}, tensors)["out"]
  if symmetric:
    return out
  first = jnp.arange(min(quantizer.num_codes, 256), dtype=jnp.int32)[None]
  values = np.asarray(out["out/eval_quantized"], np.float64)
  half = np.array(config["levels"]) // 2
  return out | {
    "out/codes_of_first_256_indices": quantizer.ids_to_codes(first),
    "out/level_indices": Ids(np.rint(values * half + half).astype(np.int32)),
  }


def lfq(config: dict, tensors: Tensors) -> dict:
  quantizer = LookupFree(
    config["dim"],
    spherical=config.get("spherical", False),
    scale=config["codebook_scale"],
    inverse_temperature=config["inv_temperature"],
    entropy_group=None,
    log_floor=LOG_FLOOR,
    soft_clamp=config.get("soft_clamp_input_value"),
  )

  def weigh(losses):
    entropy = losses["sample_entropy"]
    entropy = entropy - config["diversity_gamma"] * losses["batch_entropy"]
    commitment = config["commitment_loss_weight"] * losses["commitment"]
    return config["entropy_loss_weight"] * entropy + commitment

  # Operation by operation, like the reference: at a temperature of 1/100 its logits of some
  # 700 are rounded to 6e-5, which its gradients show and fused operations would not repeat.
  with jax.disable_jit():
    result = run(quantizer, {}, tensors, weigh=weigh)
  losses = result["losses"]
  return result["out"] | {
    "out/per_sample_entropy": losses["sample_entropy"],
    "out/batch_entropy": losses["batch_entropy"],
    "out/commitment": losses["commitment"],
  }


def bsq_original(config: dict, tensors: Tensors) -> dict:
  u, cotangent = jnp.asarray(tensors["in/u"]), jnp.asarray(tensors["in/cotangent"])
  bits, tau = config["embed_dim"], config["inv_temperature"]
  is_analytical = config["persample_entropy_compute"] == "analytical"
  group = 1 if is_analytical else config["group_size"]
  quantizer = LookupFree(
    bits,
    spherical=True,
    gradient="sign",
    inverse_temperature=tau,
    entropy_group=group,
  )

  def objective(u):
    quantized = quantizer.apply({}, u, train=True)
    losses = quantized.losses
    # The authors sum the squared error over dimensions.
    loss = config["beta"] * bits * losses["commitment"] + config["zeta"] / tau * (
      config["gamma0"] * losses["sample_entropy"]
      - config["gamma"] * losses["batch_entropy"]
    )
    return jnp.sum(quantized.values * cotangent) + loss, (quantized, loss)

  grad, (quantized, loss) = jax.jit(jax.grad(objective, has_aux=True))(u)
  in_groups = LookupFree(bits, True, id_groups=bits // config["group_size"])
  z = unit(u)
  return {
    "out/z": z,
    "out/quantized": quantized.values,
    "out/indices": Ids(quantized.ids),
    "out/group_indices": Ids(jax.jit(in_groups.apply)({}, u).ids),
    "out/loss": loss,
    "out/per_sample_entropy": quantized.losses["sample_entropy"],
    "out/codebook_entropy": quantized.losses["batch_entropy"],
    "out/avg_prob": mean_distribution(4 * tau / bits**0.5 * z, group),
    "grad/u": grad,
  }


def mean_distribution(logits, group: int) -> np.ndarray:
  """The mean distribution over the words of each group, spelt out: float64[groups, 2^m]."""
  p = 1 / (1 + np.exp(-np.asarray(logits, np.float64).reshape(-1, logits.shape[-1])))
  words = (np.arange(2**group)[:, None] >> np.arange(group - 1, -1, -1)) & 1
  grouped = p.reshape(len(p), -1, 1, group)
  return np.where(words == 1, grouped, 1 - grouped).prod(-1).mean(0)


COMPARISONS = {
  KIND + "fsq": layer(fsq),
  KIND + "fsq-symmetric": layer(fsq),
  KIND + "lfq": layer(lfq),
  KIND + "lfq-gamma": layer(lfq),
  KIND + "bsq": layer(lfq),
  KIND + "bsq-original-group": layer(bsq_original),
  KIND + "bsq-original-analytical": layer(bsq_original),
}
