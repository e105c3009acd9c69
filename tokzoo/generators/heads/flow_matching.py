"""A flow-matching head: draws a continuous token given a state of the backbone.

Lipman et al., "Flow Matching for Generative Modeling" (arXiv 2210.02747), the optimal-transport
path; the network is that of MAR's diffusion loss (Li et al., arXiv 2406.11838), an MLP whose
blocks are modulated by time and state. Times run from noise (s = 0) to data (s = 1), the other way
round than in `tokzoo/nn/flow_matching.py`:

  x_s = (1 - (1 - sigma) s) x_0 + s x_1,   x_0 ~ N(0, 1),   u = x_1 - (1 - sigma) x_0

Noise, path and integration are float32 whatever the model's dtype.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

_TIME_FEATURES = 256


class FlowHead(nn.Module):
  """A vector field over tokens of m features.

  features:  m
  width:     w of the MLP
  blocks:    residual blocks
  sigma:     width of the path at the data
  """

  features: int
  width: int = 512
  blocks: int = 3
  sigma: float = 1e-4

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "... m"],
    time: Float[Array, "..."],
    state: Float[Array, "... D"],
  ) -> Float[Array, "... m"]:
    """The velocity at x_s.

    Args:
      x: points on the path.
      time: s of each, in [0, 1].
      state: what the token is drawn given.
    """
    dtype = state.dtype
    angles = (
      time[..., None]
      * 1000.0
      * jnp.asarray(_frequencies(), jnp.float32)[(None,) * time.ndim]
    )
    waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1).astype(dtype)
    hidden = nn.silu(nn.Dense(self.width, name="time_in")(waves))
    given = nn.Dense(self.width, name="time_out")(hidden)
    given = nn.silu(given + nn.Dense(self.width, name="state_in")(state))
    h = nn.Dense(self.width, name="x_in")(x.astype(dtype))
    for i in range(self.blocks):
      shift, scale, gate = jnp.split(
        _modulation(3 * self.width, f"mod_{i}")(given), 3, -1
      )
      inner = _norm(f"norm_{i}")(h) * (1 + scale) + shift
      inner = nn.silu(nn.Dense(self.width, name=f"up_{i}")(inner))
      h = h + gate * nn.Dense(self.width, name=f"down_{i}")(inner)
    shift, scale = jnp.split(_modulation(2 * self.width, "mod_out")(given), 2, -1)
    h = _norm("norm_out")(h) * (1 + scale) + shift
    zero = nn.initializers.zeros
    made = nn.Dense(self.features, kernel_init=zero, name="x_out")(h)
    return made.astype(jnp.float32)

  def loss(
    self,
    x: Float[Array, "... m"],
    state: Float[Array, "... D"],
    rng: PRNGKeyArray,
    draws: int = 4,
  ) -> Float[Array, "..."]:
    """Mean squared error of the velocity for each token, the mean over draws of time and noise.

    Args:
      x: tokens, of unit scale.
      state: of each.
      rng: of times and noise.
      draws: for each token: the head is cheap beside the backbone.
    """
    time_rng, noise_rng = jax.random.split(rng)
    shape = (draws, *x.shape[:-1])
    time = jax.random.uniform(time_rng, shape)
    noise = jax.random.normal(noise_rng, (*shape, self.features))
    data = jnp.broadcast_to(x.astype(jnp.float32)[None], noise.shape)
    kept = 1 - self.sigma
    point = (1 - kept * time[..., None]) * noise + time[..., None] * data
    states = jnp.broadcast_to(state[None], (draws, *state.shape))
    velocity = self(point, time, states)
    return jnp.square(velocity - (data - kept * noise)).mean((0, -1))

  def sample(
    self,
    state: Float[Array, "... D"],
    rng: PRNGKeyArray,
    steps: int = 10,
    guidance: float = 1.0,
    null: Float[Array, "... D"] | None = None,
  ) -> Float[Array, "... m"]:
    """Tokens by Euler's method from noise.

    Args:
      state: what each is drawn given.
      rng: of the noise.
      steps: of Euler.
      guidance: 1: none; more: away from what `null` would give.
      null: the state that stands for no condition; needed with guidance.
    """

    def step(head: "FlowHead", x: Array, now: Array) -> tuple[Array, None]:
      time = jnp.full(state.shape[:-1], now, jnp.float32)
      velocity = head(x, time, state)
      if null is not None and guidance != 1.0:
        plain = head(x, time, jnp.broadcast_to(null, state.shape))
        velocity = plain + guidance * (velocity - plain)
      return x + velocity / steps, None

    x = jax.random.normal(rng, (*state.shape[:-1], self.features))
    times = jnp.asarray(np.arange(steps) / steps, jnp.float32)
    # A loop of one program, whatever the number of steps.
    run = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
    return run(self, x, times)[0]


def _modulation(features: int, name: str) -> nn.Dense:
  """adaLN-zero: a block does nothing at first."""
  return nn.Dense(features, kernel_init=nn.initializers.zeros, name=name)


def _norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(1e-6, use_bias=False, use_scale=False, name=name)


def _frequencies() -> np.ndarray:
  """Of the time's waves, from 1 down to 1 / 10,000."""
  half = _TIME_FEATURES // 2
  return np.exp(-np.log(10_000) * np.arange(half) / half)
