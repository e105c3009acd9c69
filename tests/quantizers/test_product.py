"""Quantizers around quantizers: Product, Projected, Rotated; OPQ and distance tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.quantizers import Ema, FiniteScalar, LookupFree, VectorQuantizer
from tokzoo.quantizers.kmeans import KMeans
from tokzoo.quantizers.opq import Rotated, fit_opq
from tokzoo.quantizers.product import Product, distance_tables, table_distances
from tokzoo.quantizers.projected import Projected


def init(quantizer, z):
  keys = {"params": jax.random.key(0), "codebook": jax.random.key(1)}
  return jax.jit(quantizer.init)(keys, z)


@functools.partial(jax.jit, static_argnums=0)
def step(quantizer, variables, z, mask=None):
  """Output and variables after a training step."""
  quantized, after = quantizer.apply(
    variables,
    z,
    mask,
    train=True,
    mutable=["codebook"],
    rngs={"codebook": jax.random.key(5)},
  )
  return quantized, {**variables, **after}


@functools.partial(jax.jit, static_argnums=(0, 1))
def call(quantizer, method, variables, *args):
  return quantizer.apply(variables, *args, method=method)


def test_product_is_each_group_on_its_own(rng):
  """Values, ids, mean of the losses and state, as of separate quantizers side by side."""
  inner = VectorQuantizer(9, 3, update=Ema(0.7))
  product = Product(inner, 4)
  z = jax.random.normal(rng, (2, 6, 12))
  mask = jnp.ones((2, 6), bool).at[1, 2:].set(False)
  variables = init(product, z)
  stacked = variables["codebook"]["quantizer"]
  assert len({float(code) for code in stacked["codes"][:, 0, 0]}) == 4
  quantized, after = step(product, variables, z, mask)
  commitments = []
  for group in range(4):
    own = {"codebook": jax.tree.map(lambda x, g=group: x[g], stacked)}
    alone, alone_after = step(inner, own, z[..., 3 * group : 3 * group + 3], mask)
    chunk = np.asarray(quantized.values)[..., 3 * group : 3 * group + 3]
    np.testing.assert_array_equal(chunk, alone.values)
    np.testing.assert_array_equal(quantized.ids[..., group], alone.ids)
    np.testing.assert_array_equal(
      quantized.stats["counts"][group], alone.stats["counts"]
    )
    codes = after["codebook"]["quantizer"]["codes"][group]
    np.testing.assert_allclose(codes, alone_after["codebook"]["codes"], rtol=1e-5)
    commitments.append(float(alone.losses["commitment"]))
  expected = pytest.approx(np.mean(commitments), rel=1e-6)
  assert float(quantized.losses["commitment"]) == expected


def test_a_shared_quantizer_sees_all_groups(rng):
  """As many rows of one batch; padding stays out of the shared averages."""
  inner = VectorQuantizer(9, 3, update=Ema(0.7))
  product = Product(inner, 4, is_shared=True)
  z = jax.random.normal(rng, (2, 6, 12))
  mask = jnp.ones((2, 6), bool).at[1, 2:].set(False)
  variables = init(product, z)
  padded = jnp.where(mask[..., None], z, jnp.nan)
  quantized, after = step(product, variables, padded, mask)
  own = {"codebook": variables["codebook"]["quantizer"]}
  kept = np.asarray(z).reshape(1, -1, 12)[:, np.asarray(mask).reshape(-1)]
  alone, alone_after = step(inner, own, kept.reshape(1, -1, 3))
  rows = np.asarray(quantized.ids)[np.asarray(mask)]
  np.testing.assert_array_equal(rows.reshape(-1), alone.ids[0])
  assert (np.asarray(quantized.ids)[~np.asarray(mask)] == -1).all()
  for name, value in after["codebook"]["quantizer"].items():
    expected = alone_after["codebook"][name]
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
  codes = call(product, "ids_to_codes", variables, quantized.ids)
  np.testing.assert_array_equal(codes, quantized.values)
  np.testing.assert_array_equal(
    call(product, "codes_to_ids", variables, codes[:1]), quantized.ids[:1]
  )
  assert call(product, "codebook", variables).shape == (4, 9, 3)


def test_product_of_quantizers_with_several_ids():
  product = Product(LookupFree(6, id_groups=2), 3)
  z = jnp.asarray([[[1.0, -1, -1, -1, 1, 1] + [-1.0] * 11 + [1]]])
  quantized = jax.jit(product.apply)({}, z)
  np.testing.assert_array_equal(quantized.ids[0, 0], [0b100, 0b011, 0, 0, 0, 1])
  assert (product.num_codes, product.bits_per_token, product.id_groups) == (8, 18, 6)
  np.testing.assert_array_equal(call(product, "ids_to_codes", {}, quantized.ids), z)
  grid = Product(FiniteScalar((5, 3)), 2)
  assert grid.dim == 4
  assert jax.eval_shape(grid.apply, {}, jnp.zeros((1, 1, 4))).ids.shape == (1, 1, 2)


def test_groups_start_from_kmeans_once(rng):
  """Many codebooks at a time: each from its own batch, and none a second time."""
  product = Product(VectorQuantizer(5, 2, start=KMeans(10), update=Ema(0.99)), 3)
  centres = 10 * jax.random.normal(rng, (5, 1, 6))
  z = centres + 0.01 * jax.random.normal(jax.random.key(1), (5, 8, 6))
  first = step(product, init(product, z), z)[1]
  book = first["codebook"]["quantizer"]
  assert book["is_started"].all()
  second = step(product, first, -z)[1]["codebook"]["quantizer"]
  moved = np.abs(second["codes"] - book["codes"]).max()
  assert 0 < moved < 5, "a second start would be at the mirrored centres"


def test_projected_is_linear_quantizer_linear(rng):
  quantizer = Projected(VectorQuantizer(20, 3, update=Ema(0.5)), 8)
  z = jax.random.normal(rng, (2, 6, 8)).astype(jnp.bfloat16)
  mask = jnp.ones((2, 6), bool).at[0, 4:].set(False)
  variables = init(quantizer, z)
  params = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), variables["params"])
  variables = {**variables, "params": params}

  @jax.jit
  def run(params, z):
    quantized, _ = quantizer.apply(
      {**variables, "params": params}, z, mask, train=True, mutable=["codebook"]
    )
    return jnp.sum(quantized.values**2) + quantized.losses["commitment"], quantized

  padded = jnp.where(mask[..., None], z, jnp.nan)
  grads, quantized = jax.jit(jax.grad(run, has_aux=True))(params, padded)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))
  inner = np.asarray(z, np.float32) @ params["project_in"]["kernel"]
  inner = inner + params["project_in"]["bias"]
  codes = np.asarray(variables["codebook"]["quantizer"]["codes"])
  ids = ((inner[..., None, :] - codes) ** 2).sum(-1).argmin(-1)
  ids = np.where(np.asarray(mask), ids, -1)
  np.testing.assert_array_equal(quantized.ids, ids)
  out = codes[ids] @ params["project_out"]["kernel"] + params["project_out"]["bias"]
  out = np.where(np.asarray(mask)[..., None], out, 0)
  np.testing.assert_allclose(quantized.values, out, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    call(quantizer, "ids_to_codes", variables, quantized.ids), out, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(
  "inner", [VectorQuantizer(400, 3), FiniteScalar((8, 5, 5)), Product(LookupFree(4), 2)]
)
def test_projected_round_trip(inner):
  """Through the inverse of the projection out, as long as it loses nothing."""
  quantizer = Projected(inner, 9)
  variables = init(quantizer, jnp.ones((1, 1, 9)))
  ids = jnp.arange(200).reshape(4, 50) % inner.num_codes
  if quantizer.id_groups > 1:
    ids = jnp.stack([ids, ids[::-1]], axis=-1)
  codes = call(quantizer, "ids_to_codes", variables, ids)
  assert codes.shape == (4, 50, 9)
  np.testing.assert_array_equal(call(quantizer, "codes_to_ids", variables, codes), ids)


def test_what_cannot_be_undone_is_refused():
  quantizer = Projected(VectorQuantizer(4, 3), 2)
  variables = init(quantizer, jnp.ones((1, 1, 2)))
  with pytest.raises(TokzooError, match="3 features were projected to 2"):
    quantizer.apply(variables, jnp.ones((1, 1, 2)), method="codes_to_ids")
  with pytest.raises(ValueError, match="3 features, latents of 5"):
    jax.eval_shape(Product(VectorQuantizer(4, 3), 2).apply, {}, jnp.ones((1, 1, 5)))
  with pytest.raises(TokzooError, match="multiple of 4; these are"):
    fit_opq(jnp.ones((3, 6)), jax.random.key(0), groups=4, num_codes=2)


def correlated(count, seed=0):
  """Gaussian vectors whose chunks depend on each other."""
  rng = np.random.default_rng(seed)
  mixing = rng.normal(size=(8, 8)) * 0.6 ** np.arange(8)[:, None]
  return jnp.asarray(rng.normal(size=(count, 8)) @ mixing, jnp.float32)


def test_opq_never_gets_worse_and_beats_the_identity():
  x = correlated(600)
  fit = fit_opq(x, jax.random.key(0), groups=4, num_codes=8, iterations=25)
  errors = np.asarray(fit.errors)
  assert (np.diff(errors) <= 1e-5 * errors[0]).all()
  identity = np.asarray(fit.rotation) @ np.asarray(fit.rotation).T
  np.testing.assert_allclose(identity, np.eye(8), atol=1e-5)

  quantizer = Rotated(Product(VectorQuantizer(8, 2), 4))
  quantized = jax.jit(quantizer.apply)(fit.variables(), x[None])
  error = np.mean(np.sum((np.asarray(quantized.values)[0] - np.asarray(x)) ** 2, -1))
  assert error <= errors[-1] * (1 + 1e-5), "the last rotation helps too"

  # Plain PQ of the same number of rounds, by the layer's own k-means.
  plain = Product(VectorQuantizer(8, 2, start=KMeans(25)), 4)
  pq = step(plain, init(plain, x[None]), x[None])[0]
  assert error < 0.9 * np.mean(np.sum((np.asarray(pq.values[0] - x)) ** 2, -1))
  back = call(quantizer, "codes_to_ids", fit.variables(), quantized.values)
  np.testing.assert_array_equal(back, quantized.ids)


def test_distances_from_tables_are_those_to_the_values():
  x, queries = correlated(50), correlated(7, seed=1)
  fit = fit_opq(x, jax.random.key(0), groups=4, num_codes=8, iterations=3)
  quantizer = Rotated(Product(VectorQuantizer(8, 2), 4))
  quantized = jax.jit(quantizer.apply)(fit.variables(), x[None])
  rotated = call(quantizer, "rotate", fit.variables(), queries)
  tables = jax.jit(distance_tables)(rotated, fit.codes)
  assert tables.shape == (7, 4, 8)
  distances = jax.jit(table_distances)(tables, quantized.ids[0])
  offsets = np.asarray(queries)[:, None] - np.asarray(quantized.values)
  np.testing.assert_allclose(distances, (offsets**2).sum(-1), rtol=1e-4, atol=1e-4)
