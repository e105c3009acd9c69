"""What moves a codebook: update rules, resets, k-means, affine maps, a shared codebook."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tokzoo.errors import TokzooError
from tokzoo.quantizers import Ema, ResetBelow, VectorQuantizer
from tokzoo.quantizers.affine import Affine, Moments
from tokzoo.quantizers.codebook import Averages, draw
from tokzoo.quantizers.gradients import unit
from tokzoo.quantizers.kmeans import KMeans, first_means, kmeans
from tokzoo.quantizers.updates import EncodecReset, Learnt, PeriodicReset


def init(quantizer, z):
  keys = {"params": jax.random.key(0), "codebook": jax.random.key(1)}
  return jax.jit(quantizer.init)(keys, z)


@functools.partial(jax.jit, static_argnums=0)
def step(quantizer, variables, z, mask=None, key=None):
  """Output and variables after a training step."""
  key = jax.random.key(5) if key is None else key
  quantized, after = quantizer.apply(
    variables, z, mask, train=True, mutable=["codebook"], rngs={"codebook": key}
  )
  return quantized, {**variables, **after}


def trees_equal(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


# Whoever draws or averages: state and output must not depend on the mesh.
@pytest.mark.parametrize(
  "quantizer",
  [
    VectorQuantizer(33, 5, start=KMeans(4), update=Ema(0.9, reset=ResetBelow(1.0))),
    VectorQuantizer(33, 5, "cosine", start=KMeans(4, sums="means")),
    VectorQuantizer(33, 5, update=Learnt(reset=PeriodicReset(every=1, threshold=0.9))),
  ],
  ids=["kmeans_reset", "kmeans_cosine_means", "learnt_periodic"],
)
def test_one_device_equals_eight(quantizer, rng):
  z = jax.random.normal(rng, (16, 7, 5))
  mask = jax.random.bernoulli(jax.random.key(3), 0.7, z.shape[:2])
  z = jnp.where(mask[..., None], z, jnp.nan)
  variables = init(quantizer, z)
  mesh = Mesh(np.array(jax.devices()).reshape(8), ("data",))
  split = NamedSharding(mesh, PartitionSpec("data"))
  many = step(quantizer, variables, *jax.device_put((z, mask), split))
  one = step(quantizer, variables, *jax.device_put((z, mask), jax.devices()[0]))
  for a, b in zip(jax.tree.leaves(many[1]), jax.tree.leaves(one[1]), strict=True):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(many[0].ids, one[0].ids)
  assert not trees_equal(one[1], variables)


def test_kmeans_equals_lloyd_in_float64():
  rng = np.random.default_rng(0)
  z = rng.normal(size=(90, 3)).astype(np.float32)
  means = z[:12].copy()
  means[-1] = 100  # nobody is near: it keeps its place
  got, counts = jax.jit(kmeans, static_argnums=2)(z, means, 6)
  expected = means.astype(np.float64)
  for _ in range(6):
    ids = ((z[:, None] - expected[None]) ** 2).sum(-1).argmin(-1)
    for k in set(ids):
      expected[k] = z[ids == k].mean(0)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(counts, np.bincount(ids, minlength=12))
  assert counts[-1] == 0


def test_the_codebook_starts_from_the_first_batch_that_has_tokens(rng):
  quantizer = VectorQuantizer(6, 2, start=KMeans(10), update=Ema(0.9))
  centres = 10 * jax.random.normal(rng, (6, 1, 2))
  z = (centres + 0.01 * jax.random.normal(jax.random.key(1), (6, 20, 2))).reshape(
    1, -1, 2
  )
  z = jnp.concatenate([z, jnp.full((1, 120, 2), jnp.nan)])
  mask = jnp.arange(2)[:, None] == jnp.zeros((2, 120), jnp.int32)
  variables = init(quantizer, z)
  assert not variables["codebook"]["is_started"]
  _, none = step(quantizer, variables, z, jnp.zeros_like(mask))
  assert trees_equal(none, variables)
  quantized, first = step(quantizer, none, z, mask)
  assert first["codebook"]["is_started"]
  assert np.isfinite(jax.tree.leaves(first["codebook"])[0]).all()
  # Each token has a mean nearby, all but at most a few clusters apart.
  assert quantized.losses["commitment"] < jnp.var(z[0]) / 10
  # Once is enough: a second batch far away only moves the averages.
  _, second = step(quantizer, first, z + 1, mask)
  moved = jnp.abs(second["codebook"]["codes"] - first["codebook"]["codes"])
  assert 0 < moved.max() < 1


def test_both_conventions_of_a_kmeans_start(rng):
  """EnCodec's sums are means: its first step divides them by the counts."""
  z = jax.random.normal(rng, (200, 3)) + 5
  old = Averages(jnp.zeros((4, 3)), jnp.ones(4), jnp.zeros((4, 3)))
  args = (old, jnp.zeros((), bool), z, jnp.ones(200, bool), rng)
  start = jax.jit(
    lambda rule, args: rule.start(*args[:4], "euclidean", args[4]), static_argnums=0
  )
  ours, theirs = start(KMeans(5), args), start(KMeans(5, sums="means"), args)
  np.testing.assert_array_equal(ours.codes, theirs.codes)
  assert ours.counts.sum() == 200
  np.testing.assert_allclose(ours.sums, ours.codes * ours.counts[:, None], rtol=1e-6)
  np.testing.assert_array_equal(theirs.sums, theirs.codes)
  nobody = jnp.full(200, -1)
  update = jax.jit(lambda old: Ema(0.99).update(old, z, nobody, "euclidean").codes)
  np.testing.assert_allclose(update(ours), ours.codes, rtol=1e-4)
  shrunk = theirs.codes / ours.counts[:, None]
  np.testing.assert_allclose(update(theirs), shrunk, rtol=1e-4)


def test_first_means_are_tokens_and_repeat_only_if_there_are_too_few(rng):
  z = jnp.arange(20.0).reshape(10, 2)
  kept = jnp.arange(10) % 2 == 0
  few = first_means(z, 3, rng, kept)
  assert len({tuple(row) for row in np.asarray(few)}) == 3
  many = first_means(z, 40, rng, kept)
  assert {tuple(row) for row in np.asarray(many)} == {
    tuple(r) for r in np.asarray(z[::2])
  }


def test_draws_are_without_replacement_and_of_kept_tokens(rng):
  z = jnp.arange(20.0).reshape(10, 2).at[7].set(jnp.nan)
  drawn = draw(z, 8, rng, jnp.arange(10) < 5)
  assert drawn.num == 5 and drawn.rows.shape == (8, 2)
  first = np.asarray(drawn.rows)[:5]
  np.testing.assert_array_equal(first[np.argsort(first[:, 0])], z[:5])


def test_periodic_reset_comes_every_few_steps(rng):
  """Codes under a tenth of the mean count become tokens with the mean count."""
  quantizer = VectorQuantizer(4, 2, update=Ema(0.5, reset=PeriodicReset(every=3)))
  z = jax.random.normal(rng, (2, 8, 2))
  variables = init(quantizer, z)
  codes = jnp.asarray([[0.0, 0], [1, 1], [-1, 1], [1e3, 1e3]])
  book = {**variables["codebook"], "codes": codes, "sums": codes * 0.01}
  book["counts"] = jnp.asarray([4.0, 4, 4, 0.01])
  variables = {**variables, "codebook": book}
  for number in range(3):
    before = variables["codebook"]
    _, variables = step(quantizer, variables, z)
    # The step's own average follows the reset, so half of the mean is left at once.
    mean = np.mean(before["counts"])
    was_reset = bool(variables["codebook"]["counts"][3] == np.float32(mean / 2))
    assert was_reset == (number == 2)
  assert variables["codebook"]["steps"] == 3
  tokens = np.asarray(z).reshape(-1, 2)
  near = np.abs(tokens - np.asarray(variables["codebook"]["codes"][3])).max(-1).min()
  assert near < 1e-3


def test_the_reset_of_encodec_has_no_effect(rng):
  z = jax.random.normal(rng, (2, 8, 3))
  plain = VectorQuantizer(32, 3, update=Ema(0.9))
  published = VectorQuantizer(32, 3, update=Ema(0.9, reset=EncodecReset()))
  meant = VectorQuantizer(32, 3, update=Ema(0.9, reset=ResetBelow(2.0)))
  variables = init(plain, z)
  after = [step(quantizer, variables, z)[1] for quantizer in (plain, published, meant)]
  for x, y in zip(*map(jax.tree.leaves, after[:2]), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5)  # two programs: not to the last bit
  assert not trees_equal(after[0], after[2])


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_dead_codes_that_learn_by_gradient_move_by_an_offset(metric, rng):
  quantizer = VectorQuantizer(8, 2, metric, update=Learnt(0.5, ResetBelow(0.4)))
  z = jax.random.normal(rng, (4, 4, 2))
  variables = init(quantizer, z)
  # Codes 5 and 6 point the same way, and the lower one takes all that comes.
  far = 3 * variables["params"]["codes"].at[5].set(1.0).at[6].set(2e3)
  variables = {**variables, "params": {"codes": far}}
  for number in range(3):
    _, variables = step(quantizer, variables, z, key=jax.random.key(number))
  codes = jax.jit(lambda v: quantizer.apply(v, method="codebook"))(variables)
  tokens = np.asarray(unit(z) if metric == "cosine" else z).reshape(-1, 2)
  assert np.abs(tokens - np.asarray(codes[6])).max(-1).min() < 1e-3
  np.testing.assert_array_equal(variables["params"]["codes"], far)

  def loss(params):
    all_of = {**variables, "params": params}
    return quantizer.apply(
      all_of, z, train=True, mutable=["codebook"], rngs={"codebook": rng}
    )[0].losses["codebook"]

  ids = np.asarray(step(quantizer, variables, z)[0].ids).reshape(-1)
  grad = np.asarray(jax.jit(jax.grad(loss))(variables["params"])["codes"])
  assert set(np.flatnonzero(grad.any(-1))) <= set(ids) and 6 in ids
  assert grad[6].any()


def test_observing_later_is_the_same_step(rng):
  """Two searches without an update and one of both together, as shared codebooks do."""
  quantizer = VectorQuantizer(12, 3, "cosine", update=Ema(0.8, reset=ResetBelow(0.9)))
  z = jax.random.normal(rng, (2, 10, 3)).astype(jnp.bfloat16)
  mask = jnp.ones((2, 10), bool).at[1, 4:].set(False)
  variables = init(quantizer, z)

  @jax.jit
  def late(z):
    quantized, between = quantizer.apply(
      variables, z, mask, train=True, observe=False, mutable=["codebook"]
    )
    flat = jnp.where(mask[..., None], z, jnp.nan).reshape(-1, 3)
    return between, quantizer.apply(
      {**variables, **between},
      flat,
      quantized.ids.reshape(-1),
      method="observe",
      mutable=["codebook"],
      rngs={"codebook": jax.random.key(5)},
    )[1]

  _, at_once = step(quantizer, variables, z, mask)
  between, after = late(z)
  assert trees_equal(between["codebook"], variables["codebook"])
  for name, value in after["codebook"].items():
    np.testing.assert_allclose(value, at_once["codebook"][name], rtol=1e-6, atol=1e-6)


def test_affine_codes_follow_the_latents(rng):
  """Shifted and scaled latents find the same codes shifted and scaled, from one batch on."""
  quantizer = VectorQuantizer(16, 3, update=Ema(0.9), affine=Affine())
  z = jax.random.normal(rng, (4, 30, 3))
  variables = init(quantizer, z)
  scale, shift = 3.0, np.asarray([[[100.0, -3, 0]]], np.float32)
  plain, _ = step(quantizer, variables, z)
  moved, after = step(quantizer, variables, z * scale + shift)
  np.testing.assert_array_equal(moved.ids, plain.ids)
  np.testing.assert_allclose(moved.values, plain.values * scale + shift, atol=1e-3)
  moments = after["codebook"]["moments"]
  flat = np.asarray(z * scale + shift, np.float64).reshape(-1, 3)
  np.testing.assert_allclose(moments["batch_mean"], flat.mean(0), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(moments["batch_variance"], flat.var(0), rtol=1e-3)


def test_affine_moments_are_moving_averages_without_padding(rng):
  rule, codes = Affine(0.9, 0.5), jax.random.normal(jax.random.key(1), (8, 3))
  z = jax.random.normal(rng, (40, 3))
  kept = jnp.arange(40) < 25
  update = jax.jit(rule.update)
  first = update(Moments.first(3), z, kept, codes)
  second = update(first, 3 * z, kept, 2 * codes)
  tokens, codes = np.asarray(z)[:25], np.asarray(codes)
  mean = 0.9 * tokens.mean(0) + 0.1 * 3 * tokens.mean(0)
  variance = 0.5 * np.var(codes, axis=0) + 0.5 * 4 * np.var(codes, axis=0)
  np.testing.assert_allclose(second.batch_mean, mean, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(second.codes_variance, variance, rtol=1e-4)
  nothing = update(second, z, jnp.zeros(40, bool), codes)
  assert trees_equal(nothing, second)
  back = jax.jit(lambda m: m.to_codes(m.to_batch(jnp.asarray(codes))))(second)
  np.testing.assert_allclose(back, codes, atol=1e-5)


def test_affine_gradient_reaches_the_codes_through_the_scale(rng):
  quantizer = VectorQuantizer(3, 2, update=None, affine=Affine())
  z = 5 * jax.random.normal(rng, (2, 9, 2))
  variables = init(quantizer, z)
  _, variables = step(quantizer, variables, z)

  @jax.jit
  def loss(codes):  # evaluation: the moments stand still
    codebook = quantizer.apply(
      {**variables, "params": {"codes": codes}}, method="codebook"
    )
    return jnp.sum(jnp.sin(codebook))

  codes = variables["params"]["codes"]
  grad = jax.jit(jax.grad(loss))(codes)
  for place in ((0, 0), (2, 1)):
    ahead, behind = codes.at[place].add(1e-2), codes.at[place].add(-1e-2)
    difference = (loss(ahead) - loss(behind)) / 2e-2
    assert float(grad[place]) == pytest.approx(float(difference), rel=1e-2, abs=1e-3)


def test_angular_codes_keep_their_length(rng):
  quantizer = VectorQuantizer(9, 4, "angular", update=None)
  z = 3 * np.asarray(jax.random.normal(rng, (2, 20, 4)))
  variables = init(quantizer, z)
  codes = np.asarray(variables["params"]["codes"], np.float64)
  quantized, _ = step(quantizer, variables, z)
  flat = np.asarray(z, np.float64).reshape(-1, 4)
  cosines = flat @ codes.T / np.linalg.norm(codes, axis=-1)
  np.testing.assert_array_equal(quantized.ids.reshape(-1), cosines.argmax(-1))
  found = codes[cosines.argmax(-1)]
  np.testing.assert_allclose(quantized.values.reshape(-1, 4), found, rtol=1e-6)
  error = np.mean((flat - found) ** 2)
  assert float(quantized.losses["commitment"]) == pytest.approx(error, rel=1e-5)


def test_a_count_to_begin_with_of_zero(rng):
  """EnCodec's: the first tokens of a code take it over at once, whatever the decay."""
  quantizer = VectorQuantizer(1, 2, update=Ema(0.99, first_count=0.0))
  z = jax.random.normal(rng, (1, 30, 2))
  variables = init(quantizer, z)
  assert not variables["codebook"]["counts"].any()
  old = variables["codebook"]["codes"][0]
  _, after = step(quantizer, variables, z)
  expected = (0.99 * np.asarray(old) + 0.01 * np.asarray(z[0]).sum(0)) / (0.01 * 30)
  np.testing.assert_allclose(after["codebook"]["codes"][0], expected, rtol=1e-3)
  nothing = Averages(jnp.ones((2, 2)), jnp.zeros(2), jnp.ones((2, 2)))
  ids = jnp.full(3, -1)
  kept = jax.jit(lambda: Ema().update(nothing, jnp.ones((3, 2)), ids, "euclidean"))()
  np.testing.assert_array_equal(kept.codes, nothing.codes)


def test_what_does_not_go_together_is_refused():
  with pytest.raises(TokzooError, match=r"kmeans.*codes_init"):
    VectorQuantizer(4, 2, update=None, start=KMeans())
  with pytest.raises(TokzooError, match="not 'cosine'"):
    VectorQuantizer(4, 2, "cosine", affine=Affine())
  with pytest.raises(ValueError, match="needs a key"):
    z, ids = jnp.ones((2, 2)), jnp.zeros(2, jnp.int32)
    old = Averages(jnp.ones((3, 2)), jnp.ones(3), jnp.ones((3, 2)))
    Ema(reset=ResetBelow(1.0)).update(old, z, ids, "euclidean")
  with pytest.raises(ValueError, match="number of updates"):
    Ema(reset=PeriodicReset()).update(old, z, ids, "euclidean", jax.random.key(0))
