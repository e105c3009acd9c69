"""Tiny real tasks, metrics and data for the trainer's tests.

A linear autoencoder with a moving codebook of means, and a two-player game on the same
parameters; data made from its index alone, so that any process can make any row.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from tokzoo.contract import Losses
from tokzoo.data.config import DataConfig
from tokzoo.train import Evaluator, Optimizer, Recipe

D = 8


class Block(nn.Module):
  """One layer whose output is named, as the blocks of real models are."""

  features: int

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.features, dtype=x.dtype)(jnp.tanh(x))
    return checkpoint_name(x, "block")


class AutoEncoder(nn.Module):
  """[B, D] -> [B, D], with the running mean of its latents in the collection `codebook`."""

  hidden: int = 4
  depth: int = 2

  @nn.compact
  def __call__(self, x, train: bool = False):
    z = nn.Dense(self.hidden, name="encoder", dtype=x.dtype)(x)
    for index in range(self.depth):
      z = Block(self.hidden, name=f"blocks_{index}")(z)
    mean = self.variable("codebook", "mean", jnp.zeros, (self.hidden,), jnp.float32)
    if train and not self.is_initializing():
      mean.value = 0.9 * mean.value + 0.1 * z.astype(jnp.float32).mean(axis=0)
    z = z + jax.lax.stop_gradient(mean.value)[None].astype(z.dtype)
    return nn.Dense(x.shape[-1], name="decoder", dtype=x.dtype)(z)


@struct.dataclass
class Mean:
  """Mean over the rows that count."""

  total: Any
  count: Any

  def merge(self, other):
    return Mean(self.total + other.total, self.count + other.count)

  def compute(self):
    return self.total / self.count


@dataclasses.dataclass(frozen=True)
class Linear:
  """Mean squared error of `AutoEncoder`."""

  model: AutoEncoder = dataclasses.field(default_factory=AutoEncoder)
  noise: float = 0.0
  poison: int = -1
  """Step whose loss becomes NaN."""

  @property
  def players(self):
    return {"model": ".*"}

  def init(self, rng, batch):
    return self.model.init(rng, batch["x"])

  def losses(self, variables, batch, rng, step):
    x = batch["x"]
    noisy = x + self.noise * jax.random.normal(rng, x.shape, x.dtype)
    out, updates = self.model.apply(variables, noisy, True, mutable=["codebook"])
    error = jnp.square((out - x).astype(jnp.float32)).mean()
    loss = jnp.where(step == self.poison, jnp.float32(jnp.nan), error)
    return Losses({"model": loss}, {"error": error}, dict(updates))

  def evaluate(self, variables, batch, rng):
    out = self.model.apply(variables, batch["x"])
    error = jnp.square(out - batch["x"]).mean(axis=-1)
    valid = batch["valid"].astype(jnp.float32)
    return {"mse": Mean((error * valid).sum(), valid.sum())}

  def pictures(self, variables, batch, rng):
    return {}


@dataclasses.dataclass(frozen=True)
class Drawn(Linear):
  """`Linear` that draws its rows over their reconstructions."""

  def pictures(self, variables, batch, rng):
    out = self.model.apply(variables, batch["x"])
    return {"rows": jnp.stack([batch["x"], out], axis=1)[..., None]}


@dataclasses.dataclass(frozen=True)
class Game(Linear):
  """The encoder and decoder play against each other: two players, two losses."""

  @property
  def players(self):
    return {"critic": "decoder", "model": ".*"}

  def losses(self, variables, batch, rng, step):
    found = Linear.losses(self, variables, batch, rng, step)
    loss = found.players["model"]
    return found.replace(players={"model": loss, "critic": -0.1 * loss})


class Rows:
  """Training rows by batch number; the state is that number."""

  def __init__(self, batch_size: int, rows: slice | None = None, seed: int = 0):
    self.batch_size, self.rows, self.seed, self.taken = batch_size, rows, seed, 0

  def __next__(self):
    x = make_rows(self.seed, self.taken, self.batch_size)
    self.taken += 1
    return {"x": x[self.rows or slice(None)], "key": np.array(["a"] * len(x))}

  def get_state(self):
    return {"taken": self.taken}

  def set_state(self, state):
    self.taken = state["taken"]


def make_rows(seed: int, batch: int, count: int) -> np.ndarray:
  """float32[count, D] in [-1, 1] that lie near a line."""
  rng = np.random.default_rng((seed, batch))
  along = rng.uniform(-1, 1, (count, 1))
  noise = 0.1 * rng.uniform(-1, 1, (count, D))
  return np.clip(along * np.linspace(-1, 1, D) + noise, -1, 1).astype(np.float32)


def held_out(batch_size: int = 8, total: int = 20, rows: slice | None = None):
  """Evaluation batches: the last one is padded."""

  def batches():
    x = make_rows(99, 0, total)
    for start in range(0, total, batch_size):
      part = x[start : start + batch_size]
      valid = np.arange(batch_size) < len(part)
      part = np.concatenate(
        [part, np.full((batch_size - len(part), D), 7.0, np.float32)]
      )
      yield {"x": part[rows or slice(None)], "valid": valid[rows or slice(None)]}

  return batches


def make_recipe(**changes: Any) -> Recipe:
  """A recipe of `Linear` that runs in a second."""
  base = Recipe(
    system="linear",
    name="nano",
    task=Linear(),
    data=DataConfig(),
    batch_size=8,
    steps=12,
    optimizers={"model": Optimizer(peak_lr=1e-2)},
    evaluators={"held_out": Evaluator(DataConfig())},
    log_every=4,
    save_every=4,
  )
  return dataclasses.replace(base, **changes)
