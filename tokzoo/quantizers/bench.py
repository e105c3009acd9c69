"""A training step of vector quantization against vector-quantize-pytorch's.

Forward, losses, EMA update of the codebook and the gradient of the input, on the same shapes,
with the straight-through estimator in both.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tokzoo.kernels.racing import Row, race, torch_device
from tokzoo.quantizers.updates import Ema
from tokzoo.quantizers.vq import VectorQuantizer

SPECS = {"16k-8k-64": (16_384, 8_192, 64), "encodec-1k-128": (8_192, 1_024, 128)}
"""Name -> tokens N, codes K, features D."""


def bench(turns: int = 5) -> Iterator[Row]:
  """Every spec; without vector-quantize-pytorch there is nothing to compare with."""
  if importlib.util.find_spec("vector_quantize_pytorch") is None:
    return
  for name, (n, k, d) in SPECS.items():
    z = np.random.default_rng(0).standard_normal((1, n, d), np.float32)
    layer = VectorQuantizer(k, d, update=Ema(0.8))
    state = layer.init({"params": jax.random.key(0)}, jnp.asarray(z))
    ours = {"VectorQuantizer": (_step(layer), (state["codebook"], jnp.asarray(z)))}
    peers = {"vector-quantize-pytorch": _peer(z, k)}
    yield from race("vq_step", name, ours, peers, turns)


def _step(layer: VectorQuantizer) -> Callable[..., Any]:
  def step(codebook: Any, z: Array) -> Any:
    def loss(z: Array) -> tuple[Array, Any]:
      quantized, updates = layer.apply(
        {"codebook": codebook}, z, train=True, mutable=["codebook"]
      )
      total = jnp.sum(quantized.values) + quantized.losses["commitment"]
      return total, updates["codebook"]

    return jax.value_and_grad(loss, has_aux=True)(z)

  return step


def _peer(z: np.ndarray, k: int) -> Callable[[], Any]:
  import torch
  from vector_quantize_pytorch import VectorQuantize

  layer = VectorQuantize(
    dim=z.shape[2], codebook_size=k, decay=0.8, rotation_trick=False
  )
  layer = layer.to(torch_device()).train()
  rows = torch.from_numpy(z).to(torch_device()).requires_grad_()

  def run():
    rows.grad = None
    values, _, loss = layer(rows)
    (values.sum() + loss.sum()).backward()
    return rows.grad

  return run
