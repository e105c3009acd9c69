"""Vector quantization: the nearest code of a learnt codebook.

van den Oord et al., "Neural Discrete Representation Learning" (arXiv 1711.00937); cosine
search as in Yu et al., "Vector-quantized Image Modeling with Improved VQGAN" (arXiv
2110.04627). What can be chosen are separate small pieces: the search (`metric`), the
gradient estimator (`gradient`), the rule that moves the codes (`update`), and beside these
where the codebook starts (`start`), `sampling`, `affine` and `regularizers`.

  euclidean  argmin |z - c|^2
  cosine     z <- z / |z|, codes of unit norm, argmax z . c; the value is the unit code
  angular    argmax of the cosine, but the value is the code with its length, as in DAC and
             SNAC (where D is 8: set it inside `Projected`)

Losses, unweighted: `commitment` mean (z - sg c)^2, and, where codes are learnt by gradient
descent, `codebook` mean (sg z - c)^2. The published weights of the two differ (VQ-VAE: 0.25
on the first; taming-transformers, as released: 0.25 on the second; vector_quantize_pytorch:
one term without stop-gradients, which is the value of one and the gradient of both).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokzoo.contract import Quantized
from tokzoo.errors import TokzooError
from tokzoo.quantizers.affine import Affine, Moments
from tokzoo.quantizers.codebook import Averages, Metric, nearest, similarity
from tokzoo.quantizers.gradients import (
  GRADIENTS,
  Directional,
  Gradient,
  Gumbel,
  SoftAssignment,
  SyncUpdate,
  unit,
)
from tokzoo.quantizers.kmeans import KMeans
from tokzoo.quantizers.masks import count_codes, hide, latents, losses_in, masked_mean
from tokzoo.quantizers.regularizers import Regularizer
from tokzoo.quantizers.updates import Ema, Learnt, PeriodicReset


class VectorQuantizer(nn.Module):
  """VQ over the last axis.

  num_codes:    K
  dim:          D
  metric:       the search
  gradient:     the gradient estimator
  update:       `Ema`, whose state is the collection `codebook`; None: the codes are the
                parameter `codes` and learn from the loss `codebook`; `Learnt`: that, and
                dead codes are reset by an offset in the collection
  codes_init:   of the codes, [K, D]
  unit_start:   for the cosine metric, whether learnt codes start with unit length. The search
                sees their directions alone, but a short code turns further under a step of
                its optimizer; moving averages always have unit length
  start:        the codebook starts from the first training batch; None: from `codes_init`
  sampling:     in training the code is drawn, not the nearest
  affine:       shifts and scales the codes to where the latents are
  regularizers: further losses

  Whatever draws (a reset, `start`, `sampling`, `Directional`) needs the rng stream
  `codebook` in training.
  """

  num_codes: int
  dim: int
  metric: Metric = "euclidean"
  gradient: Gradient = "straight_through"
  update: Ema | Learnt | None = Ema()
  codes_init: nn.initializers.Initializer = nn.initializers.normal(1.0)
  unit_start: bool = True
  start: KMeans | None = None
  sampling: Gumbel | None = None
  affine: Affine | None = None
  regularizers: tuple[Regularizer, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    if isinstance(self.update, Ema):
      trains = isinstance(self.gradient, Directional | SyncUpdate | SoftAssignment)
      if trains or any(each.needs_learnt_codes for each in self.regularizers):
        what = self.gradient if trains else self.regularizers
        raise TokzooError(
          f"{what} moves the codes by gradient descent, but they are moving averages: "
          "choose update=None or update=Learnt(...)."
        )
    elif self.start is not None:
      raise TokzooError(
        "codes that learn by gradient descent are parameters, which a training step cannot "
        "start from k-means: choose update=Ema(...), or pass the result of `kmeans` as "
        "codes_init."
      )
    if self.affine is not None and self.metric != "euclidean":
      raise TokzooError(
        f"affine reparametrisation is for the euclidean metric, not {self.metric!r}: "
        "directions cannot be shifted."
      )

  @property
  def bits_per_token(self) -> float:
    return math.log2(self.num_codes)

  def setup(self):
    # Counts and sums are at first as if each code had just got `first_count` tokens.
    if isinstance(self.update, Ema):
      self.ema_codes = self.variable(
        "codebook", "codes", lambda: self._first_codes(self.make_rng("params"))
      )
      self.ema_sums = self.variable("codebook", "sums", lambda: self.ema_codes.value)
    else:
      self.codes = self.param("codes", self._first_codes)
    if isinstance(self.update, Learnt):
      shape = (self.num_codes, self.dim)
      self.offset = self.variable("codebook", "offset", jnp.zeros, shape)
    if self.update is not None:
      count = self.update.first_count
      self.counts = self.variable(
        "codebook", "counts", lambda: jnp.full(self.num_codes, count, jnp.float32)
      )
    if self.update is not None and isinstance(self.update.reset, PeriodicReset):
      self.steps = self.variable("codebook", "steps", jnp.zeros, (), jnp.int32)
    if self.start is not None:
      self.is_started = self.variable("codebook", "is_started", jnp.zeros, (), bool)
    if self.affine is not None:
      self.moments = self.variable(
        "codebook", "moments", lambda: vars(Moments.first(self.dim))
      )

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
    observe: bool = True,
    ids: Int[Array, "B L"] | None = None,
  ) -> Quantized:
    """Quantizes latents of any float dtype.

    In training with an update rule the collection `codebook` must be mutable; what is
    returned comes from the codebook before the update. Stats: `counts` int32[K].

    Args:
      z: latents.
      mask: the positions that count.
      train: whether losses are computed and the codebook moves.
      observe: False leaves the update to a later call of `observe`, for a codebook that is
        searched several times in a step.
      ids: the codes to take, of a joint search over several codebooks; None: the nearest.
    """
    if z.shape[-1] != self.dim:
      raise ValueError(f"codes of {self.dim} features, latents of {z.shape[-1]}.")
    z = latents(z, mask)
    if self.metric == "cosine":
      z = unit(z)
    flat = z.reshape(-1, self.dim)
    is_step = train and not self.is_initializing()
    if is_step:
      self._prepare(jax.lax.stop_gradient(flat), mask)
    codes = self.codebook()
    found = self._find(flat, codes, is_step) if ids is None else ids.reshape(-1)
    code = codes[found].reshape(z.shape)

    values = self._estimate(z, code, codes, found, is_step)
    values, ids = hide(values, found.reshape(z.shape[:2]), mask)
    losses = {"commitment": masked_mean((z - jax.lax.stop_gradient(code)) ** 2, mask)}
    if not isinstance(self.update, Ema):
      losses["codebook"] = masked_mean((jax.lax.stop_gradient(z) - code) ** 2, mask)
    for regularizer in self.regularizers:
      losses |= regularizer(z, codes, ids, mask, self.metric)
    if is_step and observe:
      self._update(jax.lax.stop_gradient(flat), ids.reshape(-1))
    stats = {"counts": count_codes(ids, self.num_codes)}
    return Quantized(values, ids, losses_in(train, losses), stats)

  def observe(self, z: Float[Array, "N D"], ids: Int[Array, "N"]) -> None:
    """Updates the codebook once, by tokens and the codes they were given.

    For a shared codebook, after calls with `observe=False`; without an update rule it does
    nothing. Needs the collection `codebook` to be mutable.

    Args:
      z: latents of any float dtype.
      ids: int32[N], -1 where a token is masked out.
    """
    z = jnp.where(ids[:, None] < 0, 0, jax.lax.stop_gradient(z.astype(jnp.float32)))
    self._update(unit(z) if self.metric == "cosine" else z, ids)

  def codebook(self) -> Float[Array, "K D"]:
    """The codes as the search sees them: of unit norm for the cosine metric."""
    codes = self._own_codes()
    if self.affine is not None:
      return Moments(**self.moments.value).to_batch(codes)
    return codes

  def ids_to_codes(self, ids: Int[Array, "*N"]) -> Float[Array, "*N D"]:
    """The codes of ids in [0, K); -1 gives 0."""
    codes = self.codebook()[jnp.maximum(ids, 0)]
    return jnp.where(ids[..., None] < 0, 0.0, codes)

  def codes_to_ids(self, codes: Float[Array, "*N D"]) -> Int[Array, "*N"]:
    """The ids of the codes that lie nearest."""
    flat = codes.astype(jnp.float32).reshape(-1, self.dim)
    flat = unit(flat) if self.metric == "cosine" else flat
    return nearest(flat, self.codebook(), self.metric).reshape(codes.shape[:-1])

  def _first_codes(self, key: Array) -> Float[Array, "K D"]:
    codes = self.codes_init(key, (self.num_codes, self.dim), jnp.float32)
    is_unit = self.unit_start or isinstance(self.update, Ema)
    return unit(codes) if self.metric == "cosine" and is_unit else codes

  def _own_codes(self) -> Float[Array, "K D"]:
    """The codes where they are kept, before any affine map."""
    if isinstance(self.update, Ema):
      return self.ema_codes.value
    codes = self.codes
    if self.update is not None:
      codes = codes + self.offset.value
    return unit(codes) if self.metric == "cosine" else codes

  def _find(
    self, flat: Float[Array, "N D"], codes: Float[Array, "K D"], is_step: bool
  ) -> Int[Array, "N"]:
    """The id of each token's code."""
    flat, codes = jax.lax.stop_gradient((flat, codes))
    if is_step and self.sampling is not None:
      logits = similarity(flat, codes, self.metric)
      return self.sampling(logits, self.make_rng("codebook"))
    return nearest(flat, codes, self.metric)

  def _estimate(
    self,
    z: Float[Array, "B L D"],
    code: Float[Array, "B L D"],
    codes: Float[Array, "K D"],
    found: Int[Array, "N"],
    is_step: bool,
  ) -> Float[Array, "B L D"]:
    """The value, with the gradient of the chosen estimator."""
    match self.gradient:
      case str(name):
        return GRADIENTS[name](z, code)
      case SyncUpdate():
        return self.gradient(z, code)
      case SoftAssignment() if is_step:
        logits = similarity(z.reshape(-1, self.dim), codes, self.metric)
        return self.gradient(logits, codes, found).reshape(z.shape)
      case Directional() if is_step:
        return self.gradient(z, code, self.make_rng("codebook"))
      case _:
        return code

  def _prepare(
    self, flat: Float[Array, "N D"], mask: Bool[Array, "B L"] | None
  ) -> None:
    """What happens to the codebook before the search: its start, and its moments."""
    kept = jnp.ones(flat.shape[0], bool) if mask is None else mask.reshape(-1)
    if self.start is not None:
      is_started = self.is_started.value
      key = self.make_rng("codebook")
      old = self._averages()
      new = self.start.start(old, is_started, flat, kept, self.metric, key)
      # A batch without a token leaves the start to the next one.
      self._keep(old, jax.tree.map(lambda a, b: jnp.where(kept.any(), b, a), old, new))
      self.is_started.value = is_started | kept.any()
    if self.affine is not None:
      old = Moments(**self.moments.value)
      self.moments.value = vars(self.affine.update(old, flat, kept, self._own_codes()))

  def _update(self, flat: Float[Array, "N D"], ids: Int[Array, "N"]) -> None:
    """One step of the update rule. Tokens are 0 where their id is -1."""
    if self.update is None:
      return
    moments = None if self.affine is None else Moments(**self.moments.value)
    key = self.make_rng("codebook") if self.update.reset is not None else None
    step = None
    if isinstance(self.update.reset, PeriodicReset):
      step = self.steps.value
      self.steps.value = step + 1
    old = self._averages()
    new = self.update.update(old, flat, ids, self.metric, key, step, moments)
    # No token, no step: a residual level that was dropped keeps its codebook.
    is_any = jnp.any(ids >= 0)
    self._keep(old, jax.tree.map(lambda a, b: jnp.where(is_any, b, a), old, new))

  def _averages(self) -> Averages:
    """The state of the update rule."""
    codes = jax.lax.stop_gradient(self._own_codes())
    is_averaged = isinstance(self.update, Ema)
    sums = self.ema_sums.value if is_averaged else jnp.zeros_like(codes)
    return Averages(codes, self.counts.value, sums)

  def _keep(self, old: Averages, new: Averages) -> None:
    """Stores the state of the update rule."""
    self.counts.value = new.counts
    if isinstance(self.update, Ema):
      self.ema_codes.value = new.codes
      self.ema_sums.value = new.sums
    else:
      # The parameter stays with its optimizer; a code that is reset moves by its offset.
      is_reset = jnp.any(new.codes != old.codes, axis=-1, keepdims=True)
      to_new = new.codes - jax.lax.stop_gradient(self.codes)
      self.offset.value = jnp.where(is_reset, to_new, self.offset.value)
