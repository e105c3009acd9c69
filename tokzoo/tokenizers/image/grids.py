"""What tokenizers with a grid of ids share: which pictures fit, which tokens they read."""

import numpy as np
from jax.core import Tracer

from tokzoo.errors import TokzooError
from tokzoo.tokens import Tokens


def check_pictures(shape: tuple[int, ...], channels: int, factor: int) -> None:
  """Raises TokzooError unless pictures of `shape` fit a fully convolutional tokenizer.

  Args:
    shape: of the batch, [B, H, W, C] if it is right.
    channels: that the model takes.
    factor: pixels to a token along each side.
  """
  if len(shape) != 4 or shape[3] != channels:
    raise TokzooError(
      f"images of shape [B, H, W, {channels}] were expected; these are {list(shape)}: "
      f"{'stack them to a batch' if len(shape) == 3 else 'convert the channels'} first."
    )
  if any(side % factor or side < factor for side in shape[1:3]):
    raise TokzooError(
      f"an image of {shape[1]} x {shape[2]} pixels does not fit: height and width must be "
      f"multiples of {factor}; resize or crop it."
    )


def check_num_tokens(num_tokens: int | None, shape: tuple[int, ...], factor: int):
  """Raises TokzooError if another number of tokens is asked for than the grid has."""
  made = (shape[1] // factor) * (shape[2] // factor)
  if num_tokens not in (None, made):
    raise TokzooError(
      f"{num_tokens} tokens were asked for, but an image of {shape[1]} x {shape[2]} pixels "
      f"always has {made} here: leave num_tokens out, or encode another size."
    )


def grid_of(
  tokens: Tokens,
  vocab: int,
  size: tuple[int, int] | None,
  image_size: int,
  factor: int,
) -> tuple[int, int]:
  """Rows and columns of the grid that ids unfold to.

  Args:
    tokens: ids, with the grid (rows, columns), or without from a generator.
    vocab: number of codes of the model.
    size: height and width in pixels of the wanted picture; None: as the grid says, or the
      model's own size.
    image_size: side in pixels of the model's pictures.
    factor: pixels to a token along each side.

  Raises:
    TokzooError: tokens of another kind or vocabulary, ids out of range (where they can be
      read), or a size that does not belong to them.
  """
  if tokens.ids is None or tokens.ids.ndim != 2 or tokens.vocab != vocab:
    codes = "" if tokens.vocab is None else f" of {tokens.vocab} codes"
    raise TokzooError(
      f"this tokenizer reads ids [B, L] of {vocab} codes; these are {tokens.kind}"
      f"{codes}: decode with the tokenizer that made them."
    )
  if not isinstance(tokens.ids, Tracer):
    ids = np.asarray(tokens.ids)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab):
      wrong = int(ids.min() if ids.min() < 0 else ids.max())
      raise TokzooError(
        f"id {wrong} is out of range: this tokenizer has the ids 0 to {vocab - 1}."
      )
  if size is not None:
    check_pictures((1, *size, 1), 1, factor)
  grid = tokens.grid or ()
  if len(grid) != 2:
    height, width = size or (image_size, image_size)
    grid = (height // factor, width // factor)
  rows, columns = grid
  fits = size in (None, (rows * factor, columns * factor))
  if rows * columns != tokens.length or not fits:
    shape = (
      f"{rows} x {columns} tokens"
      if len(tokens.grid or ()) == 2
      else (f"{tokens.length} tokens")
    )
    height, width = size or (image_size, image_size)
    raise TokzooError(
      f"{shape} are not those of a picture of {height} x {width} pixels, which has "
      f"{height // factor} x {width // factor}: pass the size of the picture that they were "
      "made from."
    )
  return rows, columns
