"""Attention: the plain sum, and which arrays cuDNN's kernel takes; the kernel on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.nn.layers import attend, is_for_cudnn


def drawn(*shape, seed=0, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def causal(length):
  return jnp.tril(jnp.ones((length, length), bool))[None, None]


def plain(q, k, v, mask):
  """In float64, one head at a time."""
  q, k, v, mask = (np.asarray(a, np.float64) for a in (q, k, v, mask))
  scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
  scores = np.where(mask.astype(bool), scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum("bhqk,bkhd->bqhd", weights, v)


def test_attention_is_the_softmax_of_scaled_products():
  q, k, v = (drawn(2, 6, 3, 8, seed=seed) for seed in range(3))
  made = jax.jit(attend)(q, k, v, causal(6))
  np.testing.assert_allclose(made, plain(q, k, v, causal(6)), atol=1e-5)


@pytest.mark.parametrize(
  ("dtype", "queries", "keys", "dim", "mask", "taken"),
  [
    ("bfloat16", 6, 6, 64, (1, 1, 6, 6), True),
    ("float16", 6, 8, 64, (2, 1, 6, 8), True),
    ("bfloat16", 5, 7, 64, None, True),
    ("float32", 6, 6, 64, (1, 1, 6, 6), False),
    ("bfloat16", 5, 5, 64, (1, 1, 5, 5), False),
    ("bfloat16", 6, 6, 64, (1, 1, 1, 6), False),
    ("bfloat16", 1, 6, 64, None, False),
    ("bfloat16", 6, 6, 160, None, False),
    ("bfloat16", 6, 6, 20, None, False),
  ],
)
def test_what_the_fused_kernel_takes(dtype, queries, keys, dim, mask, taken):
  q = jax.ShapeDtypeStruct((2, queries, 4, dim), dtype)
  k = jax.ShapeDtypeStruct((2, keys, 4, dim), dtype)
  mask = mask and jax.ShapeDtypeStruct(mask, bool)
  assert is_for_cudnn(q, k, mask) == taken


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU here")
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_fused_kernel_computes_the_same(is_causal):
  q, k, v = (drawn(4, 256, 8, 64, seed=seed, dtype=jnp.bfloat16) for seed in range(3))
  mask = causal(256) if is_causal else None

  def loss(q, k, v):
    return jnp.sum(attend(q, k, v, mask).astype(jnp.float32) ** 2)

  program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(q, k, v)
  assert "cudnn" in program.as_text(), "the kernel was not taken"
  value, gradients = program.compile()(q, k, v)
  wide = [a.astype(jnp.float32) for a in (q, k, v)]
  expected, wanted = jax.value_and_grad(loss, argnums=(0, 1, 2))(*wide)
  np.testing.assert_allclose(value, expected, rtol=1e-2)
  for found, gradient in zip(gradients, wanted, strict=True):
    np.testing.assert_allclose(
      found.astype(jnp.float32), gradient, atol=2e-2 * float(jnp.abs(gradient).max())
    )
