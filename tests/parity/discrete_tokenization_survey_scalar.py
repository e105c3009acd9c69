"""FSQ, LFQ, BSQ, latent and random-projection quantization against the code that the survey
read.

The reference has projections and several codebooks as options of each quantizer; here they
are `Projected` and `Product` around one.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity._survey import KIND, layer, run
from tests.parity.base import Ids, Tensors, applied
from tests.parity.discrete_tokenization_survey import projections
from tokzoo.quantizers import FiniteScalar, LookupFree
from tokzoo.quantizers.gradients import unit
from tokzoo.quantizers.latent import LatentQuantizer
from tokzoo.quantizers.product import Product
from tokzoo.quantizers.projected import Projected
from tokzoo.quantizers.random_projection import RandomProjection

LOG_FLOOR = 1e-5
"""Below which the reference takes no logarithm."""


def wrapped(quantizer, config: dict, tensors: Tensors):
  """The quantizer for several codebooks, between projections where the sizes ask for them,
  and the parameters of these."""
  if config.get("num_codebooks", 1) > 1:
    quantizer = Product(quantizer, config["num_codebooks"])
  if config.get("dim", quantizer.dim) == quantizer.dim:
    return quantizer, {}
  return Projected(quantizer, config["dim"]), projections(tensors)


def projection_grads(grads: dict) -> dict:
  """Gradients of the projections by the fixture's names; none where there are none."""
  out = {}
  for name in ("project_in", "project_out"):
    if name in grads:
      out[f"grad/{name}.weight"] = grads[name]["kernel"].T
      out[f"grad/{name}.bias"] = grads[name]["bias"]
  return out


def fsq(config: dict, tensors: Tensors) -> dict:
  symmetric = config.get("preserve_symmetry", False)
  grid = FiniteScalar(
    tuple(config["levels"]),
    symmetric,
    "clamp" if config.get("bound_hard_clamp", False) else "atanh",
  )
  quantizer, params = wrapped(grid, config, tensors)
  result = run(quantizer, {"params": params}, tensors)
  out = result["out"] | projection_grads(result["grads"])
  if quantizer is grid and not symmetric:
    first = jnp.arange(min(grid.num_codes, 256), dtype=jnp.int32)[None]
    values = np.asarray(out["out/eval_quantized"], np.float64)
    half = np.array(config["levels"]) // 2
    out["out/codes_of_first_256_indices"] = grid.ids_to_codes(first)
    out["out/level_indices"] = Ids(np.rint(values * half + half).astype(np.int32))
  return out


def lfq_loss(config: dict):
  """Named losses -> the loss of the fixture."""

  def weigh(losses):
    entropy = losses["sample_entropy"]
    entropy = entropy - config.get("diversity_gamma", 1.0) * losses["batch_entropy"]
    commitment = config.get("commitment_loss_weight", 0.0) * losses["commitment"]
    return config.get("entropy_loss_weight", 0.1) * entropy + commitment

  return weigh


def lfq(config: dict, tensors: Tensors) -> dict:
  quantizer = LookupFree(
    int(np.log2(config["codebook_size"])),
    spherical=config.get("spherical", False),
    scale=config.get("codebook_scale", 1.0),
    inverse_temperature=config.get("inv_temperature", 100.0),
    entropy_group=None,
    log_floor=LOG_FLOOR,
    soft_clamp=config.get("soft_clamp_input_value"),
  )
  quantizer, params = wrapped(quantizer, config, tensors)
  # Operation by operation, like the reference: at a temperature of 1/100 its logits of some
  # 700 are rounded to 6e-5, which its gradients show and fused operations would not repeat.
  with jax.disable_jit():
    result = run(quantizer, {"params": params}, tensors, weigh=lfq_loss(config))
  losses = result["losses"]
  return (
    result["out"]
    | projection_grads(result["grads"])
    | {
      "out/per_sample_entropy": losses["sample_entropy"],
      "out/batch_entropy": losses["batch_entropy"],
      "out/commitment": losses["commitment"],
    }
  )


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


def latent_quantize(config: dict, tensors: Tensors) -> dict:
  levels = tuple(config["levels"])
  inner = LatentQuantizer(levels)
  values = {
    f"values_{i}": jnp.asarray(tensors[f"param/values_per_latent.{i}"])
    for i in range(len(levels))
  }
  quantizer, variables = inner, {"params": values}
  if config["dim"] != inner.dim:
    quantizer = Projected(inner, config["dim"])
    variables = {"params": {"quantizer": values, **projections(tensors)}}
  # The reference has the channels first.
  x, cotangent = (
    jnp.asarray(np.moveaxis(tensors[f"in/{name}"], 1, -1))
    for name in ("x", "cotangent")
  )

  def objective(x, params):
    quantized = quantizer.apply({"params": params}, x, train=True)
    y, stop = quantized.values, jax.lax.stop_gradient
    # What it calls commitment trains the output, what it calls quantization the input.
    loss = config["commitment_loss_weight"] * jnp.mean((stop(x) - y) ** 2)
    loss += config["quantization_loss_weight"] * jnp.mean((x - stop(y)) ** 2)
    return jnp.sum(y * cotangent) + loss, (quantized, loss)

  differentiate = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
  (total, (train, loss)), (grad, grads) = differentiate(x, variables["params"])
  evaluated = applied(quantizer, variables, x)
  out = {"out/train_objective": total, "out/train_loss": loss, "out/eval_loss": 0.0}
  out["grad/x"] = jnp.moveaxis(grad, -1, 1)
  inner_x = x
  if quantizer is not inner:
    project = variables["params"]["project_in"]
    inner_x = jnp.matmul(x, project["kernel"]) + project["bias"][None, None]
  for name, quantized in (("train", train), ("eval", evaluated)):
    out[f"out/{name}_quantized"] = jnp.moveaxis(quantized.values, -1, 1)
    codes = applied(inner, {"params": values}, quantized.ids, method="ids_to_codes")
    out[f"out/{name}_indices"] = Ids(_truncated(inner_x, codes, levels))
  return out | projection_grads(grads)


def _truncated(z, codes, levels: tuple[int, ...]) -> np.ndarray:
  """The reference's ids: from the values, with the rounding errors of its straight-through
  sum, and not from their places; and cut off instead of rounded. They are one too small
  where an error is, and mean nothing once the values have learnt."""
  z, codes = np.asarray(z), np.asarray(codes)
  half = np.array(levels, np.float32) // 2
  basis = np.cumprod([1, *levels[:-1]]).astype(np.float32)
  digits = (z + (codes - z)) * 2 * half + half
  return (digits * basis).sum(-1, dtype=np.float32).astype(np.int32)


def random_projection(config: dict, tensors: Tensors) -> dict:
  heads, is_mixed = config["num_codebooks"], "param/vq.project_in.weight" in tensors
  quantizer = RandomProjection(
    config["codebook_size"],
    config["dim"],
    config["codebook_dim"],
    heads,
    normalize=config.get("norm", True),
    mixed=is_mixed,
  )
  state = {
    "projections": tensors["param/rand_projs"],
    "codes": tensors["param/vq._codebook.embed"],
  }
  if is_mixed:
    state["mix"] = tensors["param/vq.project_in.weight"].T
    state["mix_bias"] = tensors["param/vq.project_in.bias"]
  state = jax.tree.map(jnp.asarray, state)
  out = applied(quantizer, {"codebook": state}, jnp.asarray(tensors["in/x"]))
  return {"out/indices": Ids(out.ids)}


COMPARISONS = {
  KIND + "fsq": layer(fsq),
  KIND + "fsq-symmetric": layer(fsq),
  KIND + "fsq-proj": layer(fsq),
  KIND + "lfq": layer(lfq),
  # The rounding of its logits is repeated only by code that is compiled as users have it.
  KIND + "lfq-gamma": layer(lfq, noisy={"grad/x": 1e-4}),
  KIND + "lfq-proj-2cb": layer(lfq),
  KIND + "bsq": layer(lfq),
  KIND + "bsq-original-group": layer(bsq_original),
  KIND + "bsq-original-analytical": layer(bsq_original),
  KIND + "latent-quantize": layer(latent_quantize),
  KIND + "random-projection": layer(random_projection),
}
