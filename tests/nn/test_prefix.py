"""Prefixes: the laws of their lengths, and that a cut token is as good as none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.nn.prefix import (
  attention_mask,
  check_num_tokens,
  draw_length,
  prefix_mask,
  replace_tail,
)
from tokzoo.nn.vit import ViT


def shares(law: str, num_tokens: int) -> dict[int, float]:
  drawn = draw_length(jax.random.key(0), num_tokens, law, (8192,))
  values, counts = np.unique(np.asarray(drawn), return_counts=True)
  return dict(zip(values.tolist(), (counts / 8192).tolist(), strict=True))


@pytest.mark.parametrize(
  ("law", "num_tokens", "expected"),
  [
    ("uniform", 5, dict.fromkeys(range(1, 6), 1 / 5)),
    ("uniform", 1, {1: 1.0}),
    ("pow2", 8, {1: 1 / 4, 2: 1 / 4, 4: 1 / 4, 8: 1 / 4}),
    ("pow2", 6, {1: 1 / 3, 2: 1 / 3, 4: 1 / 3}),
    ("uniform_pow2", 8, {1: 1 / 8, 2: 1 / 8, 4: 1 / 4, 8: 1 / 2}),
    ("uniform_pow2", 6, {1: 1 / 6, 2: 1 / 6, 4: 1 / 3, 6: 1 / 3}),
  ],
)
def test_the_laws(law, num_tokens, expected):
  found = shares(law, num_tokens)
  assert set(found) == set(expected)
  for length, share in expected.items():
    assert abs(found[length] - share) < 0.03


def test_one_length_for_the_batch_or_one_per_row():
  assert draw_length(jax.random.key(0), 9).shape == ()
  np.testing.assert_array_equal(prefix_mask(2, 3), [True, True, False])
  rows = prefix_mask(jnp.array([0, 3], jnp.int32), 3)
  np.testing.assert_array_equal(rows, [[False] * 3, [True] * 3])


def test_cut_tokens_are_as_good_as_none():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 7, 16)).astype(np.float32)  # 2 places before, 5 tokens
  vit = ViT(layers=2, heads=4)
  variables = vit.init(jax.random.key(0), x)
  short = vit.apply(variables, x[:, :5])
  masked = vit.apply(variables, x, attention_mask(prefix_mask(3, 5), before=2))
  np.testing.assert_allclose(masked[:, :5], short, atol=1e-6)
  whole = np.asarray(vit.apply(variables, x))
  assert np.abs(whole[:, :5] - np.asarray(short)).max() > 1e-3
  lengths = jnp.array([3, 5], jnp.int32)
  rows = vit.apply(variables, x, attention_mask(prefix_mask(lengths, 5), before=2))
  np.testing.assert_allclose(rows[0, :5], short[0], atol=1e-6)
  np.testing.assert_allclose(rows[1], whole[1], atol=1e-6)


def test_a_replaced_tail():
  tokens = jnp.ones((2, 3, 2))
  found = replace_tail(tokens, prefix_mask(1, 3), jnp.array([5.0, 6.0]))
  np.testing.assert_array_equal(found[1], [[1, 1], [5, 6], [5, 6]])


def test_numbers_of_tokens():
  assert check_num_tokens(None, 4) == 4 and check_num_tokens(4, 4) == 4
  for wrong in (0, 5):
    with pytest.raises(TokzooError, match=f"{wrong} tokens were asked .* 1 to 4"):
      check_num_tokens(wrong, 4)
