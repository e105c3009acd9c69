"""What `tokzoo.load` returns: a module with its variables, ready for arrays from outside.

Inputs are checked here, at the boundary: dtype, range, NaN, size, whose tokens they are. The
modules below trust what they get.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from tokzoo.errors import TokzooError
from tokzoo.tokenizers.image.tiles import Tiling
from tokzoo.tokens import Origin, Tokens
from tokzoo.train import MeshShape, make_mesh
from tokzoo.train.mesh import ambient, batch_sharding, replicated
from tokzoo.weights import fingerprint

BATCH = 256
"""Tiles, images or samples per call of a compiled function; the last call is filled up."""


@dataclasses.dataclass(frozen=True)
class Card:
  """Where a model comes from.

  name:      catalog name, path or repository
  system:    slug; `part` names the network
  header:    what its file or run said of itself (recipe, metrics, ...)
  """

  name: str
  system: str
  part: str
  code_licence: str
  weights_licence: str
  tile: bool = False
  tokenizer: str | None = None
  sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
  header: dict[str, Any] = dataclasses.field(default_factory=dict)


class Pretrained:
  """A module and its variables.

  module:     the Linen module, pure; `module.apply(variables, ...)` works as ever
  variables:  its collections
  card:       where it comes from
  """

  def __init__(self, module: nn.Module, variables: Any, card: Card):
    self.module = module
    self.variables = variables
    self.card = card

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 over all variables."""
    return fingerprint(self.variables)

  @property
  def config(self) -> Any:
    """The module's config."""
    return self.module.config  # pyright: ignore[reportAttributeAccessIssue]

  @property
  def num_parameters(self) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))

  def __repr__(self) -> str:
    millions = self.num_parameters / 1e6
    return f"<{self.card.name}: {self.card.system} {self.card.part}, {millions:.2f} M>"


class PretrainedTokenizer(Pretrained):
  """A tokenizer: pictures to tokens and back.

  mesh:  of the devices that share a batch (`spread`); None: one device
  """

  mesh: Mesh | None = None

  @functools.cached_property
  def origin(self) -> Origin:
    """Stamped on every token that it makes."""
    return Origin(self.card.system, self.fingerprint)

  def spread(self, devices: Sequence[Any]) -> "PretrainedTokenizer":
    """The same tokenizer, with a copy on each of some devices of this process, which split
    every batch among them."""
    mesh = make_mesh(MeshShape(), devices)
    variables = jax.device_put(self.variables, replicated(mesh))
    copy = PretrainedTokenizer(self.module, variables, self.card)
    copy.mesh = mesh
    copy.__dict__["fingerprint"] = self.fingerprint  # the same weights
    return copy

  def encode(self, images: Any, num_tokens: int | None = None) -> Tokens:
    """Pictures to tokens.

    A tokenizer that works tile by tile (`card.tile`) takes pictures of any size: its tokens
    have the grid (rows of tiles, columns of tiles, tokens of a tile), and the last row and
    column are filled by repeating the picture's edge.

    Args:
      images: uint8[B, H, W, C] in 0..255, or float32[B, H, W, C] in [-1, 1]; a single picture
        [H, W, C] is a batch of one. Sizes as the model takes them.
      num_tokens: of each picture (of each tile, tile by tile), for tokenizers whose tokens
        are an encoding already when only the first are kept; None: all.

    Raises:
      TokzooError: another shape, dtype or range, NaN, or a number of tokens that the model
        does not make.
    """
    pixels = as_pixels(images, self.config.channels)
    if not self.card.tile:
      return self._encode_all(pixels, num_tokens).replace(origin=self.origin)
    tiling = Tiling(pixels.shape[1], pixels.shape[2], self.config.image_size)
    cut = np.concatenate([tiling.cut(p) for p in pixels])
    tiles = self._encode_all(cut, num_tokens)
    grid = (tiling.rows, tiling.columns, *(tiles.grid or (tiles.length,)))
    whole = jax.tree.map(lambda x: x.reshape(len(pixels), -1, *x.shape[2:]), tiles)
    return whole.replace(grid=grid, origin=self.origin)

  def decode(
    self, tokens: Tokens, size: tuple[int, int] | None = None
  ) -> Float[np.ndarray, "B H W C"]:
    """Tokens to pictures, float32 in [-1, 1] (clipped).

    Args:
      tokens: made by this very tokenizer.
      size: height and width in pixels: for models that decode to several sizes, and to cut
        off what filled the last tiles. By default what the tokens' grid says, else the model's
        size, or whole tiles.

    Raises:
      TokzooError: another tokenizer's tokens, tokens that are not sound, or a size that does
        not belong to them.
    """
    tokens.check().require_origin(self.origin)
    side = self.config.image_size
    plain = tokens.replace(origin=None)
    if not self.card.tile:
      return self._decode_all(plain, size)
    grid = tokens.grid or (tokens.length,)
    # Tokens of a single tile may come without its place, from a generator.
    rows, columns, *inner = grid if len(grid) > 2 else (1, 1, *grid)
    height, width = size or (rows * side, columns * side)
    tiling = Tiling(height, width, side)
    if (tiling.rows, tiling.columns) != (rows, columns):
      raise TokzooError(
        f"these tokens are of {rows} x {columns} tiles of {side} pixels, which no picture of "
        f"{height} x {width} pixels has: pass the size of the picture they were made from."
      )
    count = tokens.batch * rows * columns
    flat = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[2:]), plain)
    tiles = self._decode_all(flat.replace(grid=tuple(inner)), (side, side))
    each = tiles.reshape(tokens.batch, rows * columns, *tiles.shape[1:])
    return np.stack([tiling.join(picture) for picture in each])

  def reconstruct(self, images: Any) -> Float[np.ndarray, "B H W C"]:
    """`decode(encode(images))`, at the pictures' own size."""
    pixels = as_pixels(images, self.config.channels)
    return self.decode(self.encode(pixels), (pixels.shape[1], pixels.shape[2]))

  def _encode_all(
    self, pixels: Float[np.ndarray, "N H W C"], num_tokens: int | None = None
  ) -> Tokens:
    """In batches of few sizes, so that few programs serve them all."""
    parts = [
      self._encode(self.variables, self._put(p), num_tokens) for p in _batches(pixels)
    ]
    return _first_rows(parts, len(pixels))

  def _put(self, rows: np.ndarray) -> Any:
    """Rows where they are encoded: split over the devices if these divide them."""
    if self.mesh is None:
      return rows
    divides = len(rows) % self.mesh.size == 0
    return jax.device_put(
      rows, batch_sharding(self.mesh) if divides else replicated(self.mesh)
    )

  def _decode_all(self, tokens: Tokens, size: tuple[int, int] | None) -> np.ndarray:
    parts = []
    for start in range(0, tokens.batch, BATCH):
      rows = jax.tree.map(lambda x, s=start: _filled(x[s : s + BATCH]), tokens)
      parts.append(np.asarray(self._decode(self.variables, rows, size)))
    return np.clip(np.concatenate(parts)[: tokens.batch], -1, 1)

  @functools.cached_property
  def _encode(self):
    def encode(variables, pixels, num_tokens):
      return self.module.apply(
        variables, pixels, num_tokens=num_tokens, method="encode"
      )

    whole = encode if self.mesh is None else ambient(self.mesh, encode)
    return jax.jit(whole, static_argnums=2)

  @functools.cached_property
  def _decode(self):
    def decode(variables, tokens, size):
      return self.module.apply(variables, tokens, size=size, method="decode")

    return jax.jit(decode, static_argnums=2)


class PretrainedGenerator(Pretrained):
  """A generator of another model's tokens.

  tokenizer:  whose tokens it makes: a `PretrainedTokenizer`, or a `PretrainedCodec` of sound
  """

  def __init__(self, module: nn.Module, variables: Any, card: Card, tokenizer: Any):
    super().__init__(module, variables, card)
    self.tokenizer = tokenizer

  def sample(self, condition: Any, seed: int = 0, **settings: Any) -> Tokens:
    """Draws one row of tokens per row of the condition.

    Args:
      condition: int labels [B] for a class model, TextFeatures for a text model.
      seed: of every draw; the same seed and condition give the same tokens.
      settings: in place of the card's sampling settings (guidance, temperature, steps, ...).

    Raises:
      TokzooError: labels out of range, a condition of another kind, a setting that the model
        does not have.
    """
    chosen = {**self.card.sampling, **settings}
    arrays = {k: v for k, v in chosen.items() if not isinstance(v, int | float | str)}
    static = tuple(sorted((k, v) for k, v in chosen.items() if k not in arrays))
    parts, count = self._parts(condition)
    key = jax.random.key(seed)
    try:
      drawn = [
        self._sample(self.variables, jax.random.fold_in(key, i), part, arrays, static)
        for i, part in enumerate(parts)
      ]
    except TypeError as error:
      if "unexpected keyword argument" not in str(error):
        raise
      raise TokzooError(
        f"{self.card.name} cannot be sampled with these settings ({error}): see "
        f"tokzoo show {self.card.name}."
      ) from error
    return _first_rows(drawn, count).replace(origin=self.tokenizer.origin)

  def generate(
    self, condition: Any, seed: int = 0, **settings: Any
  ) -> Float[np.ndarray, "B H W C"] | Float[np.ndarray, "B T C"]:
    """Samples tokens and decodes them: float32 in [-1, 1]."""
    return self.tokenizer.decode(self.sample(condition, seed, **settings))

  def _parts(self, condition: Any) -> tuple[list[Any], int]:
    """The condition, checked, in parts that are sampled together, and its rows."""
    classes = self.config.num_classes
    if classes is None:
      leaves = jax.tree.leaves(condition)
      if not leaves or not all(np.ndim(leaf) for leaf in leaves):
        raise TokzooError(
          f"{self.card.name} is conditioned on text features, not on {type(condition).__name__}"
          ": pass TextFeatures (features, mask)."
        )
      return [condition], np.shape(leaves[-1])[0]
    labels = np.asarray(condition)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
      raise TokzooError(
        f"class labels are integers of shape [B]; these are {labels.dtype}"
        f"{list(labels.shape)}."
      )
    if labels.size == 0 or labels.min() < 0 or labels.max() >= classes:
      raise TokzooError(
        f"class labels run from 0 to {classes - 1}; these run from "
        f"{labels.min(initial=0)} to {labels.max(initial=0)}."
      )
    return _batches(labels.astype(np.int32)), len(labels)

  @functools.cached_property
  def _sample(self):
    def sample(variables, rng, condition, arrays, static):
      settings = {**arrays, **dict(static)}
      return self.module.apply(variables, rng, condition, **settings, method="sample")

    return jax.jit(sample, static_argnums=4)


def as_pixels(images: Any, channels: int) -> Float[np.ndarray, "B H W C"]:
  """Pictures from outside as float32[B, H, W, C] in [-1, 1].

  Raises:
    TokzooError: another shape, dtype or range, or NaN.
  """
  array = np.asarray(images)
  if array.ndim == 3:
    array = array[None]
  if array.ndim != 4 or array.shape[-1] != channels or 0 in array.shape:
    raise TokzooError(
      f"pictures of shape [B, H, W, {channels}] or [H, W, {channels}] were expected; these "
      f"are {list(np.shape(images))}: convert the colour channels or the axes first."
    )
  if array.dtype == np.uint8:
    return array.astype(np.float32) / np.float32(127.5) - np.float32(1)
  if not np.issubdtype(array.dtype, np.floating):
    raise TokzooError(
      f"pictures are uint8 in 0..255 or float in [-1, 1]; these are {array.dtype}."
    )
  if not np.isfinite(array).all():
    raise TokzooError(
      f"{int((~np.isfinite(array)).sum())} values of the pictures are NaN or infinite: mend "
      "them first."
    )
  low, high = float(array.min()), float(array.max())
  # One part in a thousand of slack for resampling and rounding.
  if low < -1.001 or high > 1.001:
    raise TokzooError(
      f"float pictures lie in [-1, 1]; these run from {low:.3g} to {high:.3g}: scale them "
      "(x / 127.5 - 1 for 0..255), or pass uint8."
    )
  return array.astype(np.float32)


def one_picture(image: Any, channels: int) -> Float[np.ndarray, "H W C"]:
  """As `as_pixels`, of a single picture [H, W, C] or [1, H, W, C]."""
  pixels = as_pixels(image, channels)
  if len(pixels) != 1:
    raise TokzooError(
      f"one picture was expected, {len(pixels)} came: pass them singly."
    )
  return pixels[0]


def _batches(rows: np.ndarray) -> list[np.ndarray]:
  """Parts of one size, so that one program serves them all."""
  return [_filled(rows[s : s + BATCH]) for s in range(0, len(rows), BATCH)]


def _filled(rows: Any) -> Any:
  """Rows up to the next power of two (at most BATCH) by repeating the last."""
  missing = 2 ** int(np.ceil(np.log2(len(rows)))) - len(rows)
  if not missing:
    return rows
  return np.concatenate(
    [np.asarray(rows), np.repeat(np.asarray(rows[-1:]), missing, 0)]
  )


def _first_rows(parts: list[Tokens], count: int) -> Tokens:
  return jax.tree.map(lambda *xs: jnp.concatenate(xs)[:count], *parts)
