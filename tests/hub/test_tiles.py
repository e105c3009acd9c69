"""A tokenizer that works tile by tile: pictures of any size, and what they come back as."""

import numpy as np
import pytest

from tests.models import TOKENIZER, random_variables
from tokzoo.errors import TokzooError
from tokzoo.hub import Card, PretrainedTokenizer
from tokzoo.tokens import load_tokens, save_tokens


def tokenizer(tile: bool) -> PretrainedTokenizer:
  card = Card("t", "instella-t2i", "tokenizer", "Apache-2.0", "Apache-2.0", tile=tile)
  return PretrainedTokenizer(TOKENIZER.build(), random_variables(TOKENIZER), card)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (2, 20, 13, 1), np.uint8)


def test_pictures_of_any_size_are_tiled(pictures, tmp_path):
  tiled = tokenizer(tile=True)
  tokens = tiled.encode(pictures)
  assert tokens.grid == (3, 2, TOKENIZER.num_tokens)
  assert tokens.packed.shape[:2] == (2, 6 * TOKENIZER.num_tokens)
  made = tiled.decode(tokens, (20, 13))
  assert made.shape == pictures.shape
  # By hand: the second tile of the last row, its edges repeated.
  tile = np.pad(pictures[1, 16:, 8:], ((0, 4), (0, 3), (0, 0)), mode="edge")
  alone = tokenizer(tile=False).reconstruct(tile)[0]
  np.testing.assert_allclose(made[1, 16:, 8:], alone[:4, :5], atol=1e-5)
  assert tiled.decode(tokens).shape == (2, 24, 16, 1)
  np.testing.assert_array_equal(tiled.reconstruct(pictures), made)
  save_tokens(tmp_path / "a.tok", tokens)
  kept, _ = load_tokens(tmp_path / "a.tok", tiled.origin)
  np.testing.assert_array_equal(tiled.decode(kept, (20, 13)), made)


def test_a_single_tile_needs_no_place(pictures):
  tiled = tokenizer(tile=True)
  tokens = tiled.encode(pictures[:, :8, :8])
  assert tokens.grid == (1, 1, TOKENIZER.num_tokens)
  from_generator = tokens.replace(grid=(TOKENIZER.num_tokens,))
  np.testing.assert_array_equal(tiled.decode(from_generator), tiled.decode(tokens))


def test_a_size_of_another_picture_is_refused(pictures):
  tiled = tokenizer(tile=True)
  tokens = tiled.encode(pictures)
  with pytest.raises(TokzooError, match="3 x 2 tiles of 8 pixels"):
    tiled.decode(tokens, (25, 13))


def test_without_tiling_the_model_takes_its_own_sizes_only(pictures):
  with pytest.raises(TokzooError, match="20 x 13 pixels does not fit"):
    tokenizer(tile=False).encode(pictures)
