"""The Pallas kernels of codebook search, run as programs on the CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.kernels.codebook_search import gpu, reference, split, tpu
from tokzoo.kernels.codebook_search.arg_specs import ARG_SPECS
from tokzoo.kernels.dispatch import Unsupported

KERNELS = {"tpu": tpu.search, "gpu": gpu.search}

# H, N, K, D. The interpreter of the GPU's barriers and copies takes seconds.
SHAPES = [
  ("tpu", (1, 1, 1, 1)),
  ("tpu", (2, 130, 300, 5)),
  ("tpu", (3, 5, 2, 128)),
  ("tpu", (1, 33, 1025, 64)),
  ("tpu", (1, 7, 600, 768)),
  ("tpu", (1, 9, 130, 1500)),
  ("tpu", (1, 4, 2**18, 2)),
  ("gpu", (1, 1, 1, 1)),
  ("gpu", (2, 130, 300, 5)),
  ("gpu", (1, 3, 513, 70)),
  ("gpu", (1, 3, 300, 200)),
  pytest.param("gpu", (1, 3, 260, 768), marks=pytest.mark.slow),
  pytest.param("gpu", (1, 4, 2**18, 2), marks=pytest.mark.slow),
]


def run(kernel: str, *args, top_k: int = 1):
  return KERNELS[kernel](*args, top_k=top_k, interpret=True)


def drawn(h, n, k, d, seed=0):
  """Small whole numbers: every score is exact, and many are equal."""
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.integers(-3, 4, (h, n, d)), jnp.float32)
  codebook = jnp.asarray(rng.integers(-3, 4, (h, k, d)), jnp.float32)
  bias = jnp.sum(codebook**2, axis=-1) / 2
  return x, codebook, bias.at[:, 1::7].set(jnp.inf)


def assert_as_the_reference(kernel, args, top_k=1):
  ids, scores = run(kernel, *args, top_k=top_k)
  expected_ids, expected = reference.search(*args, top_k=top_k)
  assert ids.dtype == jnp.int32 and scores.dtype == jnp.float32
  np.testing.assert_array_equal(np.asarray(scores), np.asarray(expected))
  is_found = np.asarray(expected) > -np.inf
  np.testing.assert_array_equal(np.asarray(ids)[is_found], expected_ids[is_found])
  assert np.all((np.asarray(ids) >= 0) & (np.asarray(ids) < args[1].shape[1]))


@pytest.mark.parametrize(("kernel", "shape"), SHAPES)
def test_finds_what_the_reference_finds_lowest_id_first(kernel, shape):
  assert_as_the_reference(kernel, drawn(*shape))


@pytest.mark.parametrize(
  ("shape", "top_k"), [((1, 20, 300, 6), 3), ((2, 9, 16, 4), 16), ((1, 5, 2100, 3), 5)]
)
def test_several_codes_a_row_by_falling_score(shape, top_k):
  assert_as_the_reference("tpu", drawn(*shape), top_k)


@pytest.mark.parametrize("kernel", KERNELS)
def test_equal_codes_and_none_at_all(kernel):
  x, codebook, bias = drawn(1, 4, 260, 3)
  same = jnp.ones_like(codebook)
  ids, _ = run(kernel, x, same, jnp.zeros_like(bias).at[0, :200].set(jnp.inf))
  np.testing.assert_array_equal(np.asarray(ids), 200)
  _, scores = run(kernel, x, same, jnp.full_like(bias, jnp.inf))
  np.testing.assert_array_equal(np.asarray(scores), -np.inf)


def close_codes(n=64, k=512, d=64):
  """Codes that differ by a few parts in ten thousand of their length."""
  rng = np.random.default_rng(0)
  center = rng.standard_normal(d)
  x = (center + 0.3 * rng.standard_normal((1, n, d))).astype(np.float32)
  codebook = (center + 3e-3 * rng.standard_normal((1, k, d))).astype(np.float32)
  return x, codebook


def exact_scores(x, codebook):
  return np.einsum("hnd,hkd->hnk", x.astype(np.float64), codebook.astype(np.float64))


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_ids_where_bf16_gives_others(kernel):
  x, codebook = close_codes()
  exact = exact_scores(x, codebook)
  ids, scores = run(kernel, x, codebook, np.zeros((1, 512), np.float32))
  right = exact.argmax(-1)
  best, second = np.sort(exact, axis=-1)[..., :-3:-1].transpose(2, 0, 1)
  size = np.einsum("hnd,hkd->hnk", np.abs(x), np.abs(codebook)).max(-1)
  is_clear = best - second > 1e-6 * size
  assert is_clear.mean() > 0.9
  np.testing.assert_array_equal(np.asarray(ids)[..., 0][is_clear], right[is_clear])
  np.testing.assert_allclose(np.asarray(scores)[..., 0], best, rtol=1e-6)

  # What the matrix units do by default: both sides rounded to bf16, or to TF32.
  for bits, flipped in ((7, 0.3), (10, 0.03)):
    rounded = (np.asarray(jax.lax.reduce_precision(a, 8, bits)) for a in (x, codebook))
    assert (exact_scores(*rounded).argmax(-1) != right)[is_clear].mean() > flipped


def test_three_bf16_hold_a_float32():
  rng = np.random.default_rng(0)
  x = rng.standard_normal(20_000) * 2.0 ** rng.integers(-90, 120, 20_000)
  x = np.concatenate([x, [0, 1, -1, 1 + 2.0**-23, 1 - 2.0**-24, 2.0**127]])
  x = x.astype(np.float32)
  parts = [np.asarray(p).astype(np.float64) for p in split.thirds(jnp.asarray(x))]
  np.testing.assert_array_equal(sum(parts), x)
  assert np.all(np.abs(parts[1]) <= 2.0**-8 * np.abs(x))
  assert np.all(np.abs(parts[2]) <= 2.0**-16 * np.abs(x))


def test_the_error_of_six_products_is_within_its_bound():
  x, codebook = (a[0] for a in close_codes())
  factors = (split.left(jnp.asarray(x)), split.right(jnp.asarray(codebook)))
  exact = exact_scores(x[None], codebook[None])[0]
  size = np.abs(x).astype(np.float64) @ np.abs(codebook).T.astype(np.float64)
  # What is left out, apart from the rounding of the sum.
  kept = np.matmul(
    *(np.asarray(f).astype(np.float64) for f in (factors[0], factors[1].T))
  )
  assert np.max(np.abs(kept - exact) / size) < 2.0**-22.9
  summed = np.asarray(
    jnp.matmul(factors[0], factors[1].T, preferred_element_type=jnp.float32)
  )
  bound = 2.0**-22.9 + 2 * 6 * 64 * 2.0**-24
  assert np.max(np.abs(summed - exact) / size) < bound
  # Three products, a common shortcut, are a hundred times as far off.
  three = [np.asarray(f).astype(np.float64) for f in factors]
  three = three[0][:, 192:] @ three[1][:, 192:].T
  assert np.max(np.abs(three - exact) / size) > 50 * np.max(np.abs(kept - exact) / size)


def test_what_a_kernel_is_not_made_for_it_says():
  x, codebook, bias = drawn(1, 3, 4, 5)
  with pytest.raises(Unsupported, match="one code a row, not 2"):
    gpu.search(x, codebook, bias, top_k=2)
  with pytest.raises(Unsupported, match="up to 1536 features, not 1537"):
    tpu.search(*drawn(1, 2, 2, 1537), top_k=1)


def test_an_older_gpu_is_told_in_a_sentence(monkeypatch):
  class Ampere:
    compute_capability = "8.0"

  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "local_devices", lambda: [Ampere()])
  with pytest.raises(Unsupported, match=r"compute capability 9.0\), this one has 8.0"):
    gpu.search(*drawn(1, 3, 4, 5), top_k=1)


@pytest.mark.parametrize("features", [1, 8, 16, 17, 64, 128, 150, 256, 768, 2048])
def test_tiles_fit_the_shared_memory_of_a_block(features):
  tiles = gpu.Tiles.of(features)
  rows = 2 * tiles.rows
  of_x = rows * (tiles.chunks if tiles.is_resident else tiles.stages)
  numbers = 3 * tiles.features * (of_x + tiles.stages * tiles.codes)
  assert tiles.stages >= 2 and tiles.chunks * tiles.features >= features
  assert 2 * numbers + 4 * tiles.stages * tiles.codes + 8 * rows < 227 * 1024


def test_specs_have_names_of_their_own():
  assert len({spec.name for spec in ARG_SPECS}) == len(ARG_SPECS)
  spec = ARG_SPECS[0]
  found = jax.eval_shape(
    functools.partial(reference.search, top_k=spec.top_k), *spec.shapes
  )
  assert found[0].shape == (spec.heads, spec.n, spec.top_k)
