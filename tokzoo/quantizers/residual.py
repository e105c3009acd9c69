"""Residual quantization: each level quantizes what the levels before left over.

Zeghidour et al., "SoundStream" (arXiv 2107.03312), over levels of any quantizer:

  r_1 = z;  q_i = level_i(r_i);  r_{i+1} = r_i - q_i;  value = sum_i q_i

What differs among published code is the gradient, since q_i passes one on (straight
through, or through projections). M levels of plain VQ give

  gradient   r_{i+1}     value                   d value / dz   commitment reaches z from
  vqp        r - sg q    sum q                   M I            all levels
  encodec    r - q       sum q                   I              the first level
  dac        r - q       sum q, levels of        by their       all levels, by their
                         `Projected` VQ          projections    projections
  mimi       r - sg q    z + sg(sum q - z)       I              all levels

with vqp vector_quantize_pytorch, encodec also SpeechTokenizer and DM-Codec, dac also SNAC.
What makes dac differ from encodec are its levels alone, so the two are the same rule.

A level that is not used (quantizer dropout, a prefix of the ids) has id -1 and adds 0.

Groups of channels with residual levels each are `Product(Residual(...), groups)`; levels in
fewer features are `Projected(Residual(...), dim)`, or as in DAC levels of `Projected`.
"""

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.contract import Quantized
from tokzoo.errors import TokzooError
from tokzoo.kernels.codebook_search import search
from tokzoo.quantizers.fsq import FiniteScalar
from tokzoo.quantizers.gradients import straight_through
from tokzoo.quantizers.lfq import LookupFree
from tokzoo.quantizers.masks import latents

ResidualGradient = Literal["vqp", "encodec", "dac", "mimi"]


@dataclasses.dataclass(frozen=True)
class LevelDropout:
  """Quantizer dropout as in vector_quantize_pytorch: one number of levels for the batch,
  uniform in first + 1 ... M and rounded up to a multiple."""

  first: int = 0
  """The index of the first level that may be the last one used."""
  multiple_of: int = 1
  """EnCodec: 4."""

  def __call__(self, key: PRNGKeyArray, batch: int, depth: int) -> Int[Array, "B"]:
    """int32[B], how many levels each item uses."""
    used = jax.random.randint(key, (), self.first + 1, depth + 1)
    used = -(-used // self.multiple_of) * self.multiple_of
    return jnp.full(batch, jnp.minimum(used, depth), jnp.int32)


@dataclasses.dataclass(frozen=True)
class ItemDropout:
  """Quantizer dropout as in DAC: the first floor(share B) items draw from 1 ... M each."""

  share: float = 0.5
  """Of the batch; the rest uses all levels."""

  def __call__(self, key: PRNGKeyArray, batch: int, depth: int) -> Int[Array, "B"]:
    """int32[B], how many levels each item uses."""
    drawn = jax.random.randint(key, (batch,), 1, depth + 1)
    is_drawn = jnp.arange(batch) < math.floor(self.share * batch)
    return jnp.where(is_drawn, drawn, depth)


@dataclasses.dataclass(frozen=True)
class ChosenDropout:
  """Quantizer dropout as in EnCodec: one number of levels for the batch, of a few."""

  choices: tuple[int, ...]
  """Each as likely as another, in 1 ... M."""

  def __call__(self, key: PRNGKeyArray, batch: int, depth: int) -> Int[Array, "B"]:
    """int32[B], how many levels each item uses."""
    used = jax.random.choice(key, jnp.asarray(self.choices, jnp.int32))
    return jnp.full(batch, jnp.minimum(used, depth), jnp.int32)


@dataclasses.dataclass(frozen=True)
class Beam:
  """Encodes by the best of `width` partial sums instead of greedily.

  For levels of `VectorQuantizer` with the euclidean metric.
  """

  width: int
  score: Literal["error", "summed_errors"] = "error"
  """What is kept small: |z - partial sum|^2, or, as in vector_quantize_pytorch, the sum of
  that over the levels so far, which prefers good prefixes to a good end."""

  def __call__(
    self, z: Float[Array, "N D"], codebooks: list[Float[Array, "K D"]]
  ) -> Int[Array, "N Q"]:
    """int32[N, Q], the codes of the best sum that is found; of a tie, the one found first."""
    rest = z[:, None]
    score = jnp.zeros(rest.shape[:2])
    ids = jnp.zeros((*rest.shape[:2], 0), jnp.int32)
    for level, codes in enumerate(codebooks):
      count, beams, dim = rest.shape
      top = min(self.width, codes.shape[0])
      found, error = search(
        rest.reshape(-1, dim), codes, top_k=top, with_distances=True
      )
      found, error = (x.reshape(count, beams * top) for x in (found, error))
      if self.score == "summed_errors":
        error = error + jnp.repeat(score, top, axis=1)
      is_last = level == len(codebooks) - 1
      keep = 1 if is_last else min(self.width, error.shape[1])
      negative, chosen = jax.lax.top_k(-error, keep)
      score = -negative
      code = jnp.take_along_axis(found, chosen, axis=1)
      parent = (chosen // top)[..., None]
      rest = jnp.take_along_axis(rest, parent, axis=1) - codes[code]
      ids = jnp.take_along_axis(ids, parent, axis=1)
      ids = jnp.concatenate([ids, code[..., None]], axis=-1)
    return ids[:, 0]


class Residual(nn.Module):
  """Residual quantization by levels of any quantizer that has one id a token.

  levels:      the quantizers, coarsest first, all of the same `dim`
  depth:       for a shared codebook: how often the one level is used; None: once each.
               Its update rule then takes one step a level, once all have searched, and
               resets dead codes to what that level quantized
               (projections belong around the whole, `Projected(Residual(...), dim)`)
  gradient:    the published behaviour, see above
  dropout:     of levels in training; needs the rng stream `quantizer`
  beam:        how to search jointly; None: greedily
  soft_clamp:  v of each dimension: z <- v tanh(z / v) first; None: not
  mean_over:   what the losses are means over: all levels, of which those that dropout left out
               count as 0 (vector_quantize_pytorch), or those in use (EnCodec and its
               descendants), so that few levels bind no less than many

  Ids are int32[B, L, Q]. Losses are means over the levels; where a position does not use a
  level, its loss there is 0. Stats: those of the levels, stacked to
  [Q, ...] (and filled up with zeros to the largest codebook), and the losses by level,
  float32[Q], under their names.
  """

  levels: tuple[Any, ...]
  depth: int | None = None
  gradient: ResidualGradient = "vqp"
  dropout: LevelDropout | ItemDropout | ChosenDropout | None = None
  beam: Beam | None = None
  soft_clamp: tuple[float, ...] | None = None
  mean_over: Literal["all", "used"] = "all"

  def __post_init__(self):
    super().__post_init__()
    if not self.levels:
      raise TokzooError("residual quantization needs at least one level.")
    if self.depth is not None and (len(self.levels) != 1 or self.depth < 1):
      raise TokzooError(
        f"a shared codebook is one level used several times, not {len(self.levels)} levels "
        f"used {self.depth} times: give one level, or no depth."
      )
    sizes = sorted({level.dim for level in self.levels})
    if len(sizes) > 1:
      raise TokzooError(
        f"residual levels quantize the same features, but these have {sizes} of them: give "
        "all the same dim."
      )
    for level in self.levels if self.beam else ():
      if getattr(level, "metric", None) != "euclidean":
        raise TokzooError(
          "beam search adds up codes by euclidean distance, which "
          f"{type(level).__name__} levels with the metric "
          f"{getattr(level, 'metric', None)!r} do not: choose VectorQuantizer levels with the "
          "euclidean metric, or beam=None."
        )

  @property
  def dim(self) -> int:
    """D, features of latents and codes."""
    return self.levels[0].dim

  @property
  def num_codes(self) -> int:
    """Codes of one id: of the level that has most."""
    return max(level.num_codes for level in self.levels)

  @property
  def id_groups(self) -> int:
    """Ids per token."""
    return len(self._stack())

  @property
  def bits_per_token(self) -> float:
    return float(sum(level.bits_per_token for level in self._stack()))

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
    num_levels: int | None = None,
  ) -> Quantized:
    """Quantizes latents of any float dtype.

    Args:
      z: latents.
      mask: the positions that count.
      train: whether losses are computed and codebooks move.
      num_levels: only the first so many, Q of what is returned; None: all. Without a beam
        search, which is joint.
    """
    return self.quantize_levels(z, mask, train, num_levels)[0]

  def quantize_levels(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
    num_levels: int | None = None,
  ) -> tuple[Quantized, tuple[Float[Array, "B L D"], ...]]:
    """As `__call__`, and beside it the value of each level, with that level's gradient."""
    if num_levels is not None and (self.beam or not 1 <= num_levels <= self.id_groups):
      raise ValueError(f"{num_levels} levels of {self.id_groups}, beam {self.beam}.")
    if self.is_initializing():
      num_levels = None
    if z.shape[-1] != self.dim:
      raise ValueError(
        f"residual levels of {self.dim} features, latents of {z.shape[-1]}."
      )
    z = self._clamp(latents(z, mask))
    masks, shares = self._used(z, mask, train)
    chosen = self._search(z) if self.beam else None
    residual, total = z, jnp.zeros_like(z)
    outs, inputs = [], []
    for place, level in enumerate(self._stack()[:num_levels]):
      options: dict[str, Any] = {} if chosen is None else {"ids": chosen[..., place]}
      if self.depth is not None and hasattr(level, "observe"):
        options["observe"] = False
      out = level(residual, masks[place], train, **options)
      inputs.append(residual)
      outs.append(out)
      total = total + out.values
      taken = out.values
      if self.gradient in ("vqp", "mimi"):
        taken = jax.lax.stop_gradient(taken)
      residual = residual - taken
    if self.depth is not None and train and not self.is_initializing():
      self._observe(inputs, outs)
    values = straight_through(z, total) if self.gradient == "mimi" else total
    if mask is not None:
      values = jnp.where(mask[..., None], values, 0)
    ids = jnp.stack([out.ids for out in outs], axis=-1)
    shares = shares[:num_levels]
    by_level = {
      name: jnp.stack([out.losses[name] for out in outs]) * shares
      for name in outs[0].losses
    }
    losses = {name: jnp.mean(loss) for name, loss in by_level.items()}
    if self.mean_over == "used":
      # Nothing dropped: a factor of exactly 1. Nothing kept by a mask: all losses are 0.
      factor = len(outs) / jnp.maximum(jnp.sum(shares), 1)
      losses = {name: factor * loss for name, loss in losses.items()}
    stats = {
      name: _stack_padded([out.stats[name] for out in outs]) for name in outs[0].stats
    }
    quantized = Quantized(values, ids, losses, stats | by_level)
    return quantized, tuple(out.values for out in outs)

  def ids_to_codes(self, ids: Int[Array, "*N Q"]) -> Float[Array, "*N D"]:
    """The sum of the codes of ids in [0, K). An id of -1 adds 0, and the ids may be those of
    the first levels only."""
    codes = self.ids_to_level_codes(ids)
    # One by one, as in the forward pass: the sums are the same to the last bit.
    total = jnp.zeros_like(codes[0])
    for code in codes:
      total = total + code
    return total

  def ids_to_level_codes(self, ids: Int[Array, "*N q"]) -> Float[Array, "q *N D"]:
    """The codes of each level, for the q <= Q levels that `ids` has."""
    levels = self._stack()
    if ids.shape[-1] > len(levels):
      raise ValueError(
        f"ids of {ids.shape[-1]} levels, of which there are {len(levels)}."
      )
    return jnp.stack(
      [levels[i].ids_to_codes(ids[..., i]) for i in range(ids.shape[-1])]
    )

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N Q"]:
    """Ids whose codes add up to `codes` as nearly as the search finds: a sum does not say
    which codes it is made of, unless the levels are nested grids (FSQ, LFQ)."""
    residual = codes.astype(jnp.float32)
    if self.beam:
      return self._search(residual)
    ids = []
    for level in self._stack():
      ids.append(level.codes_to_ids(residual))
      residual = residual - level.ids_to_codes(ids[-1])
    return jnp.stack(ids, axis=-1)

  def _stack(self) -> tuple[Any, ...]:
    """The level at each place, a shared one repeatedly."""
    return self.levels if self.depth is None else self.levels * self.depth

  def _clamp(self, z: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    if self.soft_clamp is None:
      return z
    limit = jnp.asarray(np.broadcast_to(self.soft_clamp, self.dim), jnp.float32)
    limit = limit.reshape((1,) * (z.ndim - 1) + (-1,))
    return limit * jnp.tanh(z / limit)

  def _used(
    self, z: Float[Array, "B L D"], mask: Bool[Array, "B L"] | None, train: bool
  ) -> tuple[list[Bool[Array, "B L"] | None], Float[Array, "Q"]]:
    """The mask of each level, and the share of the kept positions that use it."""
    depth = len(self._stack())
    if not train or self.dropout is None or self.is_initializing():
      return [mask] * depth, jnp.ones(depth)
    kept = jnp.ones(z.shape[:2], bool) if mask is None else mask
    used = self.dropout(self.make_rng("quantizer"), z.shape[0], depth)
    places = jnp.arange(depth)[:, None, None]
    masks = kept[None] & (places < used[None, :, None])
    shares = jnp.sum(masks, axis=(1, 2)) / jnp.maximum(jnp.sum(kept), 1)
    return list(masks), shares

  def _search(self, z: Float[Array, "*N D"]) -> Int[Array, "*N Q"]:
    """The codes of a joint search over all levels."""
    assert self.beam is not None
    codebooks = [jax.lax.stop_gradient(level.codebook()) for level in self._stack()]
    ids = self.beam(jax.lax.stop_gradient(z).reshape(-1, self.dim), codebooks)
    return ids.reshape(*z.shape[:-1], -1)

  def _observe(self, inputs: list[Array], outs: list[Quantized]) -> None:
    """One step of the shared codebook's update rule for each level."""
    (level,) = self.levels
    if hasattr(level, "observe"):
      for z, out in zip(inputs, outs, strict=True):
        level.observe(z.reshape(-1, self.dim), out.ids.reshape(-1))


def residual_fsq(
  levels: tuple[int, ...], depth: int, *, hard_clamp: bool = True, **options: Any
) -> Residual:
  """Residual FSQ: symmetric FSQ of scale L^-i at level i = 0, 1, ...

  Args:
    levels: of each dimension, L.
    depth: how many times.
    hard_clamp: bounds the input once, softly, by tanh to +-(1 + 1 / (L - 1)), and then each
      level by a clamp, as in vector_quantize_pytorch; else each level by its own tanh, which
      the coarse levels cannot undo.
    **options: of `Residual`.
  """
  grids = [
    FiniteScalar(
      levels,
      symmetric=True,
      bound="clamp" if hard_clamp else "atanh",
      scale=tuple(float(size) ** -place for size in levels),
    )
    for place in range(depth)
  ]
  if hard_clamp:
    options["soft_clamp"] = tuple(1 + 1 / (size - 1) for size in levels)
  return Residual(tuple(grids), **options)


def residual_lfq(first: LookupFree, depth: int, **options: Any) -> Residual:
  """Residual LFQ: codes of +-2^-i at level i = 0, 1, ...

  Args:
    first: the level of scale 1; further ones halve its scale and its soft clamp.
    depth: how many levels.
    **options: of `Residual`.
  """
  levels = [
    first.clone(
      scale=first.scale * 2.0**-place,
      soft_clamp=first.soft_clamp and first.soft_clamp * 2.0**-place,
    )
    for place in range(depth)
  ]
  return Residual(tuple(levels), **options)


def _stack_padded(arrays: list[Array]) -> Array:
  """Stacks arrays that may differ in their first axis; the shorter ones end in zeros."""
  if arrays[0].ndim == 0:
    return jnp.stack(arrays)
  size = max(array.shape[0] for array in arrays)
  rest = ((0, 0),) * (arrays[0].ndim - 1)
  return jnp.stack(
    [jnp.pad(array, ((0, size - array.shape[0]), *rest)) for array in arrays]
  )
