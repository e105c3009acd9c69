"""How many training steps fit the minutes, on this machine."""

import dataclasses
import time

import jax
import jax.numpy as jnp

OVERHEAD_SECONDS = 60.0
"""Compilation, evaluation, the report and saving on the machine of reference."""
REFERENCE_GFLOPS = 150.0
"""float32 matrix product of 512 on the machine of reference: two cores."""

# Seconds per step on the machine of reference, and the share of the training time.
_PARTS = {"photos": (0.075, 0.62), "digits": (0.020, 0.30), "generator": (0.025, 0.08)}
_LEAST = {"photos": 100, "digits": 200, "generator": 100}
# More steps of the generator would learn the digits by heart.
_MOST = {"photos": 20_000, "digits": 10_000, "generator": 400}


@dataclasses.dataclass(frozen=True)
class Steps:
  """Training steps of each part."""

  photos: int
  digits: int
  generator: int


def steps_for(minutes: float, gflops: float) -> Steps:
  """Steps that fit `minutes` in all. A slower machine takes fewer; a faster one ends sooner.

  Args:
    minutes: for everything, compilation included.
    gflops: what `measure_gflops` found.
  """
  speed = min(gflops / REFERENCE_GFLOPS, 1.0)
  training = max(60 * minutes - OVERHEAD_SECONDS / max(speed, 0.3), 15.0)
  counts = {}
  for name, (seconds, share) in _PARTS.items():
    fitting = training * share * speed / seconds
    counts[name] = int(min(max(fitting, _LEAST[name]), _MOST[name]) // 10 * 10)
  return Steps(**counts)


def measure_gflops() -> float:
  """Speed of a float32 matrix product on the default device, best of a few, in GFLOP/s."""
  side = 512
  x = jnp.ones((side, side), jnp.float32)
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  best = float("inf")
  for _ in range(8):
    start = time.perf_counter()
    for _ in range(4):
      y = product(x)
    y.block_until_ready()
    best = min(best, (time.perf_counter() - start) / 4)
  return 2 * side**3 / best / 1e9
