"""Bit packing against NumPy's own bits, every program of it by the same tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokzoo.errors import TokzooError
from tokzoo.kernels.bit_packing import (
  gpu,
  hamming,
  ids_to_packed,
  pack,
  packed_matmul,
  packed_to_ids,
  tpu,
  unpack,
  words_per_token,
  xla,
)
from tokzoo.kernels.bit_packing.reference import KINDS
from tokzoo.kernels.dispatch import Unsupported
from tokzoo.quantizers import LookupFree

tpu_pack = functools.partial(tpu.pack, interpret=True)
tpu_unpack = functools.partial(tpu.unpack, interpret=True)


def packed_by_numpy(bits: np.ndarray) -> np.ndarray:
  """Little-endian bytes, four to a word."""
  padded = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % 32)])
  return np.packbits(padded, axis=-1, bitorder="little").view("<u4")


def drawn_bits(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).random(shape) > 0.5


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 100), st.sampled_from([(), (3,), (2, 3)]), st.integers(0, 999))
def test_packs_as_numpy_does_and_unpacks(implementation, bits, lead, seed):
  drawn = drawn_bits((*lead, bits), seed)
  packed = np.asarray(pack(jnp.asarray(drawn), implementation=implementation))
  assert packed.dtype == np.uint32 and packed.shape == (*lead, words_per_token(bits))
  np.testing.assert_array_equal(packed, packed_by_numpy(drawn))
  back = unpack(packed, bits, implementation=implementation)
  np.testing.assert_array_equal(np.asarray(back), drawn)


@pytest.mark.parametrize(
  "shape", [(3, 128), (2, 5, 160), (300, 131), (2048,), (1, 1000)]
)
def test_the_tpu_kernels_pack_and_unpack_alike(shape):
  latents = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  for dtype in (jnp.float32, jnp.bfloat16):
    packed = tpu_pack(jnp.asarray(latents, dtype))
    np.testing.assert_array_equal(np.asarray(packed), packed_by_numpy(latents > 0))
    for kind in ("sign", "float"):
      np.testing.assert_array_equal(
        np.asarray(tpu_unpack(packed, shape[-1], kind)),
        np.asarray(unpack(packed, shape[-1], kind)),
      )


def test_the_tpu_kernels_leave_to_xla_what_it_does_as_well():
  with pytest.raises(Unsupported, match="takes floats, not bool"):
    tpu.pack(jnp.zeros((2, 128), bool))
  for n in (127, 2049):
    with pytest.raises(Unsupported, match=f"128 to 2048 bits, not {n}"):
      tpu.pack(jnp.zeros((2, n)))
  with pytest.raises(Unsupported, match="not bool"):
    tpu.unpack(jnp.zeros((2, 4), jnp.uint32), 128, "bool")


@pytest.mark.parametrize(
  "dtype", [jnp.bool_, jnp.int32, jnp.uint8, jnp.float32, jnp.bfloat16]
)
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_every_dtype_packs_alike(dtype, implementation):
  drawn = drawn_bits((2, 40))
  packed = pack(jnp.asarray(drawn, dtype), implementation=implementation)
  np.testing.assert_array_equal(np.asarray(packed), packed_by_numpy(drawn))


def test_bit_j_stands_in_word_j_over_32_at_place_j_mod_32():
  for bit in (0, 1, 31, 32, 39):
    packed = np.asarray(pack(jnp.asarray(np.eye(40, dtype=bool)[bit])))
    expected = np.zeros(2, np.uint32)
    expected[bit // 32] = np.uint32(1) << np.uint32(bit % 32)
    np.testing.assert_array_equal(packed, expected)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_bit_is_one_where_a_number_is_above_zero(implementation):
  values = jnp.asarray([-jnp.inf, -1e-30, -0.0, 0.0, 1e-30, 0.4, jnp.inf, jnp.nan])
  packed = pack(values, implementation=implementation)
  assert np.asarray(unpack(packed, 8)).tolist() == [False] * 4 + [True] * 3 + [False]
  signs = jnp.asarray([-1, 1, 1, -1], jnp.int8)
  np.testing.assert_array_equal(
    np.asarray(unpack(pack(signs, implementation=implementation), 4, "sign")), signs
  )


def test_unpacks_to_each_kind():
  packed = pack(jnp.asarray([True, False, True]))
  assert np.asarray(unpack(packed, 3, "bool")).tolist() == [True, False, True]
  assert np.asarray(unpack(packed, 3, "sign")).tolist() == [1.0, -1.0, 1.0]
  assert np.asarray(unpack(packed, 3, "float")).tolist() == [1.0, 0.0, 1.0]
  assert unpack(packed, 3, "sign").dtype == jnp.float32


def test_works_inside_jit_and_vmap():
  drawn = jnp.asarray(drawn_bits((2, 3, 64)))
  there_and_back = jax.jit(jax.vmap(lambda bits: unpack(pack(bits), 64)))
  np.testing.assert_array_equal(np.asarray(there_and_back(drawn)), np.asarray(drawn))


def test_packs_what_is_spread_over_devices_where_it_lies():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  drawn = drawn_bits((16, 48))
  compiled = jax.jit(pack).lower(jax.device_put(drawn, rows)).compile()
  assert "all-gather" not in compiled.as_text()
  np.testing.assert_array_equal(
    np.asarray(compiled(jax.device_put(drawn, rows))), packed_by_numpy(drawn)
  )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lead", [(5,), (2, 3), ()])
def test_the_product_of_packed_bits_is_that_of_the_unpacked(kind, lead):
  rng = np.random.default_rng(0)
  drawn, weights = drawn_bits((*lead, 70)), rng.standard_normal((70, 9), np.float32)
  packed = pack(jnp.asarray(drawn))
  expected = np.asarray(unpack(packed, 70, kind)).astype(np.float64) @ weights
  for implementation in ("reference", "xla"):
    product = packed_matmul(packed, weights, kind, implementation=implementation)
    np.testing.assert_allclose(np.asarray(product), expected, atol=1e-5)


def test_the_gradient_of_a_packed_product_reaches_the_weights(monkeypatch):
  monkeypatch.setattr(xla, "_BITS", 70 * 4)  # slices of 4 rows, the last one of 3
  rng = np.random.default_rng(1)
  packed = pack(jnp.asarray(drawn_bits((11, 70))))
  weights = jnp.asarray(rng.standard_normal((70, 3), np.float32))
  cotangent = jnp.asarray(rng.standard_normal((11, 3), np.float32))

  def loss(weights):
    return jnp.sum(packed_matmul(packed, weights, "sign") * cotangent)

  expected = np.asarray(unpack(packed, 70, "sign")).T @ np.asarray(cotangent)
  value, gradient = jax.value_and_grad(loss)(weights)
  np.testing.assert_allclose(np.asarray(gradient), expected, atol=1e-5)
  product = np.asarray(unpack(packed, 70, "sign")) @ np.asarray(weights)
  np.testing.assert_allclose(value, np.sum(product * np.asarray(cotangent)), rtol=1e-5)


def test_a_packed_product_and_its_gradient_never_hold_all_bits():
  rows, n = 2**14, 256
  packed = jax.ShapeDtypeStruct((rows, n // 32), jnp.uint32)
  weights = jax.ShapeDtypeStruct((n, 4), jnp.float32)
  step = jax.value_and_grad(lambda w, p: jnp.sum(packed_matmul(p, w)))
  memory = jax.jit(step).lower(weights, packed).compile().memory_analysis()
  assert memory.temp_size_in_bytes < rows * n * 4 / 4


@pytest.mark.parametrize(
  ("kind", "shape"), [("sign", (3, 70, 9)), ("float", (130, 33, 130))]
)
def test_the_gpu_kernel_multiplies_alike(kind, shape):
  rows, n, d = shape
  rng = np.random.default_rng(0)
  packed = pack(jnp.asarray(drawn_bits((rows, n))))
  weights = jnp.asarray(rng.standard_normal((n, d), np.float32))
  product = gpu.packed_matmul(packed, weights, kind, interpret=True)
  expected = np.asarray(unpack(packed, n, kind)).astype(np.float64) @ weights
  np.testing.assert_allclose(np.asarray(product), expected, atol=1e-5)


def test_hamming_counts_the_bits_that_differ():
  a, b = drawn_bits((4, 77), 1), drawn_bits((4, 77), 2)
  distance = hamming(pack(jnp.asarray(a)), pack(jnp.asarray(b)))
  assert distance.dtype == jnp.int32
  np.testing.assert_array_equal(np.asarray(distance), (a != b).sum(-1))
  to_first = hamming(pack(jnp.asarray(a)), pack(jnp.asarray(b[0])))
  np.testing.assert_array_equal(np.asarray(to_first), (a != b[0]).sum(-1))


@pytest.mark.parametrize("bits", [1, 5, 18, 31])
def test_packed_tokens_and_the_ids_of_lfq_are_each_others_reverse(bits):
  layer = LookupFree(bits)
  latents = jnp.asarray(
    np.random.default_rng(0).standard_normal((2, 6, bits)), jnp.float32
  )
  ids = layer.apply({}, latents).ids
  packed = pack(latents)
  np.testing.assert_array_equal(
    np.asarray(packed_to_ids(packed, bits)), np.asarray(ids)
  )
  np.testing.assert_array_equal(
    np.asarray(ids_to_packed(ids, bits)), np.asarray(packed)
  )


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: unpack(jnp.zeros((3, 1), jnp.uint32), 40),
      "40 bits are packed in 2 words",
    ),
    (lambda: unpack(jnp.zeros((3, 1), jnp.uint32), 0), "0 bits are packed in 0 words"),
    (lambda: unpack(jnp.zeros((3, 1), jnp.int32), 4), "uint32.*not int32"),
    (lambda: unpack(jnp.uint32(1), 4), "uint32"),
    (lambda: unpack(jnp.zeros((3, 1), jnp.uint32), 4, "signs"), "did you mean 'sign'"),
    (lambda: pack(jnp.float32(1)), "last axis"),
    (lambda: pack(jnp.zeros((3, 0))), "last axis"),
    (lambda: pack(jnp.zeros((3, 4), jnp.complex64)), "not complex64"),
    (lambda: pack(jnp.zeros((3, 4)), implementation="cuda"), "implementation"),
    (lambda: pack(jnp.zeros((3, 4)), implementation="gpu"), "use 'xla'"),
    (lambda: hamming(jnp.zeros(2, jnp.uint32), jnp.zeros(3, jnp.uint32)), "2 and of 3"),
    (lambda: hamming(jnp.zeros(2), jnp.zeros(2)), "not float32"),
    (lambda: packed_matmul(jnp.zeros(2, jnp.uint32), jnp.zeros((9, 2))), "9 bits"),
    (lambda: packed_matmul(jnp.zeros(1, jnp.uint32), jnp.zeros(9)), "matrix of floats"),
    (lambda: packed_to_ids(jnp.zeros((2, 1), jnp.uint32), 32), "31 bits, not 32"),
    (lambda: ids_to_packed(jnp.zeros(2), 3), "integers, not float32"),
  ],
)
def test_bad_input_is_one_sentence(call, message):
  with pytest.raises(TokzooError, match=message) as error:
    call()
  assert str(error.value).count(". ") == 0


def test_a_machine_of_its_own_takes_the_kernel(monkeypatch):
  calls = []
  for module, op in ((tpu, "pack"), (gpu, "packed_matmul")):
    plain = getattr(xla, op)
    monkeypatch.setattr(
      module, op, lambda *a, op=op, plain=plain, **b: calls.append(op) or plain(*a, **b)
    )
  latents = jnp.asarray(np.random.default_rng(0).standard_normal((2, 128)), jnp.float32)
  expected = np.asarray(pack(latents))
  for backend, count in (("tpu", 4), ("tpu", 1), ("gpu", 1)):
    monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
    monkeypatch.setattr(jax, "device_count", lambda count=count: count)
    # Every branch is traced, and the one of this machine runs.
    packed = jax.jit(lambda x: pack(x))(latents)
    np.testing.assert_array_equal(np.asarray(packed), expected)
    jax.jit(lambda p: packed_matmul(p, jnp.ones((128, 2))))(packed)
  assert calls == ["pack", "packed_matmul"]


def test_what_no_kernel_is_made_for_goes_through_xla(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  bits = drawn_bits((2, 40))
  packed = pack(jnp.asarray(bits))
  np.testing.assert_array_equal(np.asarray(packed), packed_by_numpy(bits))
  with pytest.raises(TokzooError, match="takes floats, not bool"):
    pack(jnp.asarray(bits), implementation="tpu")
