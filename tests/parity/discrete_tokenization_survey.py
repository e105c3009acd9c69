"""VQ and its relatives against the code that the survey's equations were read in."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity._survey import KIND, layer, run
from tests.parity.base import Ids, Tensors
from tokzoo.quantizers import Ema, VectorQuantizer
from tokzoo.quantizers.gradients import rotation, unit
from tokzoo.quantizers.ibq import IndexBackpropagation
from tokzoo.quantizers.kmeans import kmeans
from tokzoo.quantizers.product import Product
from tokzoo.quantizers.projected import Projected
from tokzoo.quantizers.regularizers import Diversity, Orthogonal
from tokzoo.quantizers.simvq import SimVQ

BUFFERS = {"codes": "embed", "counts": "cluster_size", "sums": "embed_avg"}


def vq(config: dict, tensors: Tensors) -> dict:
  """One class with many options there, a few pieces here.

  Its option `straight_through` is not read: the Gumbel-softmax gradient that it asks for is
  discarded there by a straight-through around the output.
  """
  dim, heads = config["dim"], config.get("heads", 1)
  inner_dim = config.get("codebook_dim", dim)
  is_cosine = config.get("use_cosine_sim", False)
  is_learnt = config.get("learnable_codebook", False)
  orthogonal = config.get("orthogonal_reg_weight", 0.0)
  diversity = config.get("codebook_diversity_loss_weight", 0.0)
  regularizers = ()
  if orthogonal:
    regularizers += (Orthogonal(),)
  if diversity:
    regularizers += (Diversity(config["codebook_diversity_temperature"]),)
  quantizer = VectorQuantizer(
    config["codebook_size"],
    inner_dim,
    metric="cosine" if is_cosine else "euclidean",
    gradient="rotation" if config["rotation_trick"] else "straight_through",
    update=None if is_learnt else Ema(config["decay"], config.get("eps", 1e-5)),
    regularizers=regularizers,
  )
  is_stacked = heads > 1 and config.get("separate_codebook_per_head", False)
  if heads > 1:
    quantizer = Product(quantizer, heads, is_shared=not is_stacked)
  is_projected = heads * inner_dim != dim
  if is_projected:
    quantizer = Projected(quantizer, dim)

  def wrap(own: Mapping) -> dict:
    """The variables of the codebook at their place in the layers around it."""
    for _ in range((heads > 1) + is_projected):
      own = {"quantizer": own}
    return dict(own)

  def unwrap(all_of: Mapping) -> Mapping:
    for _ in range((heads > 1) + is_projected):
      all_of = all_of["quantizer"]
    return all_of

  state = {
    ours: jnp.asarray(
      tensors[f"param/_codebook.{name}"][slice(None) if is_stacked else 0]
    )
    for ours, name in BUFFERS.items()
  }
  codes = {"codes": state["codes"]}
  variables = {"params": wrap(codes)} if is_learnt else {"codebook": wrap(state)}
  if is_projected:
    variables.setdefault("params", {}).update(projections(tensors))

  mask = None
  if "lens" in config:
    places = np.arange(tensors["in/x"].shape[1])
    mask = jnp.asarray(places[None, :] < np.array(config["lens"])[:, None])

  def weigh(losses):
    # Without stop-gradients around it the authors' one term has the gradient of both.
    error = losses["commitment"]
    if is_learnt:
      error = error + losses["codebook"] - jax.lax.stop_gradient(losses["codebook"])
    loss = config.get("commitment_weight", 1.0) * error
    for name, weight in (("orthogonal", orthogonal), ("diversity", diversity)):
      if weight:
        loss = loss + weight * losses[name]
    return loss

  result = run(quantizer, variables, tensors, mask, weigh)
  out, losses, grads = result["out"], result["losses"], result["grads"]
  out["out/commitment"] = losses["commitment"]
  out["out/orthogonal_reg"] = losses.get("orthogonal")
  out["out/codebook_diversity"] = losses.get("diversity")
  if is_projected:
    for name in ("project_in", "project_out"):
      out[f"grad/{name}.weight"] = grads[name]["kernel"].T
      out[f"grad/{name}.bias"] = grads[name]["bias"]
  if is_learnt:
    grad = unwrap(grads)["codes"]
    return out | {"grad/_codebook.embed": grad if is_stacked else grad[None]}
  after = unwrap(result["after"]["codebook"])
  return out | {
    f"after/_codebook.{name}": after[ours] if is_stacked else after[ours][None]
    for ours, name in BUFFERS.items()
  }


def projections(tensors: Tensors) -> dict:
  """The parameters of `Projected`."""
  return {
    name: {
      "kernel": jnp.asarray(tensors[f"param/{name}.weight"].T),
      "bias": jnp.asarray(tensors[f"param/{name}.bias"]),
    }
    for name in ("project_in", "project_out")
  }


def clusters(config: dict, tensors: Tensors) -> dict:
  """k-means from given means, in both metrics, of any number of codebooks."""
  out = {}
  for metric in ("euclidean", "cosine"):
    samples = jnp.asarray(tensors["in/samples"])
    means = jnp.asarray(tensors["in/init_means"])
    if metric == "cosine":
      samples, means = unit(samples), unit(means)
    run_each = jax.vmap(
      lambda z, m, metric=metric: kmeans(z, m, config["iters"], metric)
    )
    means, counts = jax.jit(run_each)(samples, means)
    out[f"out/means_{metric}"] = means
    out[f"out/bins_{metric}"] = Ids(np.asarray(counts, np.int64))
  return out


def rotation_trick(config: dict, tensors: Tensors) -> dict:
  source, target, cotangent = (
    jnp.asarray(tensors[f"in/{name}"]) for name in ("src", "tgt", "cotangent")
  )
  rotated, pullback = jax.vjp(lambda z: rotation(z, target), source)
  return {"out/rotated": rotated, "grad/src": pullback(cotangent)[0]}


def simvq(config: dict, tensors: Tensors) -> dict:
  quantizer = SimVQ(
    config["codebook_size"],
    config["dim"],
    config["frozen_codebook_dim"],
    gradient="rotation" if config["rotation_trick"] else "straight_through",
  )
  kernel = jnp.asarray(tensors["param/code_transform.weight"].T)
  variables = {
    "params": {"transform": {"kernel": kernel}},
    "codebook": {"frozen": jnp.asarray(tensors["param/frozen_codebook"])},
  }

  def weigh(losses):
    share = config["input_to_quantize_commit_loss_weight"]
    total = losses["codebook"] + share * losses["commitment"]
    return config["commitment_weight"] * total

  result = run(quantizer, variables, tensors, weigh=weigh)
  grad = result["grads"]["transform"]["kernel"].T
  return result["out"] | {"grad/code_transform.weight": grad}


def ibq(config: dict, tensors: Tensors) -> dict:
  """Pictures there, tokens here: NCHW to [B, H W, C]."""
  z, cotangent = (
    to_tokens(jnp.asarray(tensors[f"in/{name}"])) for name in ("z", "cotangent")
  )
  quantizer = IndexBackpropagation(
    config["n_e"], config["e_dim"], config["entropy_temperature"]
  )
  codes = jnp.asarray(tensors["param/embedding.weight"])

  def objective(z, codes):
    quantized: Any = quantizer.apply({"params": {"codes": codes}}, z, train=True)
    losses = quantized.losses
    error = losses["quantization"] + losses["commitment"]
    loss = error + config["beta"] * losses["codebook"]
    entropy = (
      config["sample_minimization_weight"] * losses["sample_entropy"]
      - config["batch_maximization_weight"] * losses["batch_entropy"]
    )
    total = loss + config["entropy_loss_weight_in_J"] * entropy
    return jnp.sum(quantized.values * cotangent) + total, (quantized, loss, entropy)

  differentiate = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))
  (grad, codes_grad), (quantized, loss, entropy) = differentiate(z, codes)
  shape = tensors["in/z"].shape

  def to_picture(tokens):
    return jnp.moveaxis(tokens, -1, 1).reshape(shape)

  return {
    "out/quantized": to_picture(quantized.values),
    "out/indices": Ids(np.asarray(quantized.ids).reshape(-1)),
    "out/quant_loss": loss,
    "out/sample_entropy": quantized.losses["sample_entropy"],
    "out/avg_entropy": quantized.losses["batch_entropy"],
    "out/entropy_loss": entropy,
    "grad/z": to_picture(grad),
    "grad/embedding.weight": codes_grad,
  }


def to_tokens(picture: jax.Array) -> jax.Array:
  """[B, C, H, W] -> [B, H W, C]."""
  return jnp.moveaxis(picture.reshape(*picture.shape[:2], -1), 1, -1)


COMPARISONS = {
  KIND + "vq-euclidean-ste": layer(vq),
  KIND + "vq-euclidean-rotation": layer(vq),
  KIND + "vq-cosine-ste": layer(vq),
  KIND + "vq-cosine-rotation": layer(vq),
  KIND + "vq-masked": layer(vq),
  KIND + "vq-gumbel-st": layer(vq),
  KIND + "vq-learnable-orth-diversity": layer(vq),
  KIND + "vq-multihead-proj": layer(vq),
  KIND + "kmeans": layer(clusters),
  KIND + "rotation-trick": layer(rotation_trick),
  KIND + "simvq-ste": layer(simvq),
  KIND + "simvq-rotation": layer(simvq),
  KIND + "ibq": layer(ibq),
  KIND + "ibq-entropy": layer(ibq),
}
