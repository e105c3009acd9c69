"""Additive quantization: energy, encoders, least squares, and its place beside RVQ and PQ."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.quantizers.additive import (
  Additive,
  AdditiveBeam,
  Icm,
  additive_distances,
  decode,
  encode_greedily,
  fit_additive,
  fit_residual,
  squared_error,
  squared_norms,
  update_codes,
)


@pytest.fixture(scope="module")
def problem():
  """64 vectors and 3 codebooks of 5."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(64, 6)).astype(np.float32)
  codes = rng.normal(size=(3, 5, 6)).astype(np.float32)
  return jnp.asarray(x), jnp.asarray(codes)


def exhaustive(x, codes) -> np.ndarray:
  """The least squared error of each vector over all tuples."""
  sums = np.stack(
    [
      sum(book[i] for book, i in zip(np.asarray(codes, np.float64), ids, strict=True))
      for ids in itertools.product(range(codes.shape[1]), repeat=codes.shape[0])
    ]
  )
  return ((np.asarray(x)[:, None] - sums[None]) ** 2).sum(-1).min(1)


def test_the_energy_is_the_squared_error(problem):
  x, codes = problem
  ids = jax.random.randint(jax.random.key(1), (64, 3), 0, 5)
  c = np.asarray(codes, np.float64)[np.arange(3)[None], np.asarray(ids)]
  gram = np.einsum("nmd,nld->nml", c, c)
  pairs = sum(gram[:, m, l] for m in range(3) for l in range(m + 1, 3))
  alone = sum(gram[:, m, m] - 2 * np.einsum("nd,nd->n", x, c[:, m]) for m in range(3))
  energy = (np.asarray(x, np.float64) ** 2).sum(-1) + alone + 2 * pairs
  np.testing.assert_allclose(squared_error(x, codes, ids), energy, rtol=1e-5)


def test_a_wide_beam_finds_the_best_sum_and_a_narrow_one_is_no_worse_than_greedy(
  problem,
):
  x, codes = problem
  best = exhaustive(x, codes)
  wide = squared_error(x, codes, jax.jit(AdditiveBeam(75))(x, codes))
  np.testing.assert_allclose(wide, best, rtol=1e-4, atol=1e-5)
  greedy = squared_error(x, codes, jax.jit(encode_greedily)(x, codes))
  narrow = squared_error(x, codes, jax.jit(AdditiveBeam(4))(x, codes))
  assert narrow.mean() < greedy.mean()
  assert float(wide.mean()) <= float(narrow.mean())


def test_beams_are_distinct():
  """Were a sum kept once per order of its words, a beam of 2 would hold one sum twice."""
  codes = jnp.asarray([[[4.0], [0.0]], [[2.0], [-3.0]]])
  beam = AdditiveBeam(3)
  ids = jnp.asarray([[[0, 0], [0, 0], [0, 1], [1, 0], [0, 1]]], jnp.int32)
  kept, _ = beam._best_distinct(ids, jnp.asarray([[0.1, 0.1, 0.2, 0.3, 0.2]]))
  np.testing.assert_array_equal(kept[0], [[0, 0], [0, 1], [1, 0]])
  np.testing.assert_array_equal(beam(jnp.asarray([[1.0]]), codes)[0], [0, 1])


@pytest.mark.parametrize("flips", [1, 3])
def test_icm_never_increases_the_error(problem, flips):
  x, codes = problem
  start = jax.random.randint(jax.random.key(2), (64, 3), 0, 5)
  errors = [squared_error(x, codes, start)]
  for rounds in (0, 1, 8):
    icm = Icm(rounds=rounds, flips=flips, sweeps=2)
    ids = jax.jit(icm.improve)(x, codes, start)
    errors.append(squared_error(x, codes, ids))
    assert ids.dtype == jnp.int32 and ids.min() >= 0 and ids.max() < 5
  for before, after in itertools.pairwise(errors):
    assert (np.asarray(after) <= np.asarray(before)).all()
    assert float(after.mean()) < float(before.mean())
  assert float(errors[-1].mean()) < 1.1 * exhaustive(x, codes).mean()


def test_least_squares_codebooks(problem):
  """No codebook near by has a smaller error, and planted ones come back."""
  x, codes = problem
  rng = np.random.default_rng(3)
  ids = jnp.asarray(rng.integers(0, 5, (64, 3)), jnp.int32)
  fitted = jax.jit(update_codes, static_argnums=2)(x, ids, 5, 1e-4)
  grad = jax.grad(lambda c: jnp.mean(squared_error(x, c, ids)))(fitted)
  assert float(jnp.abs(grad).max()) < 1e-4
  planted = decode(codes, ids)
  again = decode(update_codes(planted, ids, 5, 1e-4), ids)
  np.testing.assert_allclose(again, planted, atol=1e-3)
  unused = update_codes(x, jnp.zeros((64, 3), jnp.int32), 5)
  assert not unused[:, 1:].any()


def test_distances_from_ids_and_norms_alone(problem):
  x, codes = problem
  ids = jax.random.randint(jax.random.key(4), (9, 3), 0, 5)
  items = decode(codes, ids)
  found = additive_distances(x, codes, ids, squared_norms(codes, ids))
  expected = ((np.asarray(x)[:, None] - np.asarray(items)[None]) ** 2).sum(-1)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_additive_beats_residual_beats_product():
  """MSE at equal bits, M = 4 and K = 16, on correlated Gaussians, seen and unseen."""
  rng = np.random.default_rng(0)
  mixing = rng.normal(size=(16, 16)) * 0.8 ** np.arange(16)[None]
  seen, unseen = (
    jnp.asarray(rng.normal(size=(1024, 16)) @ mixing.T, jnp.float32) for _ in range(2)
  )
  key, sizes = jax.random.key(0), {"num_codebooks": 4, "num_codes": 16}
  fit = functools.partial(fit_additive, **sizes, encoder=AdditiveBeam(4), iterations=4)
  additive = jax.jit(fit)(seen, key)
  residual = jax.jit(functools.partial(fit_residual, **sizes))(seen, key)
  fit_chunk = functools.partial(fit_residual, num_codebooks=1, num_codes=16)

  def chunks(x):
    return jnp.moveaxis(x.reshape(-1, 4, 4), 1, 0)

  product = jax.jit(jax.vmap(lambda chunk: fit_chunk(chunk, key)))(chunks(seen))

  @jax.jit
  def errors(x):
    ids = jax.vmap(encode_greedily)(chunks(x), product)
    parts = jax.vmap(squared_error)(chunks(x), product, ids)
    greedy = squared_error(x, residual, encode_greedily(x, residual))
    beam = squared_error(x, additive, AdditiveBeam(4)(x, additive))
    return beam.mean(), greedy.mean(), jnp.sum(parts, 0).mean()

  for x in (seen, unseen):
    additive_error, residual_error, product_error = map(float, errors(x))
    assert additive_error < 0.95 * residual_error < 0.8 * product_error


def test_the_layer_learns_all_codebooks_together(problem):
  x, codes = problem
  layer = Additive(5, 6, 3, AdditiveBeam(4))
  variables = {"params": {"codes": codes}}

  def loss(params):
    return layer.apply({"params": params}, x[None], train=True).losses["codebook"]

  before, grad = jax.jit(jax.value_and_grad(loss))(variables["params"])
  ids = jax.jit(layer.apply)(variables, x[None]).ids[0]
  expected = jax.grad(lambda c: jnp.mean(squared_error(x, c, ids)) / 6)(codes)
  np.testing.assert_allclose(grad["codes"], expected, rtol=1e-5, atol=1e-7)
  assert float(jax.jit(loss)({"codes": codes - 0.5 * grad["codes"]})) < float(before)


def test_refuses_fewer_vectors_than_codes():
  with pytest.raises(TokzooError, match="3 vectors"):
    fit_additive(jnp.ones((3, 2)), jax.random.key(0), num_codebooks=2, num_codes=4)
