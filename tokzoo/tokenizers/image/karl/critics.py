"""The discriminators of KARL's and ALIT's second stage: one for each range of token counts.

A step plays against one of them, the one for its number of tokens: with PatchGANs of the
source's sizes, 8 of them for 1 to 63, 64 to 95, ... and 256 tokens or more. Their parameters
are stacked along a first axis, `params/discriminator`; their running statistics are the
collection `discriminator`.

Difference from the source: one optimizer holds them all, so the momentum of those that do not
play still moves them a little.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tokzoo.losses import hinge_discriminator, hinge_generator
from tokzoo.nn.discriminator import PatchGAN


@dataclasses.dataclass(frozen=True)
class Critics:
  """Discriminators, and when they play."""

  network: Annotated[Any, tyro.conf.Fixed] = PatchGAN()  # noqa: RUF009
  """A Linen module, pictures to logits."""
  count: int = 8
  """How many there are."""
  tokens_each: int = 32
  """Tokens that each one's range is wide."""
  weights: tuple[tuple[int, float], ...] = ((0, 0.0), (1, 0.2))
  """From which step on which weight (before the adaptive one)."""
  cycle: int = 9
  """Once the weight is above 0, the model moves in the last step of each cycle and the
  discriminators in all others, as in the source; 1: both always move."""

  def weight(self, step: Int[Array, ""]) -> Float[Array, ""]:
    """Of the generator's adversarial loss at a step."""
    weight = jnp.float32(0)
    for first, value in self.weights:
      weight = jnp.where(step >= first, jnp.float32(value), weight)
    return weight

  def turns(self, step: Int[Array, ""]) -> dict[str, Bool[Array, ""]]:
    """Who moves at a step."""
    is_on = self.weight(step) > 0
    if self.cycle == 1:
      return {"discriminator": is_on, "model": jnp.ones((), bool)}
    is_last = (step + 1) % self.cycle == 0
    return {"discriminator": is_on & ~is_last, "model": ~is_on | is_last}

  def choose(self, num_tokens: Int[Array, ""] | int) -> Int[Array, ""]:
    """Which one plays against pictures of so many tokens."""
    index = jnp.asarray(num_tokens, jnp.int32) // self.tokens_each - 1
    return jnp.clip(index, 0, self.count - 1)

  def start(
    self, rng: PRNGKeyArray, image: Float[Array, "B H W C"]
  ) -> tuple[Any, dict[str, Any]]:
    """Parameters and running statistics of all, stacked."""
    keys = jax.random.split(rng, self.count)
    variables = dict(jax.vmap(lambda key: self.network.init(key, image))(keys))
    return variables.pop("params"), variables


@dataclasses.dataclass(frozen=True)
class Critic:
  """The one that plays in a step.

  critics:    the settings
  index:      which one
  variables:  of all, stacked: `params` and running statistics
  """

  critics: Critics
  index: Int[Array, ""]
  variables: dict[str, Any]

  def fooling(self, shown: Float[Array, "B H W C"]) -> Float[Array, ""]:
    """The generator's loss: -D(shown)."""
    return hinge_generator(self._judge(shown)[0])

  def telling(
    self, image: Float[Array, "B H W C"], shown: Float[Array, "B H W C"]
  ) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The discriminator's loss, and the new running statistics of all."""
    real, _ = self._judge(image)
    fake, state = self._judge(jax.lax.stop_gradient(shown))
    state = jax.lax.stop_gradient(state)
    old = {name: self.variables[name] for name in state}
    new = jax.tree.map(lambda all, one: all.at[self.index].set(one), old, state)
    return hinge_discriminator(real, fake), new

  def _judge(self, shown: Array) -> tuple[Array, dict[str, Any]]:
    own = jax.tree.map(lambda leaf: leaf[self.index], self.variables)
    kept = [name for name in own if name != "params"]
    if not kept:
      return jnp.asarray(self.critics.network.apply(own, shown)), {}
    logits, state = self.critics.network.apply(own, shown, mutable=kept)
    return jnp.asarray(logits), dict(state)
