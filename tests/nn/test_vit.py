"""The ViT block's first values: as published, or as wide as a small model asks for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.tokenizers.image import karl, titok
from tokzoo.weights import flatten

SIZE = {"width": 64, "layers": 1, "heads": 2}
TITOK = titok.Config(
  image_size=8,
  patch=2,
  num_tokens=4,
  encoder=titok.Size(**SIZE),
  decoder=titok.Size(**SIZE),
  code_dim=32,
  is_legacy=False,
  pixels=None,
)
KARL = karl.Config(
  image_size=8,
  patch=2,
  num_tokens=4,
  max_tokens=6,
  positions=2,
  encoder=karl.Size(**SIZE),
  decoder=karl.Size(**SIZE),
  halting_width=64,
  code_dim=32,
  base=None,
)
ALIT = karl.ALITConfig(
  image_size=8,
  patch=2,
  num_tokens=4,
  tokens_per_rollout=2,
  encoder=karl.Size(**SIZE),
  decoder=karl.Size(**SIZE),
  code_dim=32,
  base=None,
)


@pytest.mark.parametrize("config", [TITOK, KARL, ALIT], ids=["titok", "karl", "alit"])
@pytest.mark.parametrize("std", [0.02, 0.1])
def test_every_linear_layer_starts_from_the_configured_deviation(config, std):
  module = dataclasses.replace(config, init_std=std).build()
  image = jnp.zeros((1, 8, 8, 3))
  rngs = {"params": jax.random.key(0), "bits": jax.random.key(0)}
  params = flatten(jax.jit(module.init)(rngs, image)["params"])
  found = {
    path: float(np.std(kernel))
    for path, kernel in params.items()
    if path.endswith("kernel") and kernel.ndim == 2 and "in_proj" not in path
  }
  assert len(found) >= 8
  for path, deviation in found.items():
    assert deviation == pytest.approx(std, rel=0.25), path
