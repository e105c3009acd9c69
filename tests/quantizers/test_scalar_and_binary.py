"""FSQ and LFQ / BSQ: grids, gradients, entropies, and what they refuse."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.quantizers import FiniteScalar, LookupFree
from tokzoo.quantizers.entropies import bit_entropies


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
