"""Codebook search: against float64, at ties, on meshes, with bad input."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from tokzoo.errors import TokzooError
from tokzoo.kernels.codebook_search import assign, dispatch, search, xla
from tokzoo.machines import is_installed, topologies
from tokzoo.train.mesh import ambient, make_mesh
from tokzoo.train.recipe import MeshShape


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def exact(x, codebook, metric):
  """All distances in float64."""
  x, codebook = np.asarray(x, np.float64), np.asarray(codebook, np.float64)
  if metric == "euclidean":
    return ((x[:, None] - codebook[None]) ** 2).sum(-1)
  if metric == "cosine":
    x, codebook = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (x, codebook))
  return (metric == "cosine") - x @ codebook.T


def check(ids, distances, x, codebook, metric):
  """The ids are those of float64, except where it sees a tie of float32."""
  true = exact(x, codebook, metric)
  ids, distances = np.asarray(ids), np.asarray(distances)
  scale = 1e-5 * (1 + np.abs(true).max())
  chosen = np.take_along_axis(true, ids, 1)
  best = np.sort(true, axis=1)[:, : ids.shape[1]]
  np.testing.assert_allclose(chosen, best, rtol=0, atol=scale)
  np.testing.assert_allclose(distances, chosen, rtol=0, atol=scale)
  for row in ids:
    assert len(set(row.tolist())) == len(row)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize(
  "shape",
  [
    (1, 2, 1, 1),
    (7, 3, 5, 3),
    (130, 129, 7, 1),
    (129, 300, 8, 140),
    (300, 9000, 4, 2),
    (3, 10_000, 768, 1),
    (1500, 37, 3, 1),
  ],
  ids=str,
)
def test_nearest_codes(shape, metric):
  n, k, d, top_k = shape
  x, codebook = draw(n, d), draw(k, d, seed=1)
  ids, distances = search(x, codebook, metric=metric, top_k=top_k, with_distances=True)
  assert ids.dtype == jnp.int32 and ids.shape == (n, top_k)
  check(ids, distances, x, codebook, metric)
  assert (np.diff(np.asarray(distances), axis=1) >= 0).all()
  plain = search(x, codebook, metric=metric, top_k=top_k, implementation="reference")
  check(plain, distances, x, codebook, metric)


def test_the_largest_codebook():
  x, codebook = draw(5, 3), draw(2**18, 3, seed=1)
  ids, distances = search(x, codebook, with_distances=True)
  check(ids, distances, x, codebook, "euclidean")


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("top_k", [1, 5])
def test_the_lowest_id_wins_a_tie(implementation, top_k):
  # Small whole numbers have exact products, so that every tie is one to the last bit; the
  # second half of the codebook repeats the first, across chunks and blocks.
  rng = np.random.default_rng(0)
  x = rng.integers(-2, 3, (200, 3)).astype(np.float32)
  codebook = np.tile(rng.integers(-2, 3, (4500, 3)).astype(np.float32), (2, 1))
  ids = search(x, codebook, top_k=top_k, implementation=implementation)
  true = exact(x, codebook, "euclidean")
  np.testing.assert_array_equal(
    ids, np.argsort(true, axis=1, kind="stable")[:, :top_k].astype(np.int32)
  )


def test_large_blocks_for_accelerators_give_the_same():
  x, codebook = (jnp.asarray(draw(2, s, 9, seed=s)) for s in (300, 10_000))
  bias = jnp.sum(codebook * codebook, axis=-1) / 2
  large = jax.jit(functools.partial(xla.search_in_large_blocks, top_k=3))
  small = jax.jit(functools.partial(xla.search, top_k=3))
  np.testing.assert_array_equal(
    large(x, codebook, bias)[0], small(x, codebook, bias)[0]
  )


def test_heads_are_searched_each_in_its_codebook():
  x, codebook = draw(3, 40, 6), draw(3, 50, 6, seed=1)
  together = search(x, codebook, top_k=2)
  assert together.shape == (3, 40, 2)
  mapped = jax.vmap(functools.partial(search, top_k=2))(x, codebook)
  shared = jax.vmap(functools.partial(search, top_k=2), in_axes=(0, None))(
    x, codebook[0]
  )
  for head in range(3):
    alone = search(x[head], codebook[head], top_k=2)
    np.testing.assert_array_equal(together[head], alone)
    np.testing.assert_array_equal(mapped[head], alone)
    np.testing.assert_array_equal(shared[head], search(x[head], codebook[0], top_k=2))


def test_bfloat16_is_compared_in_float32():
  x, codebook = (jnp.asarray(draw(50, 16, seed=s), jnp.bfloat16) for s in (0, 1))
  widened = search(x.astype(jnp.float32), codebook.astype(jnp.float32))
  np.testing.assert_array_equal(search(x, codebook), widened)


def test_masked_rows_have_no_id():
  x, codebook = draw(20, 4), draw(9, 4, seed=1)
  mask = np.arange(20) % 3 > 0
  x[~mask] = np.nan
  ids, distances = search(x, codebook, mask=mask, with_distances=True)
  np.testing.assert_array_equal(ids[:, 0] < 0, ~mask)
  np.testing.assert_array_equal(np.isnan(distances[:, 0]), ~mask)
  check(ids[mask], distances[mask], x[mask], codebook, "euclidean")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e19])
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_what_is_not_finite(bad, metric):
  x, codebook = draw(12, 4), draw(300, 4, seed=1)
  best = np.asarray(search(x, codebook, metric=metric, top_k=2))
  codebook[best[:, 0], 1] = bad
  x[3, 2] = bad
  ids, distances = search(x, codebook, metric=metric, with_distances=True)
  # A broken code is never chosen; a broken row has no nearest code, and says so.
  assert not np.isin(ids, best[:, 0]).any()
  assert ids[3, 0] == -1 and np.isnan(distances[3, 0])
  assert (np.delete(np.asarray(ids), 3, 0) >= 0).all()
  assert (np.asarray(search(x, np.full((3, 4), bad, np.float32))) == -1).all()


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)], ids=str)
@pytest.mark.parametrize("k", [64, 999])
def test_a_split_search_is_that_of_one_device(shape, k):
  mesh = make_mesh(MeshShape(data=shape[0], fsdp=1, model=shape[1]))
  # Repeated codes: ties reach across the parts.
  x, codebook = draw(64, 5), np.concatenate([draw(k - k // 3, 5)] * 2)[:k]
  alone = search(x, codebook, top_k=3, with_distances=True)
  placed = (
    jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))),
    jax.device_put(codebook, NamedSharding(mesh, PartitionSpec("model")))
    if k % shape[1] == 0
    else codebook,
  )
  with jax.set_mesh(mesh):
    run = jax.jit(functools.partial(search, top_k=3, with_distances=True))
    split = run(*placed)
    text = run.lower(*placed).compile().as_text()
  np.testing.assert_array_equal(split[0], alone[0])
  np.testing.assert_allclose(split[1], alone[1], atol=1e-5)
  # Rows stay where they are; only the best of each part travel.
  assert ("all-gather" in text) == (shape[1] > 1)


def test_assignments_count_and_sum():
  x, codebook = draw(200, 6), draw(11, 6, seed=1)
  mask = np.arange(200) % 4 > 0
  ids, counts, sums = assign(x, codebook, mask=mask)
  np.testing.assert_array_equal(ids, search(x, codebook, mask=mask)[:, 0])
  one_hot = (np.asarray(ids)[:, None] == np.arange(11)).astype(np.float64)
  np.testing.assert_array_equal(counts, one_hot.sum(0))
  np.testing.assert_allclose(sums, one_hot.T @ x, rtol=1e-5, atol=1e-5)


def test_ids_have_no_gradient_and_stop_none():
  x, codebook = jnp.asarray(draw(20, 4)), jnp.asarray(draw(9, 4, seed=1))

  def loss(x, codebook):
    ids = search(x, codebook)[:, 0]
    return jnp.sum((x - codebook[ids]) ** 2)

  of_x, of_codebook = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, codebook)
  ids = search(x, codebook)[:, 0]
  np.testing.assert_allclose(of_x, 2 * (x - codebook[ids]), rtol=1e-6)
  wanted = jnp.zeros_like(codebook).at[ids].add(2 * (codebook[ids] - x))
  np.testing.assert_allclose(of_codebook, wanted, rtol=1e-5)


@settings(max_examples=12, deadline=None)
@given(
  n=st.sampled_from([1, 127, 129]),
  k=st.sampled_from([2, 128, 385]),
  d=st.sampled_from([1, 3, 32]),
  seed=st.integers(0, 2**16),
)
def test_any_shape_agrees_with_the_reference(n, k, d, seed):
  rng = np.random.default_rng(seed)
  x, codebook = (rng.integers(-3, 4, (s, d)).astype(np.float32) for s in (n, k))
  np.testing.assert_array_equal(
    search(x, codebook, top_k=2),
    search(x, codebook, top_k=2, implementation="reference"),
  )


def test_memory_stays_far_below_the_matrix():
  n, k, d = 16_384, 8192, 64
  shapes = (
    jax.ShapeDtypeStruct((n, d), jnp.float32),
    jax.ShapeDtypeStruct((k, d), jnp.float32),
  )
  compiled = jax.jit(search).lower(*shapes).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2**20 < n * k * 4


ROWS, CODES = np.zeros((4, 3), np.float32), np.ones((5, 3), np.float32)


@pytest.mark.parametrize(
  ("arguments", "settings", "said"),
  [
    ((ROWS[0], CODES), {}, r"rows of shape .* not \[3\]"),
    ((ROWS, CODES[0]), {}, r"codebook of shape .* not \[3\]"),
    ((ROWS, CODES[:, :2]), {}, "features must be the same"),
    ((ROWS[None], CODES), {}, "leading axes"),
    ((ROWS[:0], CODES), {}, "nothing empty"),
    ((ROWS, CODES[:0]), {}, "nothing empty"),
    ((ROWS.astype(np.int32), CODES), {}, "floating-point rows, not int32"),
    ((ROWS, CODES.astype(np.uint8)), {}, "floating-point codebook, not uint8"),
    ((ROWS, CODES), {"metric": "manhattan"}, "the metrics are euclidean"),
    ((ROWS, CODES), {"top_k": 6}, "top_k = 6 of 5 codes"),
    ((ROWS, CODES), {"top_k": 0}, "top_k = 0 of 5 codes"),
    ((ROWS, CODES), {"mask": np.ones(5, bool)}, r"bool\[4\], not bool\[5\]"),
    ((ROWS, CODES), {"mask": np.ones(4, np.int32)}, r"bool\[4\], not int32\[4\]"),
    ((ROWS, CODES), {"implementation": "cuda"}, "unknown implementation"),
  ],
)
def test_bad_input_is_one_sentence(arguments, settings, said):
  with pytest.raises(TokzooError, match=said) as caught:
    search(*arguments, **settings)
  assert str(caught.value).count("\n") == 0


def test_what_a_kernel_is_not_made_for():
  with pytest.raises(TokzooError, match="one code a row, not 2"):
    search(ROWS, CODES, top_k=2, implementation="gpu")
  with pytest.raises(TokzooError, match="1536 features, not 2000"):
    search(np.zeros((1, 2000), "f4"), np.zeros((1, 2000), "f4"), implementation="tpu")


def test_a_kernel_that_cannot_goes_through_xla_and_says_so_once(monkeypatch):
  # As on a machine with a GPU, for which this is not lowered here.
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  dispatch._say_once.cache_clear()
  with pytest.warns(UserWarning, match="through XLA: the Hopper kernel") as said:
    first = jax.jit(functools.partial(search, top_k=2))(draw(9, 4), draw(8, 4, seed=1))
    again = jax.jit(functools.partial(search, top_k=2))(draw(7, 4), draw(8, 4, seed=1))
  assert len(said) == 1
  np.testing.assert_array_equal(first[:7], again)


def test_more_codes_than_int32_holds():
  with pytest.raises(TokzooError, match="beyond int32"):
    jax.eval_shape(search, ROWS[:, :1], jax.ShapeDtypeStruct((2**31, 1), jnp.float32))


@pytest.mark.aot
@pytest.mark.parametrize("target", ["v5e:2x2", "h100:4x1"])
def test_on_a_mesh_of_a_machine_that_is_not_here(target):
  if not is_installed(target):
    pytest.skip('the compilers are not installed: pip install "tokzoo[plan]"')
  mesh = make_mesh(MeshShape(data=2, fsdp=1, model=2), topologies.devices(target))
  n, k, d = 4096, 2**15, 64

  def place(shape, *spec):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

  arguments = place((n, d), "data"), place((k, d), "model")
  compiled = jax.jit(ambient(mesh, search)).lower(*arguments).compile()
  text = compiled.as_text()
  # The kernel itself, on each device's part; nothing of the size of the codebook travels.
  assert "codebook_search" in text and "custom-call" in text
  gathered = [
    line for line in text.splitlines() if re.search(r" all-gather[\w-]*\(", line)
  ]
  shapes = [
    shape for line in gathered for shape in re.findall(r"[su]32|f32\[([\d,]+)\]", line)
  ]
  sizes = [math.prod(int(s) for s in shape.split(",")) for shape in shapes if shape]
  assert sizes and max(sizes) <= n
  temporary = compiled.memory_analysis().temp_size_in_bytes
  print(f"{target}: temporary {temporary / 2**20:.2f} MiB of {n * k * 4 / 2**20:.0f}")
  assert temporary < 0.1 * n * k * 4 / 4
