"""FSQ, LFQ / BSQ, latent and random-projection quantization: grids, gradients, entropies."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.quantizers import FiniteScalar, LookupFree
from tokzoo.quantizers.entropies import bit_entropies, floored_entropies
from tokzoo.quantizers.latent import LatentQuantizer
from tokzoo.quantizers.random_projection import RandomProjection


def test_fsq_grid():
  """Dimension 0 is the fastest digit; even levels are off centre, odd ones are not."""
  quantizer = FiniteScalar((4, 3))
  codes = quantizer.ids_to_codes(jnp.arange(12))
  expected = [(a, b) for b in (-1, 0, 1) for a in (-1, -0.5, 0, 0.5)]
  np.testing.assert_array_equal(codes, expected)
  symmetric = FiniteScalar((2, 4), symmetric=True).ids_to_codes(jnp.arange(8))
  np.testing.assert_allclose(symmetric[:, 0], np.tile([-1, 1], 4))
  np.testing.assert_allclose(symmetric[::2, 1], [-1, -1 / 3, 1 / 3, 1], rtol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_fsq_reaches_every_code_and_saturates(symmetric):
  quantizer = FiniteScalar((7, 2001), symmetric)
  z = jnp.stack([jnp.linspace(-9, 9, 200_000)] * 2, axis=-1)[None]
  ids = np.asarray(quantizer.apply({}, z).ids)[0]
  assert set(ids % 7) == set(range(7))
  assert ids.min() == 0 and ids.max() == quantizer.num_codes - 1
  # Rounding errors of tanh are a few parts of a level here.
  assert np.all(np.diff(ids // 7) >= -1)


def test_fsq_zero_of_two_levels_rounds_up():
  quantized = FiniteScalar((2, 2), symmetric=True).apply({}, jnp.zeros((1, 1, 2)))
  np.testing.assert_array_equal(quantized.values[0, 0], [1, 1])


@pytest.mark.parametrize("symmetric", [False, True])
def test_fsq_gradient_is_that_of_the_bound(symmetric):
  quantizer = FiniteScalar((8, 5), symmetric)
  z = np.array([0.3, -0.7])
  jacobian = jax.jacobian(lambda z: quantizer.apply({}, z[None, None]).values[0, 0])(
    jnp.asarray(z, jnp.float32)
  )
  levels = np.array([8, 5])
  if symmetric:
    slope = 1 / np.cosh(z) ** 2
  else:
    height = (levels - 1) * 1.001 / 2
    shift = np.arctanh(np.array([0.5, 0]) / height)
    slope = height / np.cosh(z + shift) ** 2 / (levels // 2)
  np.testing.assert_allclose(jacobian, np.diag(slope), rtol=1e-5, atol=1e-7)


def test_fsq_bounds():
  """Where the latent 0 goes, and how far the bound reaches, by the definitions."""
  levels = np.array([4, 7, 2])
  z = jnp.asarray([[[0.0, 0, 0], [9, 9, 9], [-9, -9, -9], [0.4, 0.4, 0.4]]])

  def bounded(bound, levels):
    quantizer = FiniteScalar(tuple(levels.tolist()), bound=bound)
    position, _ = quantizer._position(z[..., : len(levels)])
    return np.asarray(position[0]) - levels // 2

  half, offset = (levels - 1) * (1 - 1e-3) / 2, np.array([0.5, 0, 0.5])
  shift = np.tan(offset / half)
  expected = np.tanh(np.asarray(z[0], np.float64) + shift) * half - offset
  np.testing.assert_allclose(bounded("tan", levels), expected, atol=1e-6)
  found = bounded("atanh", levels[:2])
  np.testing.assert_allclose(found[0], 0, atol=1e-6)  # what atanh is there for
  assert abs(bounded("tan", levels)[0, 0]) > 1e-4
  half, offset = (levels[:2] - 1) * (1 + 1e-3) / 2, offset[:2]
  clamped = np.clip(np.asarray(z[0, :, :2]) + offset / half, -1, 1) * half - offset
  np.testing.assert_allclose(bounded("clamp", levels[:2]), clamped, atol=1e-6)
  symmetric = FiniteScalar((5, 4), symmetric=True, bound="clamp")
  values = symmetric.apply({}, jnp.asarray([[[0.3, 0.3], [7, -7]]])).values[0]
  np.testing.assert_allclose(values, [[0.5, 1 / 3], [1, -1]], rtol=1e-6)


def test_fsq_scale():
  quantizer = FiniteScalar((5, 4), symmetric=True, scale=(0.2, 3.0))
  plain = FiniteScalar((5, 4), symmetric=True)
  z = jax.random.normal(jax.random.key(0), (1, 9, 2))
  scale = jnp.asarray([0.2, 3.0]).reshape(1, 1, 2)
  scaled, reference = quantizer.apply({}, z * scale), plain.apply({}, z)
  np.testing.assert_array_equal(scaled.ids, reference.ids)
  np.testing.assert_allclose(scaled.values, reference.values * scale, rtol=1e-6)
  np.testing.assert_array_equal(
    quantizer.codes_to_ids(quantizer.ids_to_codes(scaled.ids)), scaled.ids
  )


def test_fsq_noise_dropout():
  """In training a share of the entries moves by up to 1/2, within [-1, 1]; ids never."""
  quantizer = FiniteScalar((5, 4), symmetric=True, noise_dropout=0.3)
  z = 2 * jax.random.normal(jax.random.key(0), (4, 500, 2))
  rngs = {"quantizer": jax.random.key(1)}
  train = jax.jit(functools.partial(quantizer.apply, {}, train=True, rngs=rngs))
  still, noisy = jax.jit(functools.partial(quantizer.apply, {}))(z), train(z)
  np.testing.assert_array_equal(noisy.ids, still.ids)
  moved = np.asarray(noisy.values - still.values)
  # Noise at an outer level is clamped half of the time.
  inner = np.abs(np.asarray(still.values)) < 0.9
  assert abs((moved[inner] != 0).mean() - 0.3) < 0.03
  assert np.abs(moved).max() <= 0.5 and np.abs(noisy.values).max() <= 1

  def total(z):
    return jnp.sum(train(z).values)

  slope = np.asarray(jax.jit(jax.grad(total))(z))
  through = np.asarray(1 / jnp.cosh(z) ** 2)
  kept = inner & (np.abs(noisy.values) < 1)
  np.testing.assert_allclose(slope[kept], through[kept], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  "options, said",
  [
    ({"symmetric": True, "bound": "tan"}, "no shift"),
    ({"noise_dropout": 0.5}, "not symmetric"),
  ],
)
def test_fsq_refuses_options_that_do_not_go_together(options, said):
  with pytest.raises(TokzooError, match=said):
    FiniteScalar((5, 5), **options)


@pytest.mark.parametrize(
  "levels, symmetric, said",
  [
    ((8, 2), False, "symmetric"),
    ((8, 1), True, "at least 2"),
    ((), False, "at least"),
    ((65536, 65536), False, "int32"),
  ],
)
def test_fsq_refuses(levels, symmetric, said):
  with pytest.raises(TokzooError, match=said):
    FiniteScalar(levels, symmetric)


def test_lfq_bits_are_big_endian_and_zero_is_off():
  quantizer = LookupFree(4, scale=2.0)
  quantized = quantizer.apply({}, jnp.asarray([[[0.1, -3.0, 0.0, 5.0]]]))
  assert quantized.ids[0, 0] == 0b1001
  np.testing.assert_array_equal(quantized.values[0, 0], [2, -2, -2, 2])
  np.testing.assert_array_equal(quantized.stats["on"], [1, 0, 0, 1])
  assert quantized.stats["tokens"] == 1


@pytest.mark.parametrize("gradient, slope", [("code", 1.0), ("sign", 0.5)])
def test_bsq_lies_on_the_sphere_with_the_chosen_gradient(gradient, slope):
  quantizer = LookupFree(4, spherical=True, gradient=gradient)
  z = jnp.asarray([0.5, -0.5, 0.5, 0.5])  # already on the sphere

  def call(z):
    return quantizer.apply({}, z[None, None]).values[0, 0]

  np.testing.assert_allclose(jnp.linalg.norm(call(z)), 1, rtol=1e-6)
  tangent = jnp.asarray([1.0, 1.0, 0.0, 0.0])  # moves along the sphere
  _, moved = jax.jvp(call, (z,), (tangent,))
  np.testing.assert_allclose(moved, slope * tangent, atol=1e-6)


@pytest.mark.parametrize("group", [None, 1, 2, 5])
def test_entropies_equal_the_sum_over_all_words(group, rng):
  logits = 2 * jax.random.normal(rng, (3, 6, 5))
  mask = jnp.ones((3, 6), bool).at[1, 2:].set(False)
  sample, batch = jax.jit(bit_entropies, static_argnums=1)(logits, group, mask)

  kept = np.asarray(logits, np.float64)[np.asarray(mask)]
  p = 1 / (1 + np.exp(-kept))

  def words(p):  # [N, m] -> [N, 2^m]
    rows = [
      np.where(w, p, 1 - p).prod(-1)
      for w in itertools.product((0, 1), repeat=p.shape[1])
    ]
    return np.stack(rows, -1)

  def entropy(q):
    return -(q * np.log(q)).sum(-1)

  step = group or 5
  chunks = [p[:, start : start + step] for start in range(0, 5, step)]
  assert sample == pytest.approx(entropy(words(p)).mean(), rel=1e-5)
  assert batch == pytest.approx(
    sum(entropy(words(c).mean(0)) for c in chunks), rel=1e-5
  )


@pytest.mark.parametrize("group", [None, 2])
def test_floored_entropies(group, rng):
  """Without a floor they are the exact ones; with one, words below it weigh log floor."""
  z = jax.random.normal(rng, (3, 6, 5))
  mask = jnp.ones((3, 6), bool).at[1, 2:].set(False)
  floored = jax.jit(floored_entropies, static_argnums=(1, 2, 3))
  found = floored(z, 3.0, 1e-30, group, mask)
  exact = jax.jit(bit_entropies, static_argnums=1)(6.0 * z, group, mask)
  np.testing.assert_allclose(found, exact, rtol=1e-5)

  rows = np.asarray(z, np.float64)[np.asarray(mask)]
  sample, batch = 0.0, 0.0
  for start in range(0, 5, group or 5):
    chunk = rows[:, start : start + (group or 5)]
    signs = np.array(list(itertools.product((-1, 1), repeat=chunk.shape[1])))
    p = np.exp(3 * chunk @ signs.T)
    p /= p.sum(1, keepdims=True)
    sample -= (p * np.log(np.maximum(p, 0.05))).sum(1).mean()
    batch -= (p.mean(0) * np.log(np.maximum(p.mean(0), 0.05))).sum()
  np.testing.assert_allclose(floored(z, 3.0, 0.05, group, mask), (sample, batch), 1e-5)
  assert sample < float(exact[0])


@pytest.mark.parametrize("group", [None, 2])
def test_entropies_have_true_gradients(group, rng):
  """Against central differences of the float64 definition by way of a random direction."""
  logits, direction = jax.random.normal(rng, (2, 2, 6, 5))

  @jax.jit
  def along(step):
    return jnp.stack(bit_entropies(logits + step * direction, group))

  slopes = jax.jit(jax.jacfwd(along))(0.0)
  differences = (along(1e-2) - along(-1e-2)) / 2e-2
  np.testing.assert_allclose(slopes, differences, rtol=5e-3, atol=1e-4)


def test_bsq_on_a_larger_sphere():
  """Twice the radius: twice the codes, four times the squared error, the same ids."""
  z = jax.random.normal(jax.random.key(0), (1, 7, 4))
  small, large = (
    jax.jit(functools.partial(quantizer.apply, {}, train=True))(z)
    for quantizer in (
      LookupFree(4, spherical=True, scale=scale, entropy_group=2)
      for scale in (1.0, 2.0)
    )
  )
  np.testing.assert_array_equal(small.ids, large.ids)
  np.testing.assert_allclose(large.values, 2 * small.values, rtol=1e-6)
  assert float(large.losses["commitment"]) == pytest.approx(
    4 * float(small.losses["commitment"]), rel=1e-5
  )


def test_bsq_error_is_bounded():
  """|z - q|^2 <= 2 - 2 / sqrt d on the unit sphere; least on an axis."""
  d = 6
  z = jax.random.normal(jax.random.key(0), (1, 500, d)).at[0, 0].set(jnp.eye(d)[0])
  quantized = LookupFree(d, spherical=True).apply({}, z)
  onto = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
  error = np.asarray(jnp.sum((onto - quantized.values) ** 2, -1))[0]
  bound = 2 - 2 / np.sqrt(d)
  assert error.max() == pytest.approx(bound, rel=1e-5) and error.argmax() == 0


def test_entropies_of_certain_bits_have_finite_gradients():
  logits = jnp.asarray([[[400.0, -400.0, 0.0, 90.0]]])
  grads = jax.jit(jax.jacobian(lambda x: jnp.stack(bit_entropies(x))))(logits)
  assert np.isfinite(grads).all()
  sample, batch = jax.jit(bit_entropies)(logits)
  assert sample == pytest.approx(np.log(2)) and batch == pytest.approx(np.log(2))


def test_18_bits_jointly_fit(rng):
  """The joint entropy over 262,144 words of 4,096 tokens, without a [4096, 2^18] array."""
  logits = jnp.zeros((1, 4096, 18))
  compiled = jax.jit(bit_entropies).lower(logits).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 100e6
  _, batch = compiled(logits)
  assert batch == pytest.approx(18 * np.log(2), rel=1e-5)


def test_lfq_refuses_bits_that_do_not_fit():
  with pytest.raises(TokzooError, match="32 bits"):
    LookupFree(32)
  with pytest.raises(TokzooError, match="3 int32"):
    LookupFree(40, id_groups=3)


def test_latent_values_begin_equally_spaced_and_take_the_nearest():
  quantizer = LatentQuantizer((3, 4))
  z = jnp.asarray([[[0.2, -0.3], [0.3, 0.1], [-9.0, 9.0], [-0.25, -0.375]]])
  variables = jax.jit(quantizer.init)(jax.random.key(0), z)
  out = quantizer.apply(variables, z)
  expected = [[0, -0.25], [0.5, 0], [-0.5, 0.25], [-0.5, -0.5]]  # the first of a tie
  np.testing.assert_array_equal(out.values[0], expected)
  np.testing.assert_array_equal(out.ids[0], [1 + 3 * 1, 2 + 3 * 2, 3 * 3, 0])


def test_latent_values_learn():
  """Ids stay those of the places, whatever the values have become."""
  quantizer = LatentQuantizer((3, 4, 5))
  z = jax.random.normal(jax.random.key(1), (2, 8, 3))
  params = jax.jit(quantizer.init)(jax.random.key(0), z)["params"]

  @jax.jit
  def loss(params):
    out = quantizer.apply({"params": params}, z, train=True)
    return out.losses["codebook"], out.ids

  (before, ids), grad = jax.value_and_grad(loss, has_aux=True)(params)
  digits = np.asarray(ids) // np.array([1]) % 3
  expected = np.zeros(3)
  first = np.asarray(z)[..., 0]
  np.add.at(expected, digits, 2 * (np.array([-0.5, 0, 0.5])[digits] - first) / z.size)
  np.testing.assert_allclose(grad["values_0"], expected, rtol=1e-5)
  moved = jax.tree.map(lambda value, slope: value - 5 * slope, params, grad)
  assert float(loss(moved)[0]) < float(before)
  every = jnp.arange(60, dtype=jnp.int32)
  codes = quantizer.apply({"params": moved}, every, method="ids_to_codes")
  back = quantizer.apply({"params": moved}, codes, method="codes_to_ids")
  np.testing.assert_array_equal(back, every)


def test_latent_padding_reaches_nothing():
  quantizer = LatentQuantizer((3, 4))
  z = jax.random.normal(jax.random.key(1), (2, 6, 2))
  params = jax.jit(quantizer.init)(jax.random.key(0), z)["params"]
  mask = jnp.ones((2, 6), bool).at[:, 4:].set(False)

  @jax.jit
  def losses(params, z, mask):
    out = quantizer.apply({"params": params}, z, mask, train=True)
    return out.losses["codebook"], out

  differentiate = jax.value_and_grad(losses, has_aux=True)
  padded = jnp.where(mask[..., None], z, jnp.nan)
  (loss, out), grad = differentiate(params, padded, mask)
  (short, _), short_grad = differentiate(params, z[:, :4], mask[:, :4])
  assert (np.asarray(out.ids)[:, 4:] == -1).all() and not out.values[:, 4:].any()
  assert loss == pytest.approx(float(short), rel=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), grad, short_grad)


@pytest.mark.parametrize("levels", [(), (3, 1), (65536, 65536)])
def test_latent_refuses(levels):
  with pytest.raises(TokzooError, match="levels"):
    LatentQuantizer(levels)


@pytest.mark.parametrize("heads, mixed", [(1, False), (3, False), (3, True)])
def test_random_projection(heads, mixed):
  """Ids by the definition, whatever the scale and offset of a token; nothing trains."""
  quantizer = RandomProjection(11, 6, 4, heads, mixed=mixed)
  z = jax.random.normal(jax.random.key(1), (2, 5, 6))
  variables = jax.jit(quantizer.init)(jax.random.key(0), z)
  assert set(variables) == {"codebook"}
  state = jax.tree.map(np.asarray, variables["codebook"])
  call = jax.jit(functools.partial(quantizer.apply, mutable=["codebook"], train=True))
  out, after = call(variables, z)
  x = np.asarray(z, np.float64)
  x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
  projected = np.einsum("bld,qde->blqe", x, state["projections"])
  if mixed:
    flat = projected.reshape(2, 5, -1) @ state["mix"] + state["mix_bias"]
    projected = flat.reshape(2, 5, heads, -1)
  codes = state["codes"] / np.linalg.norm(state["codes"], axis=-1, keepdims=True)
  expected = np.einsum("blqe,qke->blqk", projected, codes).argmax(-1)
  expected = expected if heads > 1 else expected[..., 0]
  np.testing.assert_array_equal(out.ids, expected)
  np.testing.assert_array_equal(call(variables, 3 * z + 7)[0].ids, expected)
  jax.tree.map(np.testing.assert_array_equal, after["codebook"], variables["codebook"])
  assert not out.losses and quantizer.bits_per_token == pytest.approx(
    heads * np.log2(11)
  )
  back = quantizer.apply(variables, out.values, method="codes_to_ids")
  np.testing.assert_array_equal(back, out.ids)
  mask = jnp.ones((2, 5), bool).at[1, 2:].set(False)
  padded = jnp.where(mask[..., None], z, jnp.nan)
  masked = jax.jit(quantizer.apply)(variables, padded, mask)
  wide = np.asarray(mask).reshape(2, 5, *(1,) * (expected.ndim - 2))
  np.testing.assert_array_equal(masked.ids, np.where(wide, expected, -1))
  assert masked.stats["counts"].sum() == heads * mask.sum()
