"""Flow-Omni (arXiv 2412.04917): continuous speech tokens, drawn by a flow-matching head.

  tokzoo train experiments/audio/flow_omni.py --recipe nano
  tokzoo reproduce flow-omni

Lab record
  nano        mel frames of synthesised tones, 2 CPU cores
  claims      the head by itself, on data whose answer is known: both modes are drawn (three of three
              seeds); ten Euler steps leave 0.3 to 0.8 % of the distance that one step has, but not
              within 5 % of fifty (none of three)

No code, weights, sizes or training data are public: there is no published configuration. What is
measured is the mechanism (its sheet, section 5), on toys.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tokzoo.data.packaged import sound_crops
from tokzoo.generators.flow_omni import Config
from tokzoo.generators.heads import FlowHead
from tokzoo.train import Evaluator, Optimizer, Recipe
from tokzoo.train.claims import Claim
from tokzoo.train.tasks import Generation

SYSTEM = "flow-omni"

SMALL = Config(
  mels=20,
  sample_rate_hz=8_000,
  hop=160,
  n_fft=512,
  vocab=16,
  feature_dim=8,
  width=64,
  layers=2,
  heads=4,
  head_width=64,
  head_blocks=2,
)
"""50 frames a second of 20 bins."""


def nano() -> Recipe:
  """Frames of half a second of synthesised sound, without text."""
  return Recipe(
    system=SYSTEM,
    name="nano",
    task=Generation(model=SMALL),
    data=sound_crops("train", 8_000, 0.5),
    batch_size=16,
    steps=200,
    optimizers={"model": Optimizer(peak_lr=2e-3, warmup_steps=20, clip_norm=1.0)},
    evaluators={"held_out": Evaluator(data=sound_crops("test", 8_000, 0.5), batches=2)},
    save_every=200,
  )


RECIPES = {"nano": nano}

# ---------------------------------------------------------------- claims

_STEPS = 1_500
_BATCH = 256
_DRAWS = 1_000
_MODES = np.array([[1.0, 0.5], [-0.8, 0.6]], np.float32)
"""Two frames that are as likely as each other, given the same state."""


@functools.cache
def _two_modes(seed: int) -> tuple[FlowHead, dict]:
  """A head that is trained to answer one state with either mode."""
  return _fitted(seed, lambda draw, n: _MODES[draw.integers(2, size=n)])


def _fitted(seed: int, data) -> tuple[FlowHead, dict]:
  """A head trained on draws of `data` at a constant state."""
  head, draw = FlowHead(features=2, width=64, blocks=2), np.random.default_rng(seed)
  state = jnp.ones((_BATCH, 4))
  variables = head.init(
    jax.random.key(seed), jnp.zeros((1, 2)), jnp.zeros(1), state[:1]
  )
  schedule = optax.cosine_decay_schedule(3e-3, _STEPS)
  optimizer = optax.adam(schedule)
  kept = optimizer.init(variables)

  @jax.jit
  def step(variables, kept, x, rng):
    def loss(variables):
      return head.apply(variables, x, state, rng, 4, method=head.loss).mean()

    change, kept = optimizer.update(jax.grad(loss)(variables), kept, variables)
    return optax.apply_updates(variables, change), kept

  for i in range(_STEPS):
    x = jnp.asarray(data(draw, _BATCH), jnp.float32)
    variables, kept = step(
      variables, kept, x, jax.random.fold_in(jax.random.key(seed), i)
    )
  return head, variables


def _drawn(
  head: FlowHead, variables: dict, seed: int, steps: int, num: int
) -> np.ndarray:
  run = jax.jit(
    lambda v, key: head.apply(v, jnp.ones((num, 4)), key, steps, method=head.sample)
  )
  return np.asarray(run(variables, jax.random.key(seed + 100)))


def both_modes(seed: int) -> dict[str, float]:
  """Shares of draws near each mode, and of the mean, which least squares would answer."""
  made = _drawn(*_two_modes(seed), seed, 50, _DRAWS)
  distances = np.linalg.norm(made[:, None] - _MODES[None], axis=-1)
  near = (distances < 0.1).mean(0)
  mean = np.linalg.norm(_MODES.mean(0)[None] - _MODES, axis=-1)
  return {
    "near the first mode": float(near[0]),
    "near the second mode": float(near[1]),
    "of a head of least squares": float((mean < 0.1).mean()),
  }


def _spiral(draw: np.random.Generator, num: int) -> np.ndarray:
  """Points on a spiral: a distribution that no few Gaussians are."""
  turn = 3.0 * np.sqrt(draw.uniform(size=num))
  ring = np.stack([np.cos(2 * turn), np.sin(2 * turn)], 1) * turn[:, None] / 2
  return (ring + 0.05 * draw.normal(size=(num, 2))).astype(np.float32)


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
  """2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo), 0 where both are alike."""

  def mean(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a[:, None] - b[None], axis=-1).mean())

  return 2 * mean(x, y) - mean(x, x) - mean(y, y)


def euler_steps(seed: int) -> dict[str, float]:
  """Energy distance to the data by steps of Euler."""
  head, variables = _fitted(seed, _spiral)
  data = _spiral(np.random.default_rng(seed + 1_000), 2 * _DRAWS)
  found = {}
  for steps in (1, 2, 5, 10, 50):
    made = _drawn(head, variables, seed, steps, 2 * _DRAWS)
    found[f"energy distance at {steps}"] = energy_distance(made, data)
  return found


_SHEET = "sheet of Flow-Omni, section 5; the mechanism of arXiv 2412.04917"

CLAIMS = (
  Claim(
    "Of two equally likely next frames the flow head draws both, 30 to 70 % each within 0.1 of a "
    "mode; least squares answers their mean",
    source=_SHEET,
    measure=both_modes,
    holds=lambda n: (
      all(0.3 <= n[f"near the {mode} mode"] <= 0.7 for mode in ("first", "second"))
      and n["of a head of least squares"] == 0
    ),
    setting=f"two frames of two bins, head of 64 features and 2 blocks, {_STEPS} steps of "
    f"{_BATCH}, {_DRAWS} draws of 50 Euler steps",
  ),
  Claim(
    "Ten Euler steps are enough: the energy distance is within 5 % of that at 50",
    source=_SHEET,
    measure=euler_steps,
    holds=lambda n: n["energy distance at 10"] <= 1.05 * n["energy distance at 50"],
    setting=f"a noisy spiral, the same head, {_STEPS} steps of {_BATCH}, {2 * _DRAWS} draws",
  ),
)

# Published rows; measured numbers never share a column with them.
TABLES = (
  {
    "what": "word error rate of spoken answers, Flow-Omni against Mini-Omni",
    "published": "8.81 against 10.84",
    "source": "arXiv 2412.04917 (by third parties' summaries; the test set is not named there)",
  },
)
