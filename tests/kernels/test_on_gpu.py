"""The kernels on a GPU that is here: `JAX_PLATFORMS=cuda pytest -n 0 -m gpu`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.kernels.bit_packing import api as packing
from tokzoo.kernels.bit_packing import reference
from tokzoo.kernels.codebook_search.api import assign, search
from tokzoo.kernels.codebook_search.arg_specs import ARG_SPECS

pytestmark = [
  pytest.mark.gpu,
  pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU here"),
]

SCORES = 2**23  # that are compared; the search runs on all rows


def is_hopper():
  return str(jax.local_devices()[0].compute_capability) == "9.0"


def drawn(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def exact(x, codebook):
  """float64[H, N, K]: |c|^2 / 2 - x c, the distance but for what is the row's own."""
  x, codebook = x.astype(np.float64), codebook.astype(np.float64)
  half = np.sum(codebook**2, -1) / 2
  return half[:, None] - np.einsum("hnd,hkd->hnk", x, codebook)


@pytest.mark.parametrize("spec", ARG_SPECS, ids=lambda spec: spec.name)
def test_ids_are_those_of_float64(spec):
  x = drawn(spec.heads, spec.n, spec.d)
  codebook = drawn(spec.heads, spec.k, spec.d, seed=1)
  program = jax.jit(lambda *a: search(*a, top_k=spec.top_k))
  compiled = program.lower(x, codebook).compile()
  if is_hopper() and spec.top_k == 1:
    assert "mosaic_gpu" in compiled.as_text(), "the kernel was not taken"
  ids = np.asarray(compiled(x, codebook)).reshape(spec.heads, spec.n, spec.top_k)
  some = min(spec.n, SCORES // (spec.heads * spec.k))
  rows = np.random.default_rng(2).choice(spec.n, some, replace=False)
  scores = exact(x[:, rows], codebook)
  order = np.argsort(scores, -1, stable=True)[..., : spec.top_k + 1]
  nearest = np.take_along_axis(scores, order, -1)
  # float32 cannot tell codes nearer to each other than its rounding of the products.
  size = np.max(np.sum(np.abs(codebook), -1)) * np.max(np.abs(x))
  is_clear = np.all(np.diff(nearest, axis=-1) > 1e-7 * size, -1)
  assert is_clear.mean() > 0.9
  np.testing.assert_array_equal(ids[:, rows][is_clear], order[..., :-1][is_clear])


def test_statistics_are_the_sums_of_the_rows_of_each_code():
  x, codebook = drawn(4096, 64), drawn(512, 64, seed=1)
  ids, counted, summed = (np.asarray(a) for a in jax.jit(assign)(x, codebook))
  sums = np.zeros((512, 64))
  np.add.at(sums, ids, x.astype(np.float64))
  np.testing.assert_array_equal(counted, np.bincount(ids, minlength=512))
  np.testing.assert_allclose(summed, sums, atol=1e-4)


@pytest.mark.parametrize(("n", "bits", "width"), [(4096, 128, 64), (1000, 36, 17)])
def test_packed_products_are_those_of_the_signs(n, bits, width):
  latents, weights = drawn(n, bits), drawn(bits, width, seed=1)
  words = packing.pack(jnp.asarray(latents > 0))
  np.testing.assert_array_equal(words, reference.pack(jnp.asarray(latents > 0)))
  made = jax.jit(packing.packed_matmul)(words, weights)
  expected = np.where(latents > 0, 1.0, -1.0) @ weights.astype(np.float64)
  np.testing.assert_allclose(np.asarray(made), expected, atol=1e-4)
