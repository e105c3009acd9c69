"""The two tasks that most systems train with: give back the input, and model its tokens.

A system with an objective of its own writes its own task (`tokzoo.contract.Task`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.contract import Batch, Losses, Output, Variables
from tokzoo.errors import TokzooError
from tokzoo.losses import adaptive_weight, reconstruction
from tokzoo.metrics import PSNR, SSIM, BitEntropy, BitsPerPixel, CodebookUsage, Mean
from tokzoo.metrics.images import SSIM_WINDOW
from tokzoo.tokens import Tokens
from tokzoo.train import adversary as adversaries
from tokzoo.train.adversary import Adversary
from tokzoo.train.perception import Perceptual, placeholders
from tokzoo.train.state import variables_of_model
from tokzoo.weights.table import flatten, unflatten

_DISTANCES = {
  "l1": reconstruction.l1,
  "l2": reconstruction.l2,
  "smooth_l1": reconstruction.smooth_l1,
}


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """Trains a tokenizer to give back what it is given.

  Loss: distance(reconstruction, input) + the perceptual terms + sum of weights * the
  tokenizer's named losses (+ the adversary's). With `batch["teacher"]` and a tokenizer that predicts it (feature
  "repa"), `weights["repa"]` aligns the two by cosine similarity.
  """

  model: Any
  """Config of the tokenizer; its `build()` makes the module."""
  distance: Literal["l1", "l2", "smooth_l1"] = "smooth_l1"
  """Between reconstruction and input, mean over all elements."""
  weights: dict[str, float] = dataclasses.field(default_factory=dict)
  """Weight of each of the tokenizer's named losses; those not named are only logged."""
  perceptual: tuple[Perceptual, ...] = ()
  """Frozen networks that compare the reconstruction with the input as well."""
  adversary: Adversary | None = None
  """Discriminator; None: no second player."""
  tile: bool = False
  """Cut every picture to squares of the model's size, for a tokenizer that encodes pictures
  of any size tile by tile."""

  @property
  def players(self) -> Mapping[str, str]:
    if self.adversary is None:
      return {"model": ".*"}
    return {"discriminator": "discriminator/", "model": ".*"}

  def init(self, rng: PRNGKeyArray, batch: Batch) -> Variables:
    params_rng, bits_rng, critic_rng = jax.random.split(rng, 3)
    rngs = {"params": params_rng, "bits": bits_rng}
    image = self._cut(batch["image"])
    variables = dict(self.model.build().init(rngs, image))
    if self.perceptual:
      variables["perceptual"] = placeholders(self.perceptual)
    if self.adversary is not None:
      params, state = adversaries.start(self.adversary, critic_rng, image)
      variables["params"] = {**variables["params"], "discriminator": params}
      if state:
        variables["discriminator"] = state
    return variables

  def given(self) -> Variables:
    """Variables that are read, not initialised: the weights of the perceptual networks.

    Raises:
      TokzooError: a network's files are missing or of another network.
    """
    loaded = {term.name: term.load() for term in self.perceptual}
    return {"perceptual": loaded} if loaded else {}

  def losses(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray, step: Int[Array, ""]
  ) -> Losses:
    image = self._cut(batch["image"])
    output, updates = self._apply(variables, image, rng, train=True)
    distance = _DISTANCES[self.distance](output.reconstruction, image)
    metrics = {self.distance: distance, **output.losses}
    if "teacher" in batch and "repa" in output.features:
      metrics["repa"] = 1 - _cosine(output.features["repa"], batch["teacher"]).mean()
    unknown = set(self.weights) - set(metrics)
    if unknown:
      raise TokzooError(
        f"the recipe weighs a loss {min(unknown)!r}, but this model has "
        f"{', '.join(sorted(metrics))}: correct the name under weights."
      )
    seen = self._compare(variables, output.reconstruction, image)
    metrics |= seen
    felt = distance + sum(term.weight * seen[term.name] for term in self.perceptual)
    total = felt + sum(w * metrics[name] for name, w in self.weights.items())
    if self.adversary is None:
      return Losses({"model": total}, metrics, updates)
    params = variables["params"]["discriminator"]
    state = variables.get("discriminator", {})
    found = adversaries.play(
      self.adversary, params, state, image, output.reconstruction
    )
    is_on = adversaries.started(self.adversary, step)
    weight = is_on * self.adversary.weight
    metrics |= found.metrics
    if self.adversary.adaptive is not None:
      metrics["adaptive_weight"] = self._adaptive_weight(variables, image, rng)
      weight = weight * metrics["adaptive_weight"]
    if found.state:
      updates["discriminator"] = adversaries.after_step(
        self.adversary, step, found.state, state
      )
    return Losses(
      {
        "model": total + weight * found.fooling,
        "discriminator": is_on * found.telling,
      },
      metrics,
      updates,
    )

  def evaluate(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Any]:
    image, valid = batch["image"], batch.get("valid")
    tiles = self._cut(image)
    output, _ = self._apply(variables, tiles, rng, train=False)
    shown = self._join(jnp.clip(output.reconstruction, -1, 1), image)
    metrics: dict[str, Any] = {"psnr": PSNR.from_batch(image, shown, valid)}
    if min(image.shape[1:3]) >= SSIM_WINDOW:
      metrics["ssim"] = SSIM.from_batch(image, shown, valid)
    if valid is not None:
      valid = jnp.repeat(valid, len(tiles) // len(image))
    height, width = tiles.shape[1:3]
    rate = BitsPerPixel.from_tokens(output.tokens, height, width, valid)
    return metrics | {"bits_per_pixel": rate} | usage(output.tokens, valid)

  def pictures(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Float[Array, "B H W C"]]:
    image = batch["image"]
    output, _ = self._apply(variables, self._cut(image), rng, train=False)
    shown = self._join(jnp.clip(output.reconstruction, -1, 1), image)
    return {"original_over_reconstruction": jnp.concatenate([image, shown], 1)}

  def _apply(
    self, variables: Variables, image: Array, rng: PRNGKeyArray, train: bool
  ) -> tuple[Output, dict[str, Any]]:
    """The tokenizer on a batch, and the new values of its mutable collections."""
    module = self.model.build()
    inputs = variables_of_model(variables)
    if not train:
      return module.apply(inputs, image), {}
    mutable = [name for name in inputs if name != "params"]
    # Named streams of one key: each layer folds its own path in.
    rngs = {"bits": rng, "codebook": rng, "dropout": rng}
    output, updates = module.apply(
      inputs, image, train=True, rngs=rngs, mutable=mutable
    )
    return output, dict(updates)

  def _cut(self, image: Float[Array, "B H W C"]) -> Float[Array, "N s s C"]:
    if not self.tile:
      return image
    side = self.model.image_size
    if image.shape[1] % side or image.shape[2] % side:
      raise TokzooError(
        f"pictures of {image.shape[1]} x {image.shape[2]} pixels cannot be cut to tiles of "
        f"{side}: set data.size to a multiple of {side}."
      )
    return rearrange(image, "b (r h) (c w) d -> (b r c) h w d", h=side, w=side)

  def _join(self, tiles: Array, like: Array) -> Array:
    if not self.tile:
      return tiles
    batch, rows = like.shape[0], like.shape[1] // tiles.shape[1]
    return rearrange(tiles, "(b r c) h w d -> b (r h) (c w) d", b=batch, r=rows)

  def _compare(
    self, variables: Variables, shown: Array, image: Array
  ) -> dict[str, Float[Array, ""]]:
    """The distances under the perceptual networks, by name."""
    return {
      term.name: term(variables["perceptual"][term.name], shown, image)
      for term in self.perceptual
    }

  def _adaptive_weight(
    self, variables: Variables, image: Array, rng: PRNGKeyArray
  ) -> Float[Array, ""]:
    """How much the adversarial loss counts against distance and perceptual terms."""
    adversary = self.adversary
    assert adversary is not None and adversary.adaptive is not None
    path = adversary.adaptive
    fixed = jax.lax.stop_gradient(dict(variables))
    flat = flatten(fixed["params"])
    if path not in flat:
      raise TokzooError(
        f"the adversary's weight adapts to {path!r}, which the model does not "
        "have: name the path of its last kernel."
      )

    def reconstruct(kernel: Array) -> Array:
      params = unflatten({**flat, path: kernel})
      output, _ = self._apply({**fixed, "params": params}, image, rng, train=True)
      return output.reconstruction

    def felt(shown: Array) -> Array:
      seen = self._compare(fixed, shown, image)
      distance = _DISTANCES[self.distance](shown, image)
      return distance + sum(term.weight * seen[term.name] for term in self.perceptual)

    fooling = adversaries.frozen(
      adversary, fixed["params"]["discriminator"], fixed.get("discriminator", {})
    )
    return adaptive_weight(reconstruct, flat[path], felt, fooling)


@dataclasses.dataclass(frozen=True)
class Generation:
  """Trains a generator on tokens that a tokenizer made beforehand.

  Batches hold `packed` uint32[B, L, w] (or `ids` int32[B, L] / [B, L, Q]) and the condition:
  `label` int32[B], or `features` float[B, layers, T, C] with `text_mask` bool[B, T].

  Only training gives the module the rng stream `dropout`, by which it knows that it trains. A
  config whose `loss` has settings that change over a run (an annealed order) names them by
  step: `loss_settings(step) -> keyword arguments`; evaluation leaves them at their defaults. One
  that makes its tokens itself (mel frames of sound) has `tokens_of(batch)`.
  """

  model: Any
  """Config of the generator; its `build()` makes the module."""

  @property
  def players(self) -> Mapping[str, str]:
    return {"model": ".*"}

  def init(self, rng: PRNGKeyArray, batch: Batch) -> Variables:
    params_rng, loss_rng = jax.random.split(rng)
    module = self.model.build()
    inputs = self.tokens(batch), self.model.condition(batch), loss_rng
    return module.init({"params": params_rng}, *inputs, method=module.loss)

  def losses(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray, step: Int[Array, ""]
  ) -> Losses:
    changing = getattr(self.model, "loss_settings", None)
    settings = {} if changing is None else changing(step)
    rngs = {"dropout": jax.random.fold_in(rng, 1)}
    loss, metrics = self._loss(variables, batch, rng, rngs, **settings)
    return Losses({"model": loss}, {"loss": loss, **metrics})

  def evaluate(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Any]:
    valid = batch.get("valid")
    rows = {name: value[:, None] for name, value in batch.items() if name != "valid"}
    rngs = jax.random.split(rng, jax.tree.leaves(rows)[0].shape[0])
    # Row by row, so that rows that only fill the last batch can be left out.
    loss, metrics = jax.vmap(lambda row, key: self._loss(variables, row, key))(
      rows, rngs
    )
    named = {"loss": loss, **metrics}
    return {name: Mean.from_batch(value, valid) for name, value in named.items()}

  def pictures(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Float[Array, "B H W C"]]:
    return {}

  def tokens(self, batch: Batch) -> Tokens:
    """The batch's tokens."""
    tokens_of = getattr(self.model, "tokens_of", None)
    if tokens_of is not None:
      return tokens_of(batch)
    if "packed" in batch:
      packed = batch["packed"]
      return Tokens(packed=packed, bits=self.model.bits, grid=(packed.shape[1],))
    if "ids" in batch:
      return Tokens.from_ids(batch["ids"], self.model.vocab)
    raise TokzooError(
      f"a generator trains on tokens, but the data has {', '.join(sorted(batch))}: encode it "
      "first (tokzoo encode), or name the recipe's tokenizer."
    )

  def _loss(
    self,
    variables: Variables,
    batch: Batch,
    rng: PRNGKeyArray,
    rngs: Mapping[str, PRNGKeyArray] | None = None,
    **settings: Any,
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    module = self.model.build()
    inputs = self.tokens(batch), self.model.condition(batch), rng
    return module.apply(variables, *inputs, **settings, method=module.loss, rngs=rngs)


def usage(tokens: Tokens, valid: Array | None = None) -> dict[str, Any]:
  """How tokens use their codes: bit entropy, or codebook usage and perplexity."""
  if tokens.packed is not None:
    return {"bits": BitEntropy.from_bits(tokens.unpacked(), valid)}
  if tokens.ids is not None and tokens.vocab is not None:
    return {"codebook": CodebookUsage.from_ids(tokens.ids, tokens.vocab, valid)}
  return {}


def _cosine(x: Float[Array, "B P R"], y: Float[Array, "B P R"]) -> Float[Array, "B P"]:
  x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
  return (x * y).sum(-1) / jnp.maximum(norms, 1e-8)
