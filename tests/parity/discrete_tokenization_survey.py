"""The quantizers against the reference code that the survey's equations were read in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, Tensors
from tokzoo.quantizers import Ema, FiniteScalar, LookupFree, VectorQuantizer
from tokzoo.quantizers.gradients import rotation, unit


def run(quantizer, variables, tensors: Tensors, mask=None, weigh=None) -> dict:
  """What all fixtures of one package share: eval and train outputs, objective, d/dx.

  Args:
    weigh: named losses -> the loss that the fixture's `train_loss` is.
  """
  x, cotangent = jnp.asarray(tensors["in/x"]), jnp.asarray(tensors["in/cotangent"])
  rngs = {"codebook": jax.random.key(0)}

  def objective(x):
    quantized, after = quantizer.apply(
      variables, x, mask, train=True, rngs=rngs, mutable=["codebook"]
    )
    loss = weigh(quantized.losses) if weigh else jnp.zeros(())
    return jnp.sum(quantized.values * cotangent) + loss, (quantized, loss, after)

  value, grad = jax.jit(jax.value_and_grad(objective, has_aux=True))(x)
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
  return {"after": after, "losses": train.losses, "out": out}


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
    soft_clamp=config.get("soft_clamp_input_value"),
  )

  def weigh(losses):
    entropy = losses["sample_entropy"]
    entropy = entropy - config["diversity_gamma"] * losses["batch_entropy"]
    commitment = config["commitment_loss_weight"] * losses["commitment"]
    return config["entropy_loss_weight"] * entropy + commitment

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


def vq(config: dict, tensors: Tensors) -> dict:
  is_cosine = config.get("use_cosine_sim", False)
  quantizer = VectorQuantizer(
    config["codebook_size"],
    config["dim"],
    metric="cosine" if is_cosine else "euclidean",
    gradient="rotation" if config["rotation_trick"] else "straight_through",
    update=Ema(config["decay"], config.get("eps", 1e-5)),
  )
  names = {"codes": "embed", "counts": "cluster_size", "sums": "embed_avg"}
  state = {ours: tensors[f"param/_codebook.{name}"][0] for ours, name in names.items()}
  mask = None
  if "lens" in config:
    places = np.arange(tensors["in/x"].shape[1])
    mask = jnp.asarray(places[None, :] < np.array(config["lens"])[:, None])
  weight = config.get("commitment_weight", 1.0)
  result = run(
    quantizer,
    {"codebook": jax.tree.map(jnp.asarray, state)},
    tensors,
    mask,
    lambda losses: weight * losses["commitment"],
  )
  after = result["after"]["codebook"]
  return result["out"] | {
    f"after/_codebook.{name}": after[ours][None] for ours, name in names.items()
  }


def rotation_trick(config: dict, tensors: Tensors) -> dict:
  source, target, cotangent = (
    jnp.asarray(tensors[f"in/{name}"]) for name in ("src", "tgt", "cotangent")
  )
  rotated, pullback = jax.vjp(lambda z: rotation(z, target), source)
  return {"out/rotated": rotated, "grad/src": pullback(cotangent)[0]}


_KIND = "discrete-tokenization-survey-"
_layer = functools.partial(Comparison, tolerance=1e-5)
COMPARISONS = {
  _KIND + "fsq": _layer(fsq),
  _KIND + "fsq-symmetric": _layer(fsq),
  _KIND + "lfq": _layer(lfq),
  _KIND + "lfq-gamma": _layer(lfq),
  _KIND + "bsq": _layer(lfq),
  _KIND + "bsq-original-group": _layer(bsq_original),
  _KIND + "bsq-original-analytical": _layer(bsq_original),
  _KIND + "vq-euclidean-ste": _layer(vq),
  _KIND + "vq-euclidean-rotation": _layer(vq),
  _KIND + "vq-cosine-ste": _layer(vq),
  _KIND + "vq-cosine-rotation": _layer(vq),
  _KIND + "vq-masked": _layer(vq),
  _KIND + "rotation-trick": _layer(rotation_trick),
}
