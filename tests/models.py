"""Tiny models with random weights, and their checkpoint files: nothing is trained here."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tokzoo.generators.instella_t2i import ARConfig, DiffusionConfig
from tokzoo.systems import part_of_config
from tokzoo.tokenizers.image.instella_t2i import Config
from tokzoo.train import to_json
from tokzoo.weights import fingerprint
from tokzoo.weights.checkpoint import write_checkpoint

# 40 bits a token: two words, the second with spare places.
TOKENIZER = Config(
  image_size=8,
  channels=1,
  patch=4,
  num_tokens=2,
  bits=40,
  width=16,
  layers=1,
  head_dim=8,
  down_after=(),
  decoder_width=16,
  decoder_layers=1,
  decoder_head_dim=8,
  up_after=(),
  rope_dims=(4, 2, 2),
  span=None,
)

SIZES: dict[str, Any] = {
  "num_tokens": TOKENIZER.num_tokens,
  "bits": TOKENIZER.bits,
  "width": 16,
  "layers": 2,
  "head_dim": 8,
  "condition_width": 8,
  "num_classes": 3,
}
AR = ARConfig(**SIZES)
DIFFUSION = DiffusionConfig(**SIZES)


@functools.cache
def random_variables(config: Any, seed: int = 0) -> Any:
  """Variables drawn so that no bit is nearly a tie and no gate is zero."""
  key = jax.random.key(seed)
  module = config.build()
  rngs = {"params": key, "bits": key}
  if hasattr(config, "image_size"):
    side = config.image_size
    image = jnp.zeros((1, side, side, config.channels))
    like = jax.eval_shape(module.init, rngs, image)
  else:
    like = jax.eval_shape(
      lambda: module.init(rngs, *config.example(), method=module.loss)
    )
  draw = np.random.default_rng(seed)

  def random(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    fan_in = int(np.prod(leaf.shape[:-1])) or 1
    return draw.normal(size=leaf.shape, scale=1.5 / fan_in**0.5).astype(leaf.dtype)

  return jax.tree.map(random, like)


def save(path: Path, config: Any, seed: int = 0, **header: Any) -> Path:
  """Writes a random model as a checkpoint file."""
  system, part = part_of_config(config)
  about = {"system": system, "part": part, "config": to_json(config), **header}
  write_checkpoint(path, random_variables(config, seed), about)
  return path


def save_both(folder: Path, config: Any = AR, **header: Any) -> tuple[Path, Path]:
  """A tokenizer and a generator that was trained on its tokens, as files."""
  tokenizer = save(folder / "tokenizer.safetensors", TOKENIZER)
  origin = f"instella-t2i@{fingerprint(random_variables(TOKENIZER))[:12]}"
  header = {"sampling": {"guidance": 1.0, "temperature": 1.0}} | header
  generator = save(
    folder / "generator.safetensors",
    config,
    tokenizer=str(tokenizer),
    tokenizer_origin=origin,
    **header,
  )
  return tokenizer, generator
