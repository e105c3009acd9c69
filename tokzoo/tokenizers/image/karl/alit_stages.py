"""ALIT's training: all rollouts against the base's codes, then one at a time against pixels."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from tokzoo.contract import Batch, Losses, Variables
from tokzoo.tokenizers.image.karl.alit import ALIT, ALITConfig
from tokzoo.tokenizers.image.karl.critics import Critics
from tokzoo.tokenizers.image.karl.stages import FromPixels, Stage


@dataclasses.dataclass(frozen=True)
class ALITDistillation(Stage):
  """Stage 1: the base is frozen, and every rollout predicts what it sees.

  Loss: the sum over rollouts of weight * cross-entropy + mean squared error of the soft code +
  the quantizer's losses; for bases without codes the weight is that of the squared error.
  """

  model: ALITConfig
  """Config of the tokenizer."""
  rollout_weights: tuple[float, ...] = (2.5, 2.0, 1.5, 1.25, 1.0, 1.0, 1.0, 1.0)
  """Of each rollout's first distance."""

  @property
  def players(self) -> Mapping[str, str]:
    return {"model": r"(?!vqgan/|vae/)"}

  def losses(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray, step: Int[Array, ""]
  ) -> Losses:
    image, c = batch["image"], self.model
    draw_rng, base_rng = jax.random.split(rng)

    def run(module: ALIT):
      glance = module.base.look(image, base_rng)
      draws = jax.random.uniform(draw_rng, (c.rollouts, len(image), c.side**2))
      every = module.rollouts(image, glance, c.rollouts, draws, True)
      apart = [module.base.distances(r.prediction, glance.target) for r in every]
      return apart, [rollout.quantized.losses for rollout in every]

    apart, quantizer = self.apply(variables, method=run)
    total, metrics = jnp.float32(0), {}
    for i, weight in enumerate(self.rollout_weights[: c.rollouts]):
      first, *rest = apart[i].values()
      total += weight * first + sum(rest) + self.weigh(quantizer[i])
      logged = apart[i] | quantizer[i]
      metrics |= {f"rollout_{i}_{key}": value for key, value in logged.items()}
    return Losses({"model": total}, metrics)


@dataclasses.dataclass(frozen=True)
class ALITFinetuning(FromPixels):
  """Stage 2: the rollouts take turns; everything but the base's codebook learns from pixels.

  Loss of the rollout: L1 + the perceptual terms + w(step) * adaptive weight * adversarial loss
  + the quantizer's. Each rollout has a critic of its own.
  """

  model: ALITConfig
  """Config of the tokenizer."""

  def losses(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray, step: Int[Array, ""]
  ) -> Losses:
    image, c = batch["image"], self.model
    rollout = _turn(self.critics, step) % c.rollouts

    def run(module: ALIT):
      glance = module.base.look(image, rng)
      latents, kept = module.latents_after(image, glance, rollout)
      quantized, prediction = module.read(latents, kept, True)
      return quantized, kept, module.image(prediction)

    quantized, kept, shown = self.apply(variables, method=run)
    num_tokens = (rollout + 1) * c.tokens_per_rollout
    values = quantized.values.astype(image.dtype)
    players, metrics, updates = self.judge(
      variables, image, shown, values, kept, num_tokens, step
    )
    players["model"] = players["model"] + self.weigh(quantized.losses)
    return Losses(players, metrics | quantized.losses, dict(updates), self.turns(step))


def _turn(critics: Critics | None, step: Int[Array, ""]) -> Int[Array, ""]:
  """How often the model has moved: the next rollout's turn comes when it does."""
  if critics is None or critics.cycle == 1:
    return step
  starts = [first for first, weight in critics.weights if weight > 0]
  start = min(starts) if starts else jnp.iinfo(jnp.int32).max
  before: Array = jnp.minimum(step, start)
  return before + (step // critics.cycle - before // critics.cycle)
