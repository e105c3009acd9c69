"""VQ against the reference code that the survey's equations were read in."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity._survey import KIND, layer, run
from tests.parity.base import Tensors
from tokzoo.quantizers import Ema, VectorQuantizer
from tokzoo.quantizers.gradients import rotation


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


COMPARISONS = {
  KIND + "vq-euclidean-ste": layer(vq),
  KIND + "vq-euclidean-rotation": layer(vq),
  KIND + "vq-cosine-ste": layer(vq),
  KIND + "vq-cosine-rotation": layer(vq),
  KIND + "vq-masked": layer(vq),
  KIND + "rotation-trick": layer(rotation_trick),
}
