"""Layers of the codecs beside plain NumPy: convolutions, Snake, sliding attention, LSTM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.nn import conv1d as c1d
from tokzoo.nn.layers import attend
from tokzoo.nn.local_attention import sliding_attention
from tokzoo.nn.lstm import LSTM
from tokzoo.nn.snake import square_of_sine


def draw(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def naive_conv(x, kernel, stride, dilation):
  taps, depth, outputs = kernel.shape
  length = (x.shape[1] - (taps - 1) * dilation - 1) // stride + 1
  y = np.zeros((len(x), length, outputs))
  for t in range(length):
    for j in range(taps):
      row = x[:, t * stride + j * dilation]
      y[:, t] += row * kernel[j, 0] if depth == 1 else row @ kernel[j]
  return y


def naive_transpose(x, kernel, stride):
  taps, outputs, _ = kernel.shape
  y = np.zeros((len(x), (x.shape[1] - 1) * stride + taps, x.shape[2]))
  y = y if outputs == 1 else y[..., :1].repeat(outputs, -1)
  for t in range(x.shape[1]):
    for j in range(taps):
      row = x[:, t]
      y[:, t * stride + j] += row * kernel[j, 0] if outputs == 1 else row @ kernel[j].T
  return y


@pytest.mark.parametrize("depth", [4, 1], ids=["full", "depthwise"])
@pytest.mark.parametrize(
  ("taps", "stride", "dilation"),
  [(7, 1, 1), (3, 1, 3), (4, 2, 1), (5, 3, 2), (1, 1, 1)],
)
def test_convolution(taps, stride, dilation, depth):
  x, kernel = draw(2, 29, 4), draw(taps, depth, 4, seed=1)
  y = c1d.conv1d(jnp.asarray(x), jnp.asarray(kernel), stride, dilation)
  np.testing.assert_allclose(y, naive_conv(x, kernel, stride, dilation), atol=1e-5)


@pytest.mark.parametrize("outputs", [3, 1], ids=["full", "depthwise"])
@pytest.mark.parametrize(("taps", "stride"), [(4, 2), (10, 5), (7, 3), (3, 3), (2, 3)])
def test_transposed_convolution(taps, stride, outputs):
  x, kernel = draw(2, 6, 4), draw(taps, outputs, 4, seed=1)
  expected = naive_transpose(x, kernel, stride)
  y = c1d.conv_transpose1d(jnp.asarray(x), jnp.asarray(kernel), stride)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  # What a stream computes: the blocks of the last inputs, the past in front.
  kept = -(-taps // stride) - 1
  padded = np.pad(x, ((0, 0), (kept, 0), (0, 0)))
  y = c1d.conv_transpose1d_valid(jnp.asarray(padded), jnp.asarray(kernel), stride)
  length = min(y.shape[1], expected.shape[1])
  assert y.shape[1] == 6 * stride
  np.testing.assert_allclose(y[:, :length], expected[:, :length], atol=1e-5)


@pytest.mark.parametrize("length", [10, 4, 3, 1])
def test_reflection_of_short_sequences(length):
  """As EnCodec: zeros are appended until there is enough to reflect, and cut off again."""
  x = draw(1, length, 2)
  y = np.asarray(c1d.pad1d(jnp.asarray(x), 4, 2, "reflect"))
  assert y.shape == (1, length + 6, 2)
  long = np.pad(x, ((0, 0), (0, max(0, 5 - length)), (0, 0)))
  whole = np.pad(long, ((0, 0), (4, 2), (0, 0)), mode="reflect")
  np.testing.assert_array_equal(y, whole[:, : length + 6])
  edge = np.asarray(c1d.pad1d(jnp.asarray(x), 2, 1, "replicate"))
  np.testing.assert_array_equal(edge, np.pad(x, ((0, 0), (2, 1), (0, 0)), mode="edge"))


@pytest.mark.parametrize("length", [5, 20, 23, 64])
def test_attention_in_blocks_equals_attention_in_one(length):
  q, k, v = (jnp.asarray(draw(2, length, 3, 4, seed=i)) for i in range(3))
  window = 8
  at, key = np.arange(length)[:, None], np.arange(length)[None]
  mask = jnp.asarray((key <= at) & (key > at - window))
  expected = attend(q, k, v, mask[None, None])
  np.testing.assert_allclose(sliding_attention(q, k, v, window), expected, atol=1e-5)


def test_attention_with_a_past_that_is_not_full():
  q, k, v = (jnp.asarray(draw(1, 12, 2, 4, seed=i)) for i in range(3))
  whole = sliding_attention(q, k, v, 8)
  past = jnp.pad(k[:, :3], ((0, 0), (4, 0), (0, 0), (0, 0)), constant_values=7.0)
  values = jnp.pad(v[:, :3], ((0, 0), (4, 0), (0, 0), (0, 0)), constant_values=7.0)
  y = sliding_attention(
    q[:, 3:7],
    jnp.concatenate([past, k[:, 3:7]], axis=1),
    jnp.concatenate([values, v[:, 3:7]], axis=1),
    8,
    seen=jnp.asarray(3),
  )
  np.testing.assert_allclose(y, whole[:, 3:7], atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 30.0, 1_000.0])
def test_the_square_of_the_sine(size):
  y = size * draw(20_000)
  exact = np.sin(y.astype(np.float64)) ** 2
  np.testing.assert_allclose(square_of_sine(jnp.asarray(y)), exact, atol=4e-7)
  slope = jax.vmap(jax.grad(square_of_sine))(jnp.asarray(y))
  np.testing.assert_allclose(slope, np.sin(2 * y.astype(np.float64)), atol=3e-6)


def test_an_lstm_goes_on_where_it_stopped():
  x = jnp.asarray(draw(2, 9, 4))
  module = LSTM(layers=2)
  variables = module.init(jax.random.key(0), x)
  whole, end = module.apply(variables, x)
  first, state = module.apply(variables, x[:, :5])
  second, again = module.apply(variables, x[:, 5:], state)
  both = jnp.concatenate([first, second], axis=1)
  np.testing.assert_allclose(both, whole, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), end, again)
  back, _ = LSTM(2, bidirectional=True).init_with_output(jax.random.key(0), x)[0]
  assert back.shape == (2, 9, 8)
