"""The residual codebooks of the codecs.

EnCodec and its descendants (`ema_residual`): moving averages in the collection `codebook`,
started from k-means of the first training batch. Differences from the released code, which
concern training alone: its reset of dead codes is overwritten in the same step
(`tokzoo.quantizers.EncodecReset`), here it has the effect that was meant; and the averages
that it starts from k-means with forget how many tokens each mean had, here they do not.

DAC and its descendants (`factorized_residual`): codes of 8 features between projections,
searched by angle, learnt by gradient descent.
"""

from typing import Literal

import numpy as np

from tokzoo.nn.conv1d import POINTWISE1D
from tokzoo.quantizers import (
  ChosenDropout,
  Ema,
  ItemDropout,
  KMeans,
  LevelDropout,
  Projected,
  ResetBelow,
  Residual,
  VectorQuantizer,
)
from tokzoo.quantizers.residual import ResidualGradient
from tokzoo.weights import Rule, Transform

FLAG = Transform(
  "float[1] -> bool[]",
  lambda x: x.reshape(()) > 0,
  lambda x: x.reshape(1).astype(np.float32),
)


def ema_residual(
  num_codebooks: int,
  num_codes: int,
  dim: int,
  *,
  reset_below: float | None = 2.0,
  kmeans_iterations: int = 50,
  dropout: ChosenDropout | LevelDropout | None = None,
  gradient: ResidualGradient = "encodec",
) -> Residual:
  """Residual VQ over moving averages (decay 0.99). Losses are means over the codebooks in use.

  Args:
    num_codebooks: Q.
    num_codes: K of each.
    dim: features of a code.
    reset_below: tokens a step below which a code becomes one of the batch; None: never.
    kmeans_iterations: of the start.
    dropout: of codebooks in training.
    gradient: how levels pass it on.
  """
  reset = None if reset_below is None else ResetBelow(reset_below)
  level = VectorQuantizer(
    num_codes,
    dim,
    update=Ema(decay=0.99, reset=reset, first_count=0.0),
    start=KMeans(kmeans_iterations),
  )
  levels = tuple(level.clone() for _ in range(num_codebooks))
  return Residual(levels, gradient=gradient, dropout=dropout, mean_over="used")


def ema_rules(
  key: str, path: str = "quantizer", form: Literal["hf", "original"] = "hf"
) -> tuple[Rule, ...]:
  """The rules of `ema_residual`.

  Args:
    key: the authors' prefix, e.g. "quantizer" or "quantizer.vq".
    path: ours inside the collection.
    form: "hf", `layers.{q}.codebook.embed`; "original", `layers.{q}._codebook.embed`.
  """
  book = "codebook" if form == "hf" else "_codebook"
  stem, ours = f"{key}.layers.{{q}}.{book}", f"codebook/{path}/levels_{{q}}"
  return (
    Rule(f"{stem}.embed", f"{ours}/codes"),
    Rule(f"{stem}.embed_avg", f"{ours}/sums"),
    Rule(f"{stem}.cluster_size", f"{ours}/counts"),
    Rule(f"{stem}.inited", f"{ours}/is_started", FLAG),
  )


def factorized_residual(
  num_codebooks: int, num_codes: int, code_dim: int, dim: int, dropout: float = 0.0
) -> Residual:
  """Residual VQ as in DAC: the value of a code is its own length, whatever finds it.

  Args:
    num_codebooks: Q.
    num_codes: K of each.
    code_dim: features of a code.
    dim: features of the latents.
    dropout: share of a training batch whose number of codebooks is drawn.
  """
  level = VectorQuantizer(num_codes, code_dim, metric="angular", update=None)
  levels = tuple(Projected(level.clone(), dim) for _ in range(num_codebooks))
  drawn = ItemDropout(dropout) if dropout else None
  return Residual(levels, gradient="dac", dropout=drawn)


def factorized_rules(key: str, path: str = "params/quantizer") -> tuple[Rule, ...]:
  """The rules of `factorized_residual`, `{key}.{q}.in_proj`, `.codebook`, `.out_proj`."""
  ours = f"{path}/levels_{{q}}"
  return (
    Rule(f"{key}.{{q}}.in_proj.weight", f"{ours}/project_in/kernel", POINTWISE1D),
    Rule(f"{key}.{{q}}.in_proj.bias", f"{ours}/project_in/bias"),
    Rule(f"{key}.{{q}}.out_proj.weight", f"{ours}/project_out/kernel", POINTWISE1D),
    Rule(f"{key}.{{q}}.out_proj.bias", f"{ours}/project_out/bias"),
    Rule(f"{key}.{{q}}.codebook.weight", f"{ours}/quantizer/codes"),
  )
