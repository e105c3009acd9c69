"""Pictures of any size, cut to square tiles and joined again.

The last row and column are filled by repeating the picture's edge, and cut off afterwards.
"""

import dataclasses

import numpy as np
from einops import rearrange
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How a picture of `height` x `width` pixels lies in tiles of `side` pixels."""

  height: int
  width: int
  side: int

  @property
  def rows(self) -> int:
    return -(-self.height // self.side)

  @property
  def columns(self) -> int:
    return -(-self.width // self.side)

  def cut(self, image: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "N s s C"]:
    """The tiles, row by row."""
    below = self.rows * self.side - self.height
    right = self.columns * self.side - self.width
    padded = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
    return rearrange(padded, "(r h) (c w) d -> (r c) h w d", h=self.side, w=self.side)

  def join(self, tiles: Float[np.ndarray, "N s s C"]) -> Float[np.ndarray, "H W C"]:
    """The picture of the tiles."""
    whole = rearrange(
      np.asarray(tiles), "(r c) h w d -> (r h) (c w) d", r=self.rows, c=self.columns
    )
    return whole[: self.height, : self.width]
