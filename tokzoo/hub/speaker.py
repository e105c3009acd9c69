"""A generator that makes its own tokens: frames of sound, of which it knows how they sound.

Its tokens are `values` float32[B, L, m] with a mask that ends where the sound does, and its own
origin: no tokenizer stands beside it.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tokzoo.errors import TokzooError
from tokzoo.hub.pretrained import Pretrained
from tokzoo.tokens import Origin, Tokens


class PretrainedSpeaker(Pretrained):
  """A generator of frames of sound.

  Its config has `check_condition(condition) -> condition` and `audio(values, rng)`.
  """

  @functools.cached_property
  def origin(self) -> Origin:
    """Stamped on every token that it makes."""
    return Origin(self.card.system, self.fingerprint)

  def sample(
    self, condition: Mapping[str, Any] | int = 1, seed: int = 0, **settings: Any
  ) -> Tokens:
    """Draws frames for every row of a condition.

    Args:
      condition: arrays by name, as the model takes them (Flow-Omni: `text` int[B, T],
        `features` float[B, F, A]); or how many sounds to make of no condition.
      seed: of every draw; the same seed and condition give the same frames.
      settings: in place of the card's sampling settings (frames, steps, guidance).

    Raises:
      TokzooError: a condition that does not fit, or a setting that the model does not have.
    """
    chosen = {**self.card.sampling, **settings}
    given = self.config.check_condition(condition)
    static = tuple(sorted(chosen.items()))
    try:
      tokens = self._sample(self.variables, jax.random.key(seed), given, static)
    except TypeError as error:
      if "unexpected keyword argument" not in str(error):
        raise
      raise TokzooError(
        f"{self.card.name} cannot be sampled with these settings ({error}): it has frames, "
        "steps and guidance."
      ) from error
    return tokens.replace(origin=self.origin)

  def decode(self, tokens: Tokens, seed: int = 0) -> list[Float[np.ndarray, "T C"]]:
    """Frames to sound, float32 in [-1, 1] (clipped), each as long as it is by its mask.

    Args:
      tokens: made by this very model.
      seed: of the phases.

    Raises:
      TokzooError: the tokens of another model, or tokens that are not sound.
    """
    tokens.check().require_origin(self.origin)
    waves = self._decode(tokens.values, jax.random.key(seed))
    mask = tokens.mask
    lengths = [tokens.length] * tokens.batch if mask is None else mask.sum(1)
    hop = self.config.hop
    return [
      np.clip(np.asarray(wave[: int(count) * hop], np.float32), -1, 1)
      for wave, count in zip(waves, lengths, strict=True)
    ]

  def generate(
    self, condition: Mapping[str, Any] | int = 1, seed: int = 0, **settings: Any
  ) -> list[Float[np.ndarray, "T C"]]:
    """Samples frames and makes them sound."""
    return self.decode(self.sample(condition, seed, **settings), seed)

  @functools.cached_property
  def _sample(self):
    def sample(variables, rng, condition, static):
      return self.module.apply(
        variables, rng, condition, **dict(static), method="sample"
      )

    return jax.jit(sample, static_argnums=3)

  @functools.cached_property
  def _decode(self):
    return jax.jit(lambda values, rng: self.config.audio(jnp.asarray(values), rng))
