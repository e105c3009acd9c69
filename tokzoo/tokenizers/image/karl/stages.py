"""KARL's training: in both stages each step makes two passes over the same batch.

  estimate  T tokens, T one of `lengths` for the whole batch, all active, for an error drawn
            among those that are too small to be had: what error does T reach?
  tokenize  the whole budget, for that error of each image: the tokens beyond T are to halt,
            the others to stay active, and the decoder sees only the ones that do

`Distillation` is stage 1: the decoder predicts what a frozen base sees. `Finetuning` is stage
2: everything learns from pixels, and plays against `Critics`. Every loss of both passes is
added, as are both terms of the halting, with weight 1.

Differences from the source: T is one number for all devices, and shorter lengths are masked
in a sequence of the longest, so that shapes stay static; with several devices the errors that
are wished for follow the least error of the whole batch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.contract import Batch, Losses, Variables
from tokzoo.losses import adaptive_weight, reconstruction
from tokzoo.metrics import PSNR, BitsPerPixel, CodebookUsage, Mean
from tokzoo.nn.prefix import prefix_mask
from tokzoo.tokenizers.image.karl.base import last_kernel
from tokzoo.tokenizers.image.karl.critics import Critic, Critics
from tokzoo.tokenizers.image.karl.model import ERRORS, KARL, Config, Pass
from tokzoo.tokenizers.image.karl.objectives import (
  first_shares,
  halting_losses,
  next_shares,
)
from tokzoo.weights import flatten, unflatten

VQ = {"commitment": 0.25, "codebook": 1.0}
"""Published weights of the quantizer's losses."""


@dataclasses.dataclass(frozen=True)
class Stage:
  """What all stages of KARL and ALIT have alike: how they start and how they are judged."""

  model: Any
  """Config of the tokenizer."""
  weights: dict[str, float] = dataclasses.field(default_factory=lambda: dict(VQ))
  """Weight of each of the quantizer's losses."""

  def init(self, rng: PRNGKeyArray, batch: Batch) -> Variables:
    variables = dict(self.model.build().init({"params": rng}, batch["image"]))
    return {**variables, **self.remembered()}

  def remembered(self) -> Variables:
    """Collections that the task keeps beside the model's."""
    return {}

  def adopt(self, initial: Variables) -> Variables:
    """Weights to start from: a base's go to their place, a tokenizer's stay in theirs."""
    params = initial["params"]
    return initial if "latent_tokens" in params else {"params": {"vqgan": params}}

  def evaluate(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Any]:
    image, valid = batch["image"], batch.get("valid")
    output = self.apply(variables, image)
    shown, tokens = jnp.clip(output.reconstruction, -1, 1), output.tokens
    height, width = image.shape[1:3]
    rate = BitsPerPixel.from_tokens(tokens, height, width, valid)
    rows = jnp.float32(len(image)) if valid is None else valid.astype(jnp.float32).sum()
    error = jnp.abs(shown - image).mean((1, 2, 3)) / 2
    metrics: dict[str, Any] = {
      "psnr": PSNR.from_batch(image, shown, valid),
      "l1": Mean.from_batch(error, valid),
      "active_tokens": Mean.from_batch(tokens.mask.sum(1, dtype=jnp.float32), valid),
      # With the bits that say which tokens are there.
      "bits_per_pixel": dataclasses.replace(
        rate, bits=rate.bits + rows * self.model.mask_bits
      ),
    }
    if tokens.ids is not None:
      ids = jnp.where(tokens.mask, tokens.ids, -1)
      metrics["codebook"] = CodebookUsage.from_ids(ids, self.model.num_codes, valid)
    return metrics

  def pictures(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Float[Array, "B H W C"]]:
    image = batch["image"]
    shown = jnp.clip(self.apply(variables, image).reconstruction, -1, 1)
    return {"original_over_reconstruction": jnp.concatenate([image, shown], 1)}

  def apply(self, variables: Variables, *inputs: Any, method: Any = None) -> Any:
    """The tokenizer, with the parameters that are its own."""
    params = {k: v for k, v in variables["params"].items() if k != "discriminator"}
    module: Any = self.model.build()
    return module.apply({"params": params}, *inputs, method=method)

  def weigh(self, losses: Mapping[str, Array]) -> Float[Array, ""]:
    """The quantizer's losses; continuous tokens have none."""
    if not losses:
      return jnp.float32(0)
    return jnp.stack([w * losses[name] for name, w in self.weights.items()]).sum()


@dataclasses.dataclass(frozen=True)
class FromPixels(Stage):
  """What the second stages have alike: networks that judge pictures.

  These see pictures in [0, 1], as in the source, where LPIPS was made for [-1, 1]; so its
  numbers are not those of an LPIPS table.
  """

  perceptual: tuple[Any, ...] = ()
  """Frozen networks that compare pictures (`tokzoo.train.perception.Perceptual`)."""
  critics: Critics | None = Critics()  # noqa: RUF009
  """Discriminators, and when they play; None: no second player."""

  @property
  def players(self) -> Mapping[str, str]:
    # In the source the soft codes have no gradient to the base's codebook.
    model = {"model": r"(?!vqgan/quantizer/)"}
    return (
      model if self.critics is None else {"discriminator": "discriminator/", **model}
    )

  def init(self, rng: PRNGKeyArray, batch: Batch) -> Variables:
    model_rng, critic_rng = jax.random.split(rng)
    variables = dict(super().init(model_rng, batch))
    if self.critics is not None:
      params, state = self.critics.start(critic_rng, batch["image"])
      variables["params"] = {**variables["params"], "discriminator": params}
      if state:
        variables["discriminator"] = state
    if self.perceptual:
      # NaN until their weights are given, which no loss survives.
      variables["perceptual"] = {
        term.name: jax.tree.map(
          lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), term.shapes()
        )
        for term in self.perceptual
      }
    return variables

  def given(self) -> Variables:
    """Weights of the perceptual networks, read from their files."""
    loaded = {term.name: term.load() for term in self.perceptual}
    return {"perceptual": loaded} if loaded else {}

  def turns(self, step: Int[Array, ""]) -> dict[str, Bool[Array, ""]]:
    """Who moves at a step."""
    return {} if self.critics is None else self.critics.turns(step)

  def judge(
    self,
    variables: Variables,
    image: Float[Array, "B H W C"],
    shown: Float[Array, "B H W C"],
    values: Float[Array, "B T c"],
    seen: Bool[Array, "*B T"],
    num_tokens: Int[Array, ""],
    step: Int[Array, ""],
  ) -> tuple[dict[str, Array], dict[str, Array], Variables]:
    """Losses of one picture of each image.

    Args:
      variables: of the task.
      image: originals in [-1, 1].
      shown: pictures made of them.
      values, seen: codes that they were made of, and which of these the decoder saw.
      num_tokens: how many tokens they stand for, which chooses the critic.
      step: of the run.

    Returns:
      What each player minimises, numbers to log, and the critics' new statistics.
    """
    original = (image + 1) / 2

    def compare(shown: Array) -> dict[str, Array]:
      shown = (shown + 1) / 2
      return {
        term.name: term(variables["perceptual"][term.name], shown, original)
        for term in self.perceptual
      }

    def felt(shown: Array) -> Array:
      apart = compare(shown)
      weighted = sum(term.weight * apart[term.name] for term in self.perceptual)
      return reconstruction.l1(shown, image) / 2 + weighted

    liked, metrics = felt(shown), compare(shown)
    if self.critics is None:
      return {"model": liked}, {"felt": liked, **metrics}, {}
    state = variables.get("discriminator", {})
    stacked = {"params": variables["params"]["discriminator"], **state}
    critic = Critic(self.critics, self.critics.choose(num_tokens), stacked)

    def fooling(shown: Array) -> Array:
      return critic.fooling((shown + 1) / 2)

    fixed = jax.lax.stop_gradient({"params": variables["params"]})
    flat, path = flatten(fixed["params"]), last_kernel(self.model.base)

    def reconstruct(kernel: Array) -> Array:
      params = unflatten({**flat, path: kernel})
      inputs = jax.lax.stop_gradient((values, seen))
      return self.apply({"params": params}, *inputs, method="paint")

    adaptive = adaptive_weight(reconstruct, flat[path], felt, fooling)
    weight = self.critics.weight(step)
    telling, new = critic.telling(original, (shown + 1) / 2)
    fooled = fooling(shown)
    parts = {
      "model": liked + weight * adaptive * fooled,
      "discriminator": jnp.where(weight > 0, telling, 0.0),
    }
    metrics |= {
      "felt": liked,
      "adversarial": fooled,
      "discriminator": telling,
      "adaptive_weight": adaptive,
    }
    return parts, metrics, {"discriminator": new} if new else {}


@dataclasses.dataclass(frozen=True)
class TwoPasses(Stage):
  """What both stages of KARL have alike: the draws and the halting."""

  model: Config
  """Config of the tokenizer; its `num_tokens` is the budget of the second pass."""
  lengths: tuple[int, ...] = tuple(range(16, 384, 16))
  """Lengths of the first pass, all alike."""

  def remembered(self) -> Variables:
    return {"task": {"error_shares": first_shares()}}

  def draw(
    self, variables: Variables, rng: PRNGKeyArray, rows: int
  ) -> tuple[Int[Array, ""], Float[Array, "B"]]:
    """The length of the first pass, and the error that each image is to have in it."""
    length_rng, error_rng = jax.random.split(rng)
    length = jax.random.choice(length_rng, jnp.asarray(self.lengths, jnp.int32))
    shares = variables["task"]["error_shares"]
    bins = jax.random.categorical(error_rng, jnp.log(shares), shape=(rows,))
    return length, jnp.asarray(ERRORS, jnp.float32)[bins]

  def estimate(
    self,
    module: KARL,
    image: Array,
    glance: Any,
    error: Array,
    length: Int[Array, ""],
  ) -> tuple[Pass, dict[str, Array]]:
    """The first pass, and its halting losses: all of its tokens stay active."""
    longest = max(self.lengths)
    kept = prefix_mask(length, longest)
    found = module.run(image, glance, error, longest, kept, False, True)
    return found, halting_losses(found.halting, kept, kept)

  def tokenize(
    self,
    module: KARL,
    image: Array,
    glance: Any,
    error: Array,
    length: Int[Array, ""],
  ) -> tuple[Pass, dict[str, Array]]:
    """The second pass, and its halting losses: what the first had no need of is to halt."""
    budget = self.model.num_tokens
    found = module.run(image, glance, error, budget, None, True, True)
    kept, needed = jnp.ones(budget, bool), prefix_mask(length, budget)
    return found, halting_losses(found.halting, kept, needed)


@dataclasses.dataclass(frozen=True)
class Distillation(TwoPasses):
  """Stage 1: the base is frozen, and what it sees is to be predicted.

  Loss of each pass: the base's distances (cross-entropy and mean squared error of the soft
  code for a VQGAN) + the quantizer's + the halting's. Start the run from the base's weights
  (`init_from`).
  """

  @property
  def players(self) -> Mapping[str, str]:
    return {"model": r"(?!vqgan/|vae/)"}

  def losses(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray, step: Int[Array, ""]
  ) -> Losses:
    image = batch["image"]
    draw_rng, base_rng = jax.random.split(rng)
    length, wished = self.draw(variables, draw_rng, len(image))

    def both(module: KARL):
      glance = module.base.look(image, base_rng)
      first, halting = self.estimate(module, image, glance, wished, length)
      shown = jax.lax.stop_gradient(module.image(first))
      reached = reconstruction.l1(shown, image, "rows") / 2
      second, later = self.tokenize(module, image, glance, reached, length)
      apart = [
        module.base.distances(f.prediction, glance.target) for f in (first, second)
      ]
      return (first, halting | apart[0]), (second, later | apart[1]), reached

    *passes, reached = self.apply(variables, method=both)
    total, metrics = jnp.float32(0), {"l1": reached.mean()}
    for name, (found, terms) in zip(("estimate", "tokenize"), passes, strict=True):
      total += sum(terms.values()) + self.weigh(found.quantized.losses)
      logged = terms | found.quantized.losses | {"active_tokens": _count(found.active)}
      metrics |= {f"{name}_{key}": value for key, value in logged.items()}
    shares = next_shares(variables["task"]["error_shares"], reached)
    return Losses({"model": total}, metrics, {"task": {"error_shares": shares}})


@dataclasses.dataclass(frozen=True)
class Finetuning(FromPixels, TwoPasses):
  """Stage 2: everything but the base's codebook learns from pixels.

  Loss of each pass: L1 + the perceptual terms + w(step) * adaptive weight * adversarial loss +
  the quantizer's + the halting's. Also trains a model without a base from the start.
  """

  model: Config
  """Config of the tokenizer; its `num_tokens` is the budget of the second pass."""

  def losses(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray, step: Int[Array, ""]
  ) -> Losses:
    image = batch["image"]
    draw_rng, base_rng = jax.random.split(rng)
    length, wished = self.draw(variables, draw_rng, len(image))

    def both(module: KARL):
      glance = module.base.look(image, base_rng)
      first, halting = self.estimate(module, image, glance, wished, length)
      shown = module.image(first)
      reached = jax.lax.stop_gradient(reconstruction.l1(shown, image, "rows") / 2)
      second, later = self.tokenize(module, image, glance, reached, length)
      return (first, halting, shown), (second, later, module.image(second)), reached

    *passes, reached = self.apply(variables, method=both)
    players: dict[str, Array] = dict.fromkeys(self.players, jnp.zeros(()))
    metrics, updates = {"l1": reached.mean()}, {}
    for name, (found, terms, shown) in zip(
      ("estimate", "tokenize"), passes, strict=True
    ):
      here = {**variables, **updates}
      values = found.quantized.values.astype(image.dtype)
      # Both passes play against the critic of the first one's length.
      parts, seen, state = self.judge(
        here, image, shown, values, found.active, length, step
      )
      halting = jnp.stack(list(terms.values())).sum()
      parts["model"] = parts["model"] + halting + self.weigh(found.quantized.losses)
      players = {player: players[player] + parts[player] for player in players}
      logged = seen | terms | found.quantized.losses
      logged["active_tokens"] = _count(found.active)
      metrics |= {f"{name}_{key}": value for key, value in logged.items()}
      updates |= state
    shares = next_shares(variables["task"]["error_shares"], reached)
    updates["task"] = {"error_shares": shares}
    return Losses(players, metrics, updates, self.turns(step))


def _count(active: Bool[Array, "B T"]) -> Float[Array, ""]:
  """Active tokens of an image, on average."""
  return active.sum(1, dtype=jnp.float32).mean()
