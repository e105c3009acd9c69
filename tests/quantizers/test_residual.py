"""Residual quantization: its four gradients, dropout, shared codebooks, beam search, prefixes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tokzoo.contract import Quantizer
from tokzoo.errors import TokzooError
from tokzoo.quantizers import Ema, FiniteScalar, LookupFree, VectorQuantizer
from tokzoo.quantizers.product import Product
from tokzoo.quantizers.projected import Projected
from tokzoo.quantizers.residual import (
  Beam,
  ItemDropout,
  LevelDropout,
  Residual,
  residual_fsq,
  residual_lfq,
)
from tokzoo.quantizers.simvq import SimVQ

DIM, SHAPE = 4, (8, 5, 4)


def vq(num_codes=9, **options):
  options = {"update": Ema(0.8)} | options
  return VectorQuantizer(num_codes, DIM, **options)


def levels(depth=3, **options):
  return tuple(vq(**options) for _ in range(depth))


@pytest.fixture(scope="module")
def z():
  return 2 * jax.random.normal(jax.random.key(1), SHAPE)


def init(quantizer, z):
  return jax.jit(quantizer.init)(jax.random.key(0), z)


@functools.partial(jax.jit, static_argnums=0)
def step(quantizer, variables, z, mask=None, key=None):
  """A training step: what comes out, and the collection `codebook` after it."""
  key = jax.random.key(3) if key is None else key
  rngs = {"codebook": key, "quantizer": key}
  return quantizer.apply(variables, z, mask, True, mutable=["codebook"], rngs=rngs)


FAMILIES = {
  "vqp": Residual(levels()),
  "encodec": Residual(levels(), gradient="encodec"),
  "dac": Residual(
    tuple(Projected(VectorQuantizer(9, 2, "angular"), DIM) for _ in range(3)),
    gradient="dac",
  ),
  "mimi": Residual(levels(), gradient="mimi"),
  "shared": Residual((vq(),), depth=3),
  "sizes": Residual((vq(5), vq(9))),
  "simvq": Residual(tuple(SimVQ(9, DIM) for _ in range(2))),
  "fsq": residual_fsq((3, 4, 5, 2), 3),
  "fsq_tanh": residual_fsq((3, 4, 5, 2), 3, hard_clamp=False),
  "lfq": residual_lfq(LookupFree(DIM, soft_clamp=2.0, inverse_temperature=1.0), 3),
  "beam": Residual(levels(), beam=Beam(3)),
  "level_dropout": Residual(levels(), dropout=LevelDropout()),
  "item_dropout": Residual(levels(), dropout=ItemDropout()),
  "grouped": Product(Residual(tuple(VectorQuantizer(9, 2) for _ in range(2))), 2),
}
evaluate = jax.jit(
  lambda quantizer, *arguments: quantizer.apply(*arguments), static_argnums=0
)


@functools.cache
def variables_of(name):
  return init(FAMILIES[name], jnp.zeros(SHAPE))


@pytest.mark.parametrize(
  "name, slope, reached",
  [("vqp", 3.0, 3), ("encodec", 1.0, 1), ("mimi", 1.0, 3)],
)
def test_published_gradients(name, slope, reached, z):
  """d value / dz, and the levels whose commitment loss reaches the latents."""
  quantizer, variables = FAMILIES[name], variables_of(name)

  def call(row):
    return quantizer.apply(variables, row[None, None]).values[0, 0]

  jacobian = jax.jit(jax.jacobian(call))(z[0, 0])
  np.testing.assert_allclose(jacobian, slope * np.eye(DIM), atol=1e-6)
  reaches = reached_levels(quantizer, variables, z)
  np.testing.assert_array_equal(reaches, np.arange(3) < reached)


def reached_levels(quantizer, variables, z):
  def commitments(z):
    return quantizer.apply(variables, z, None, True, mutable=["codebook"])[0].stats[
      "commitment"
    ]

  return np.abs(jax.jit(jax.jacobian(commitments))(z[:1])).max((1, 2, 3)) > 1e-6


def test_published_gradient_of_dac(z):
  """With P_i = in_i out_i the gradient is sum_i P_i prod_{j<i} (I - P_j), and every level's
  commitment reaches the latents through what the projections leave."""
  quantizer, variables = FAMILIES["dac"], variables_of("dac")

  def call(row):
    return quantizer.apply(variables, row[None, None]).values[0, 0]

  jacobian = jax.jit(jax.jacobian(call))(z[0, 0])
  expected, rest = np.zeros((DIM, DIM)), np.eye(DIM)
  for i in range(3):
    params = variables["params"][f"levels_{i}"]
    through = (params["project_in"]["kernel"] @ params["project_out"]["kernel"]).T
    expected += through @ rest
    rest = rest - through @ rest
  np.testing.assert_allclose(jacobian, expected, atol=1e-5)
  assert reached_levels(quantizer, variables, z).all()


@pytest.mark.parametrize(
  "name", ["vqp", "dac", "shared", "sizes", "simvq", "fsq", "lfq", "grouped"]
)
def test_follows_the_contract(name, z):
  quantizer, variables = FAMILIES[name], variables_of(name)
  assert isinstance(quantizer, Quantizer)
  out = evaluate(quantizer, variables, z)
  assert out.values.shape == SHAPE and out.values.dtype == jnp.float32
  assert out.ids.dtype == jnp.int32
  assert out.ids.shape == (*SHAPE[:2], quantizer.id_groups)
  assert out.ids.min() >= 0 and out.ids.max() < quantizer.num_codes
  decode = jax.jit(functools.partial(quantizer.apply, method="ids_to_codes"))
  np.testing.assert_array_equal(out.values, decode(variables, out.ids))
  trained, _ = jax.eval_shape(functools.partial(step, quantizer), variables, z)
  assert all(loss.shape == () for loss in trained.losses.values())
  assert jax.tree.structure(trained) == jax.tree.structure(out)


def test_bfloat16_latents_give_the_float32_result(z):
  z = z.astype(jnp.bfloat16)
  low = evaluate(FAMILIES["fsq"], {}, z)
  high = evaluate(FAMILIES["fsq"], {}, z.astype(jnp.float32))
  jax.tree.map(np.testing.assert_array_equal, low, high)


@pytest.mark.parametrize("name", ["shared", "lfq"])
def test_masked_equals_without_the_masked_rows(name, z):
  quantizer, variables = FAMILIES[name], variables_of(name)
  mask = jnp.ones(SHAPE[:2], bool).at[6:].set(False)
  padded = z.at[6:].set(jnp.where(z[6:] > 0, jnp.inf, jnp.nan))

  @jax.jit
  def differentiate(z, mask):
    def loss(z):
      out, after = step(quantizer, variables, z, mask)
      return sum(out.losses.values(), 0.0) + jnp.sum(out.values**2), (out, after)

    return jax.grad(loss, has_aux=True)(z)

  grad, (out, after) = differentiate(padded, mask)
  short_grad, (short, short_after) = differentiate(z[:6], mask[:6])
  assert (np.asarray(out.ids)[6:] == -1).all() and not np.asarray(out.values)[6:].any()
  assert not np.asarray(grad)[6:].any()
  np.testing.assert_array_equal(out.ids[:6], short.ids)
  np.testing.assert_array_equal(out.values[:6], short.values)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  close(grad[:6], short_grad)
  jax.tree.map(close, (out.losses, out.stats), (short.losses, short.stats))
  jax.tree.map(close, after, short_after)


@pytest.mark.parametrize("name", ["shared", "beam", "item_dropout", "fsq"])
def test_one_device_equals_eight(name, z):
  quantizer, variables = FAMILIES[name], variables_of(name)
  mesh = Mesh(np.array(jax.devices()).reshape(8), ("data",))
  split = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))
  many, after_many = step(quantizer, variables, split)
  one, after_one = step(quantizer, variables, jax.device_put(z, jax.devices()[0]))
  assert len(many.values.sharding.device_set) == 8
  np.testing.assert_array_equal(many.ids, one.ids)
  np.testing.assert_array_equal(many.values, one.values)
  jax.tree.map(np.testing.assert_array_equal, after_many, after_one)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    many.losses,
    one.losses,
  )


@pytest.mark.parametrize("name", ["fsq", "fsq_tanh", "lfq"])
def test_nested_grids_come_back_from_their_sums(name):
  quantizer = FAMILIES[name]
  rng = np.random.default_rng(0)
  ids = jnp.asarray(rng.integers(0, quantizer.num_codes, (4096, 3)), jnp.int32)
  codes = quantizer.apply({}, ids, method="ids_to_codes")
  back = quantizer.apply({}, codes, method="codes_to_ids")
  np.testing.assert_array_equal(back, ids)


def test_every_level_knows_its_codes():
  quantizer, variables = FAMILIES["sizes"], variables_of("sizes")
  ids = jnp.asarray(list(itertools.product(range(5), range(9))), jnp.int32)
  codes = quantizer.apply(variables, ids, method="ids_to_level_codes")
  for i, level in enumerate(quantizer.levels):
    state = {"codebook": variables["codebook"][f"levels_{i}"]}
    back = level.apply(state, codes[i], method="codes_to_ids")
    np.testing.assert_array_equal(back, ids[:, i])
  assert quantizer.num_codes == 9
  assert quantizer.bits_per_token == pytest.approx(np.log2(45))


def test_a_prefix_of_the_ids_decodes_to_a_partial_sum(z):
  quantizer, variables = FAMILIES["vqp"], variables_of("vqp")
  ids = evaluate(quantizer, variables, z).ids
  codes = quantizer.apply(variables, ids, method="ids_to_level_codes")
  decode = functools.partial(quantizer.apply, variables, method="ids_to_codes")
  for used in (1, 2, 3):
    partial = functools.reduce(jnp.add, codes[:used])
    np.testing.assert_allclose(decode(ids[..., :used]), partial, rtol=1e-6)
    np.testing.assert_allclose(decode(ids.at[..., used:].set(-1)), partial, rtol=1e-6)
  with pytest.raises(ValueError, match="4 levels"):
    decode(jnp.zeros((1, 4), jnp.int32))


def test_level_dropout(z):
  """One number of levels for all; the levels left out keep codebook and losses out of it."""
  used = [int(LevelDropout(1)(jax.random.key(i), 4, 4)[0]) for i in range(60)]
  assert set(used) == {2, 3, 4}
  rounded = {int(LevelDropout(0, 4)(jax.random.key(i), 1, 6)[0]) for i in range(40)}
  assert rounded == {4, 6}
  quantizer, variables = FAMILIES["level_dropout"], variables_of("level_dropout")
  key = next(
    key
    for key in map(jax.random.key, range(99))
    if int(jnp.sum(step(quantizer, variables, z, None, key)[0].ids[0, 0] >= 0)) == 2
  )
  out, after = step(quantizer, variables, z, None, key)
  full, full_after = step(FAMILIES["vqp"], variables, z)
  np.testing.assert_array_equal(out.ids[..., :2], full.ids[..., :2])
  assert (np.asarray(out.ids[..., 2]) == -1).all()
  np.testing.assert_allclose(out.stats["commitment"][:2], full.stats["commitment"][:2])
  assert out.stats["commitment"][2] == 0 and not out.stats["counts"][2].any()
  assert out.losses["commitment"] == pytest.approx(
    float(out.stats["commitment"].sum()) / 3
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    {i: after["codebook"][f"levels_{i}"] for i in range(3)},
    {i: full_after["codebook"][f"levels_{i}"] for i in range(2)}
    | {2: variables["codebook"]["levels_2"]},
  )
  # Two of three levels bind as three do, where those in use are counted alone.
  among = quantizer.clone(mean_over="used")
  found, _ = step(among, variables, z, None, key)
  assert found.losses["commitment"] == pytest.approx(
    float(out.stats["commitment"].sum()) / 2
  )
  mask = jnp.zeros(z.shape[:2], bool)
  assert step(among, variables, z, mask, key)[0].losses["commitment"] == 0
  # Nothing dropped, nothing changed.
  whole = FAMILIES["vqp"].clone(mean_over="used")
  assert step(whole, variables, z)[0].losses == full.losses
  # In evaluation all levels are used.
  assert evaluate(quantizer, variables, z).ids.min() >= 0


def test_item_dropout(z):
  quantizer, variables = FAMILIES["item_dropout"], variables_of("item_dropout")
  out, _ = step(quantizer, variables, z)
  used = np.asarray(out.ids[:, 0] >= 0).sum(-1)
  assert (used[4:] == 3).all() and (used[:4] < 3).any()
  seen = {int(n) for i in range(20) for n in ItemDropout(1.0)(jax.random.key(i), 8, 4)}
  assert seen == {1, 2, 3, 4}
  # Of a level the loss counts the items that use it, among all.
  full, _ = step(FAMILIES["vqp"], variables, z)
  codes = quantizer.apply(variables, full.ids, method="ids_to_level_codes")
  left = np.asarray(z)[None] - np.cumsum(np.asarray(codes), axis=0)
  for i in range(3):
    expected = (left[i] ** 2).mean((1, 2)) * np.float32(used > i)
    assert out.stats["commitment"][i] == pytest.approx(expected.mean(), rel=1e-4)
  partial = quantizer.apply(variables, out.ids, method="ids_to_codes")
  np.testing.assert_array_equal(out.values, partial)


def test_a_shared_codebook_takes_one_step_a_level(z):
  quantizer, variables = FAMILIES["shared"], variables_of("shared")
  out, after = step(quantizer, variables, z)
  (old,), (new,) = variables["codebook"].values(), after["codebook"].values()
  counts, sums = np.asarray(old["counts"]), np.asarray(old["sums"])
  residual = np.asarray(z).reshape(-1, DIM)
  for i in range(3):
    ids = np.asarray(out.ids)[..., i].reshape(-1)
    hot = np.eye(9)[ids]
    counts, sums = 0.8 * counts + 0.2 * hot.sum(0), 0.8 * sums + 0.2 * hot.T @ residual
    residual = residual - np.asarray(old["codes"])[ids]
  np.testing.assert_allclose(new["counts"], counts, rtol=1e-5)
  np.testing.assert_allclose(new["sums"], sums, rtol=1e-4, atol=1e-5)


def errors(quantizer, variables, z):
  out = evaluate(quantizer, variables, z)
  return np.asarray(jnp.sum((z - out.values) ** 2, -1)), out


def test_beam_search(z):
  """Wide enough it finds the best of all sums; narrow it is at least as good as greedy."""
  narrow_beam, wide_beam, greedy = (
    Residual(levels(num_codes=4), beam=beam) for beam in (Beam(3), Beam(16), None)
  )
  variables = init(greedy, z)
  codebooks = [
    np.asarray(variables["codebook"][f"levels_{i}"]["codes"]) for i in range(3)
  ]
  sums = np.stack([sum(codes) for codes in itertools.product(*codebooks)])
  best = ((np.asarray(z)[..., None, :] - sums) ** 2).sum(-1).min(-1)
  greedy, _ = errors(greedy, variables, z)
  narrow, out = errors(narrow_beam, variables, z)
  wide, _ = errors(wide_beam, variables, z)
  np.testing.assert_allclose(wide, best, rtol=1e-4)
  assert best.mean() < narrow.mean() < greedy.mean()
  ids = wide_beam.apply(variables, out.values, method="codes_to_ids")
  again = wide_beam.apply(variables, ids, method="ids_to_codes")
  np.testing.assert_allclose(again, out.values, atol=1e-5)


def test_beam_search_by_summed_errors():
  """As published: the end may be worse if the way to it was better."""
  codebooks = [jnp.asarray([[0.0], [3.0]]), jnp.asarray([[2.0], [-1.9]])]
  z = jnp.asarray([[1.4]])  # 0 + 2 misses by 0.6 after 1.4, 3 - 1.9 by 0.3 after 1.6
  by_end = Beam(2)(z, codebooks)
  by_way = Beam(2, "summed_errors")(z, codebooks)
  np.testing.assert_array_equal(by_end[0], [1, 1])
  np.testing.assert_array_equal(by_way[0], [0, 0])


def test_levels_in_use_learn_from_the_beam(z):
  """The codebooks see the residuals of the sums that the beam chose."""
  quantizer, variables = FAMILIES["beam"], variables_of("beam")
  out, after = step(quantizer, variables, z)
  first = np.asarray(out.ids)[..., 0].reshape(-1)
  counts = 0.8 + 0.2 * np.bincount(first, minlength=9)
  np.testing.assert_allclose(after["codebook"]["levels_0"]["counts"], counts, rtol=1e-6)


def test_residual_fsq_is_finer_from_level_to_level():
  z = jax.random.uniform(jax.random.key(0), (1, 200, 2), minval=-1.0)
  found = []
  for depth in (1, 2, 3):
    quantizer = residual_fsq((5, 4), depth)
    limit = jnp.asarray([1 + 1 / 4, 1 + 1 / 3]).reshape(1, 1, 2)
    inside = limit * jnp.tanh(z / limit)
    found.append(float(jnp.abs(quantizer.apply({}, z).values - inside).max()))
  np.testing.assert_array_less(found, [1 / 3 + 1e-6, 1 / 12 + 1e-6, 1 / 48 + 1e-6])


@pytest.mark.parametrize(
  "build, said",
  [
    (lambda: Residual(()), "at least one level"),
    (lambda: Residual(levels(), depth=3), "shared codebook"),
    (lambda: Residual((vq(), FiniteScalar((3, 3)))), "same features"),
    (lambda: Residual(levels(metric="cosine"), beam=Beam(2)), "cosine"),
    (lambda: Residual((FiniteScalar((3,) * 4),), beam=Beam(2)), "FiniteScalar"),
  ],
)
def test_refuses(build, said):
  with pytest.raises(TokzooError, match=said):
    build()
