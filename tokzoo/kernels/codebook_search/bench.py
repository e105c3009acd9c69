"""Codebook search against naive jax.numpy, torch, vector-quantize-pytorch and faiss."""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tokzoo.kernels.codebook_search.api import search
from tokzoo.kernels.codebook_search.arg_specs import ARG_SPECS, ArgSpec
from tokzoo.kernels.racing import Row, jitted, race, torch_device

PACKAGES = {
  "torch.cdist": "torch",
  "vector-quantize-pytorch": "vector_quantize_pytorch",
  "faiss": "faiss",
}
"""Peer -> the package that it needs, of the extra `bench`."""


_LARGEST = 2**32
"""Bytes of a matrix of distances up to which vector-quantize-pytorch runs: it makes several."""


def naive(
  x: Float[Array, "H N D"],
  codebook: Float[Array, "H K D"],
  top_k: int,
  precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> Int[Array, "H N T"]:
  """What most code does: the matrix of distances, and its smallest entries."""
  product = jnp.einsum("hnd,hkd->hnk", x, codebook, precision=precision)
  of_rows, of_codes = (jnp.sum(a * a, axis=-1) for a in (x, codebook))
  distances = of_rows[:, :, None] - 2 * product + of_codes[:, None, :]
  if top_k == 1:
    return jnp.argmin(distances, axis=-1, keepdims=True).astype(jnp.int32)
  return jax.lax.top_k(-distances, top_k)[1]


def bench(turns: int = 5, only: str | None = None) -> Iterator[Row]:
  """The specs of `ARG_SPECS`, on a CPU those that it gets through, against every peer that is
  installed and runs on the same device.

  Args:
    turns: how often each runs.
    only: the name of one spec.
  """
  for spec in ARG_SPECS:
    is_fit = spec.on_cpu or jax.default_backend() != "cpu"
    if spec.name == only or (only is None and is_fit):
      yield from _one(spec, turns)


def missing_peers() -> dict[str, str]:
  """Peers whose package is not installed, and its name."""
  return {
    peer: package
    for peer, package in PACKAGES.items()
    if importlib.util.find_spec(package) is None
  }


def _one(spec: ArgSpec, turns: int) -> list[Row]:
  draw = np.random.default_rng(0).standard_normal
  x, codebook = (
    draw((spec.heads, size, spec.d), np.float32) for size in (spec.n, spec.k)
  )
  arrays = (jnp.asarray(x), jnp.asarray(codebook))
  peers = {
    "naive jax.numpy": jitted(functools.partial(naive, top_k=spec.top_k), *arrays)
  }
  is_host = jax.default_backend() == "cpu"
  if not is_host:
    # A GPU's own way with float32, whose ids are not those of float32.
    peers["naive jax.numpy, TF32"] = jitted(
      functools.partial(naive, top_k=spec.top_k, precision=jax.lax.Precision.DEFAULT),
      *arrays,
    )
  for peer, package in PACKAGES.items():
    if peer == "faiss" and not is_host:
      continue  # its package for CPUs
    if importlib.util.find_spec(package) is not None:
      run = _PEERS[peer](x, codebook, spec.top_k)
      if run is not None:
        peers[peer] = run
  ours = functools.partial(search, top_k=spec.top_k)
  return race("codebook_search", spec.name, {"tokzoo": (ours, arrays)}, peers, turns)


def _torch(x: np.ndarray, codebook: np.ndarray, top_k: int) -> Callable[[], Any]:
  import torch

  rows, codes = (torch.from_numpy(a).to(torch_device()) for a in (x, codebook))

  def run():
    with torch.no_grad():
      distances = torch.cdist(rows, codes)
      if top_k == 1:
        return distances.argmin(-1)
      return distances.topk(top_k, largest=False)

  return run


def _vector_quantize_pytorch(
  x: np.ndarray, codebook: np.ndarray, top_k: int
) -> Callable[[], Any] | None:
  if top_k > 1 or len(x) > 1:
    return None  # it has no such search
  if 4 * x.shape[1] * codebook.shape[1] > _LARGEST:
    return None
  import torch
  from vector_quantize_pytorch import VectorQuantize

  layer = VectorQuantize(dim=x.shape[2], codebook_size=codebook.shape[1]).eval()
  layer._codebook.embed.data.copy_(torch.from_numpy(codebook))
  layer, rows = layer.to(torch_device()), torch.from_numpy(x).to(torch_device())

  def run():
    with torch.no_grad():
      return layer(rows)

  return run


def _faiss(x: np.ndarray, codebook: np.ndarray, top_k: int) -> Callable[[], Any]:
  import faiss

  indices = []
  for codes in codebook:
    indices.append(faiss.IndexFlatL2(codes.shape[1]))
    indices[-1].add(codes)
  return lambda: [
    index.search(rows, top_k) for index, rows in zip(indices, x, strict=True)
  ]


_PEERS = {
  "torch.cdist": _torch,
  "vector-quantize-pytorch": _vector_quantize_pytorch,
  "faiss": _faiss,
}
