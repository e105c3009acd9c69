"""Residual quantizers against the code that the survey's equations were read in."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity._survey import KIND, layer, run
from tests.parity.base import Ids, Tensors, applied
from tests.parity.discrete_tokenization_survey import BUFFERS, projections
from tests.parity.discrete_tokenization_survey_scalar import (
  LOG_FLOOR,
  lfq_loss,
  projection_grads,
)
from tokzoo.quantizers import Ema, LookupFree, VectorQuantizer
from tokzoo.quantizers.product import Product
from tokzoo.quantizers.projected import Projected
from tokzoo.quantizers.residual import Residual, residual_fsq, residual_lfq
from tokzoo.quantizers.simvq import SimVQ


def levels_of(config: dict, dim: int) -> Residual:
  """The residual quantizer of `dim` features that a config stands for."""
  sizes, depth = config["codebook_size"], config.get("num_quantizers")
  is_shared = config.get("shared_codebook", False)
  sizes = [sizes] * depth if isinstance(sizes, int) else sizes
  levels = tuple(
    VectorQuantizer(
      size,
      dim,
      metric="cosine" if config.get("use_cosine_sim") else "euclidean",
      gradient="rotation" if config.get("rotation_trick") else "straight_through",
      update=Ema(config["decay"], config.get("eps", 1e-5)),
    )
    for size in (sizes[:1] if is_shared else sizes)
  )
  return Residual(levels, depth=len(sizes) if is_shared else None)


def buffers(tensors: Tensors, prefix: str, depth: int) -> dict:
  """The codebooks of all levels."""
  return {
    f"levels_{i}": {
      ours: jnp.asarray(tensors[f"param/{prefix}layers.{i}._codebook.{name}"][0])
      for ours, name in BUFFERS.items()
    }
    for i in range(depth)
  }


def per_level(result: dict, weight: float) -> dict:
  """The fixture's losses, one a level."""
  commitment = result["stats"]["commitment"]
  return {
    "out/train_loss": weight * commitment,
    "out/eval_loss": weight * result["evaluated"].stats["commitment"],
  }


def rvq(config: dict, tensors: Tensors) -> dict:
  dim = config["dim"]
  inner_dim = config.get("codebook_dim", dim)
  residual = levels_of(config, inner_dim)
  depth = tensors["out/eval_indices"].shape[-1]
  codebook = buffers(tensors, "", len(residual.levels))
  variables, quantizer = {"codebook": codebook}, residual
  is_projected = inner_dim != dim
  if is_projected:
    quantizer = Projected(residual, dim)
    variables = {"codebook": {"quantizer": codebook}, "params": projections(tensors)}
  weight = config.get("commitment_weight", 1.0)
  result = run(
    quantizer,
    variables,
    tensors,
    weigh=lambda losses: weight * depth * losses["commitment"],
  )
  after = result["after"]["codebook"]
  again = applied(
    quantizer, {**variables, "codebook": after}, jnp.asarray(tensors["in/x"])
  )
  inner = after["quantizer"] if is_projected else after
  all_codes = applied(
    residual, {"codebook": inner}, again.ids, method="ids_to_level_codes"
  )
  out = result["out"] | per_level(result, weight)
  out |= {
    "out/after_eval_quantized": again.values,
    "out/after_eval_indices": Ids(again.ids),
    "out/after_eval_all_codes": all_codes,
  }
  if is_projected:
    out |= projection_grads(result["grads"])
  for i in range(depth):
    state = inner[f"levels_{i if residual.depth is None else 0}"]
    for ours, name in BUFFERS.items():
      out[f"after/layers.{i}._codebook.{name}"] = state[ours][None]
  return out


def grouped_rvq(config: dict, tensors: Tensors) -> dict:
  groups = config["groups"]
  residual = levels_of(config, config["dim"] // groups)
  depth = len(residual.levels)
  each = [buffers(tensors, f"rvqs.{group}.", depth) for group in range(groups)]
  codebook = jax.tree.map(lambda *arrays: jnp.stack(arrays), *each)
  weight = config.get("commitment_weight", 1.0)
  result = run(
    Product(residual, groups),
    {"codebook": {"quantizer": codebook}},
    tensors,
    weigh=lambda losses: weight * groups * depth * losses["commitment"],
  )
  out = result["out"] | per_level(result, weight)
  for name in ("out/train_indices", "out/eval_indices"):
    ids = np.asarray(out[name].values)
    out[name] = Ids(np.moveaxis(ids.reshape(*ids.shape[:2], groups, depth), 2, 0))
  after = result["after"]["codebook"]["quantizer"]
  for group in range(groups):
    for i in range(depth):
      for ours, name in BUFFERS.items():
        key = f"after/rvqs.{group}.layers.{i}._codebook.{name}"
        out[key] = after[f"levels_{i}"][ours][group][None]
  return out


def residual_simvq(config: dict, tensors: Tensors) -> dict:
  depth = config["num_quantizers"]
  gradient = "rotation" if config.get("rotation_trick", True) else "straight_through"
  level = SimVQ(config["codebook_size"], config["dim"], gradient=gradient)
  params, codebook = {}, {}
  for i in range(depth):
    kernel = jnp.asarray(tensors[f"param/layers.{i}.code_transform.weight"].T)
    params[f"levels_{i}"] = {"transform": {"kernel": kernel}}
    frozen = jnp.asarray(tensors[f"param/layers.{i}.frozen_codebook"])
    codebook[f"levels_{i}"] = {"frozen": frozen}
  weight = config.get("commitment_weight", 1.0)
  share = config.get("input_to_quantize_commit_loss_weight", 0.25)

  def weigh(losses):
    return weight * (losses["codebook"] + share * losses["commitment"])

  result = run(
    Residual(tuple(level.clone() for _ in range(depth))),
    {"params": params, "codebook": codebook},
    tensors,
    weigh=lambda losses: depth * weigh(losses),
  )
  out = result["out"] | {
    "out/train_loss": weigh(result["stats"]),
    "out/eval_loss": weigh(result["evaluated"].stats),
  }
  for i in range(depth):
    kernel = result["grads"][f"levels_{i}"]["transform"]["kernel"]
    out[f"grad/layers.{i}.code_transform.weight"] = kernel.T
  return out


def rfsq(config: dict, tensors: Tensors) -> dict:
  residual = residual_fsq(
    tuple(config["levels"]),
    config["num_quantizers"],
    hard_clamp=config.get("bound_hard_clamp", True),
  )
  quantizer, variables = projected(residual, config, tensors)
  result = run(quantizer, variables, tensors)
  out = result["out"] | projection_grads(result["grads"])
  ids = out["out/eval_indices"].values
  return out | {
    "out/all_codes": applied(residual, {}, ids, method="ids_to_level_codes")
  }


def rlfq(config: dict, tensors: Tensors) -> dict:
  first = LookupFree(
    int(np.log2(config["codebook_size"])),
    entropy_group=None,
    log_floor=LOG_FLOOR,
    soft_clamp=config.get("soft_clamp_input_value"),
  )
  depth = config["num_quantizers"]
  residual = residual_lfq(first, depth)
  quantizer, variables = projected(residual, config, tensors)
  weigh = lfq_loss(config)
  # Operation by operation, for the reason that the comparison of LFQ gives.
  with jax.disable_jit():
    result = run(
      quantizer, variables, tensors, weigh=lambda losses: depth * weigh(losses)
    )
  return (
    result["out"]
    | projection_grads(result["grads"])
    | {
      "out/train_loss": weigh(result["stats"]),
      "out/eval_loss": weigh(result["evaluated"].stats),
    }
  )


def projected(residual: Residual, config: dict, tensors: Tensors):
  """The quantizer, and its variables, between projections where the sizes ask for them."""
  if config.get("dim", residual.dim) == residual.dim:
    return residual, {}
  return Projected(residual, config["dim"]), {"params": projections(tensors)}


COMPARISONS = {
  KIND + "rvq": layer(rvq),
  KIND + "rvq-rotation": layer(rvq),
  KIND + "rvq-cosine": layer(rvq),
  KIND + "rvq-shared-proj": layer(rvq),
  KIND + "grouped-rvq": layer(grouped_rvq),
  KIND + "residual-simvq": layer(residual_simvq),
  KIND + "residual-fsq": layer(rfsq),
  KIND + "residual-fsq-tanh-proj": layer(rfsq),
  KIND + "residual-lfq": layer(rlfq),
}
