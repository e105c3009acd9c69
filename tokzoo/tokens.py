"""Tokens: what every tokenizer encodes to, and the one file format they are kept in.

Axis letters of the project, in signatures, comments and tests alike:

  B batch · T time or frames · H W rows, columns · C channels · N points or nodes ·
  L tokens · D features · K codebook entries · Q parallel codebooks or residual levels ·
  m bits of a binary token · w 32-bit words · E electrodes · P patches

A token is one of three things, and `Tokens` holds exactly one of them:

  ids     int32[B, L] or int32[B, L, Q], in [0, vocab)
  packed  uint32[B, L, ceil(bits / 32)], a binary token of `bits` bits (see bit_packing)
  values  float32[B, L, D], a continuous token

The file format is safetensors with a header in its metadata: format and version, layout,
the system and the weights that made the tokens, and a digest over header and arrays. Tokens
of some codecs come with side information, `scale`, which is kept as float32. Ids and
binary tokens are one stream of bits, the first token's least significant bit first: 32 ids
below 4,096 are 48 bytes. Tokens that a mask leaves out are not kept; they come back as zeros.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from tokzoo.errors import TokzooError
from tokzoo.files import digest, read_safetensors, to_safetensors, write_atomic
from tokzoo.kernels.bit_packing import pack, unpack, words_per_token

FORMAT = "tokzoo-tokens"
VERSION = 3
"""1 kept ids as int32 and binary tokens as whole words, 2 had no scales; both are read, and
tokens without a scale are still written as 2."""
_KINDS = ("ids", "packed", "values")


class Origin(struct.PyTreeNode):
  """Which tokenizer made the tokens.

  system:   slug of the system, e.g. "instella-t2i"
  weights:  fingerprint of its variables (`tokzoo.weights.fingerprint`)
  """

  system: str = struct.field(pytree_node=False)
  weights: str = struct.field(pytree_node=False)

  def __str__(self) -> str:
    return f"{self.system}@{self.weights[:12]}"


class Tokens(struct.PyTreeNode):
  """Tokens of a batch. Exactly one of `ids`, `packed` and `values` is set.

  ids:     int32[B, L] or int32[B, L, Q], in [0, vocab)
  packed:  uint32[B, L, ceil(bits / 32)]
  values:  float32[B, L, D]
  mask:    bool[B, L], True where a token is kept (adaptive lengths, padding); None: all
  scale:   float32[B, S] above 0, side information that decoding needs: the loudness of each
           of S chunks that a codec has divided by (EnCodec 48 kHz); None: there is none
  vocab:   number of codes per id, static
  bits:    bits per binary token, static
  grid:    the shape that L unfolds to, static: (L,) for a 1D tokenizer
  origin:  which tokenizer made them, static; None inside a jitted training step
  """

  ids: Int[Array, "B L"] | Int[Array, "B L Q"] | None = None
  packed: UInt32[Array, "B L w"] | None = None
  values: Float[Array, "B L D"] | None = None
  mask: Bool[Array, "B L"] | None = None
  scale: Float[Array, "B S"] | None = None
  vocab: int | None = struct.field(pytree_node=False, default=None)
  bits: int | None = struct.field(pytree_node=False, default=None)
  grid: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)
  origin: Origin | None = struct.field(pytree_node=False, default=None)

  @classmethod
  def from_ids(cls, ids: Array, vocab: int, **fields: Any) -> "Tokens":
    """Discrete tokens: `int[B, L]` or `int[B, L, Q]`."""
    grid = fields.pop("grid", (ids.shape[1],))
    return cls(ids=jnp.asarray(ids, jnp.int32), vocab=vocab, grid=grid, **fields)

  @classmethod
  def from_bits(cls, bits: Array, **fields: Any) -> "Tokens":
    """Binary tokens from `[B, L, m]` of zeros and ones (bool, integer or float)."""
    grid = fields.pop("grid", (bits.shape[1],))
    return cls(packed=pack(bits), bits=bits.shape[-1], grid=grid, **fields)

  @classmethod
  def from_values(cls, values: Array, **fields: Any) -> "Tokens":
    """Continuous tokens: `float[B, L, D]`."""
    grid = fields.pop("grid", (values.shape[1],))
    return cls(values=jnp.asarray(values, jnp.float32), grid=grid, **fields)

  @property
  def kind(self) -> str:
    """ "ids", "packed" or "values"."""
    present = [kind for kind in _KINDS if getattr(self, kind) is not None]
    if len(present) != 1:
      raise TokzooError(
        f"tokens hold exactly one of {', '.join(_KINDS)}; these hold {present or 'none'}."
      )
    return present[0]

  @property
  def array(self) -> Array:
    """The one array that is set."""
    return getattr(self, self.kind)

  @property
  def batch(self) -> int:
    """B."""
    return self.array.shape[0]

  @property
  def length(self) -> int:
    """L."""
    return self.array.shape[1]

  @property
  def bits_per_token(self) -> float:
    """Bits that one token of this layout costs when stored without entropy coding."""
    array = self.array
    if self.packed is not None:
      return float(self._static("bits"))
    if self.ids is not None:
      levels = array.shape[2] if array.ndim == 3 else 1
      return levels * float(np.log2(self._static("vocab")))
    return 32.0 * array.shape[-1]

  @property
  def total_bits(self) -> float:
    """Bits of all tokens that are kept and of the scales, of the whole batch. Reads the mask:
    not for jit."""
    kept = self.batch * self.length
    if self.mask is not None:
      kept = int(np.asarray(self.mask).sum())
    scales = 0 if self.scale is None else self.scale.size
    return kept * self.bits_per_token + 32 * scales

  def unpacked(self) -> Bool[Array, "B L m"]:
    """The bits of binary tokens.

    Raises:
      TokzooError: the tokens are not binary.
    """
    if self.packed is None:
      raise TokzooError(f"binary tokens were expected; these hold {self.kind}.")
    return unpack(self.packed, self._static("bits"))

  def check(self) -> "Tokens":
    """Returns the tokens if shapes, dtypes, ranges and masks agree with the layout.

    Reads the arrays, so it is for the boundary (files, the command line), not for jit.

    Raises:
      TokzooError: the first thing that does not agree.
    """
    array = np.asarray(self.array)
    match self.kind:
      case "ids":
        _check_ids(array, self._static("vocab"))
      case "packed":
        _check_packed(array, self._static("bits"))
      case _:
        _check_values(array)
    places = array.shape[:2]
    if self.mask is not None and (
      self.mask.shape != places or self.mask.dtype != np.bool_
    ):
      raise TokzooError(
        f"the mask is bool{list(places)}; this one is {self.mask.dtype}"
        f"{list(self.mask.shape)}."
      )
    if self.scale is not None:
      _check_scale(np.asarray(self.scale), array.shape[0])
    if self.grid is not None and int(np.prod(self.grid)) != array.shape[1]:
      raise TokzooError(
        f"{array.shape[1]} tokens cannot unfold to the grid {self.grid}: "
        f"it has {int(np.prod(self.grid))} places."
      )
    return self

  def require_origin(self, expected: Origin) -> "Tokens":
    """Returns the tokens if `expected` made them.

    Raises:
      TokzooError: another tokenizer made them, or it is not known which.
    """
    if self.origin != expected:
      came = str(self.origin) if self.origin else "an unknown tokenizer"
      raise TokzooError(
        f"these tokens were made by {came}, but {expected} was to read them: "
        "load the tokenizer that made them, or encode the data again with this one."
      )
    return self

  def _static(self, name: str) -> int:
    """`vocab` or `bits`, which tokens of that kind must know."""
    value = getattr(self, name)
    if value is None or value < 1:
      raise TokzooError(
        f"tokens of the kind {self.kind!r} need {name} of at least 1; it is {value}."
      )
    return value


def save_tokens(
  path: str | Path, tokens: Tokens, extra: dict[str, str] | None = None
) -> None:
  """Writes tokens with a self-describing header, whole or not at all.

  Args:
    path: where to, usually `*.tok`.
    tokens: concrete tokens; they must know their origin.
    extra: further header fields, e.g. the size of the picture they came from.

  Raises:
    TokzooError: tokens that are not sound, lack an origin, or a path that is not writable.
  """
  tokens.check()
  if tokens.origin is None:
    raise TokzooError(
      "tokens of an unknown tokenizer cannot be saved: nobody could decode them. "
      "Encode with tokzoo.load(...), which stamps them, or set Tokens.origin."
    )
  array = np.asarray(tokens.array)
  arrays = {tokens.kind: _to_stream(tokens, array)}
  if tokens.mask is not None:
    arrays["mask"] = _packed_bits(np.asarray(tokens.mask))
  if tokens.scale is not None:
    arrays["scale"] = np.asarray(tokens.scale)
  header = {
    "format": FORMAT,
    # Who reads only version 2 must not decode without the scales.
    "version": "2" if tokens.scale is None else str(VERSION),
    "system": tokens.origin.system,
    "weights": tokens.origin.weights,
    "layout": json.dumps(
      {
        "kind": tokens.kind,
        "vocab": tokens.vocab,
        "bits": tokens.bits,
        "grid": tokens.grid,
        "shape": array.shape,
      }
    ),
    "extra": json.dumps(extra or {}, sort_keys=True),
  }
  header["digest"] = digest(header, arrays)
  write_atomic(path, to_safetensors(arrays, header))


def load_tokens(
  path: str | Path, expected: Origin | None = None
) -> tuple[Tokens, dict[str, str]]:
  """Reads what `save_tokens` wrote: the tokens and the extra header fields.

  Args:
    path: the file.
    expected: the tokenizer that is to read them; tokens of another one are refused.

  Raises:
    TokzooError: no such file, not a token file, a newer version, a file that is cut short
      or changed, or the tokens of another tokenizer.
  """
  arrays, header = read_safetensors(path, "token file")
  if header.get("format") != FORMAT:
    raise TokzooError(
      f"{path} is a safetensors file but holds no tokens (format "
      f"{header.get('format')!r}, expected {FORMAT!r}): name a file written by tokzoo encode."
    )
  if header.get("digest") != digest(header, arrays):
    raise TokzooError(
      f"{path} is damaged: its digest does not agree with what it holds; encode the data again."
    )
  if int(header["version"]) > VERSION:
    raise TokzooError(
      f"{path} has token format {header['version']}, this tokzoo reads up to {VERSION}: "
      "upgrade tokzoo."
    )
  layout = json.loads(header["layout"])
  array, mask = arrays[layout["kind"]], arrays.get("mask")
  if int(header["version"]) > 1:
    if mask is not None:
      batch, length = layout["shape"][:2]
      mask = _unpacked_bits(mask, (batch, length)).astype(bool)
    array = _from_stream(layout, array, mask)
  fields: dict[str, Any] = {
    layout["kind"]: array,
    "mask": mask,
    "scale": arrays.get("scale"),
    "vocab": layout["vocab"],
    "bits": layout["bits"],
    "grid": tuple(layout["grid"]) if layout["grid"] else None,
    "origin": Origin(system=header["system"], weights=header["weights"]),
  }
  tokens = Tokens(**fields).check()
  if expected is not None:
    tokens.require_origin(expected)
  return jax.tree.map(jnp.asarray, tokens), json.loads(header["extra"])


def _to_stream(tokens: Tokens, array: np.ndarray) -> np.ndarray:
  """What a file holds of the tokens that are kept: uint8, 8 bits each, or float32 values."""
  kept = slice(None) if tokens.mask is None else np.asarray(tokens.mask)
  if tokens.values is not None:
    return array[kept]
  if tokens.packed is not None:
    return _packed_bits(np.asarray(tokens.unpacked())[kept])
  places = np.arange(_bits_of_id(tokens._static("vocab")), dtype=np.int32)
  return _packed_bits((array[kept][..., None] >> places) & 1)


def _from_stream(
  layout: dict[str, Any], stream: np.ndarray, mask: np.ndarray | None
) -> np.ndarray:
  """The array that `_to_stream` was given, zeros where the mask leaves tokens out."""
  shape = tuple(layout["shape"])
  kept = shape if mask is None else (int(mask.sum()), *shape[2:])
  if layout["kind"] == "values":
    found = stream
  elif layout["kind"] == "packed":
    found = _words(stream, kept[:-1], layout["bits"])
  else:
    found = _words(stream, kept, _bits_of_id(layout["vocab"]))[..., 0].astype(np.int32)
  if mask is None:
    return found
  whole = np.zeros(shape, found.dtype)
  whole[mask] = found
  return whole


def _words(stream: np.ndarray, shape: tuple[int, ...], bits: int) -> np.ndarray:
  """uint32[*shape, w]: as many bits a cell, the places above zero, as `pack` leaves them."""
  cells = _unpacked_bits(stream, (*shape, bits))
  cells = np.pad(cells, [(0, 0)] * len(shape) + [(0, -bits % 32)])
  words = np.packbits(cells, axis=-1, bitorder="little").view("<u4")
  return words.astype(np.uint32)


def _packed_bits(bits: np.ndarray) -> np.ndarray:
  return np.packbits(bits.astype(np.uint8), axis=None, bitorder="little")


def _unpacked_bits(stream: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  count = math.prod(shape)
  if stream.dtype != np.uint8 or stream.shape != (-(-count // 8),):
    raise TokzooError(
      f"tokens of {count} bits are uint8[{-(-count // 8)}]; these are {_layout(stream)}: "
      "encode the data again."
    )
  return np.unpackbits(stream, count=count, bitorder="little").reshape(shape)


def _bits_of_id(vocab: int) -> int:
  """Bits that tell the ids below `vocab` apart."""
  return max(1, (vocab - 1).bit_length())


def _check_ids(array: np.ndarray, vocab: int) -> None:
  if array.dtype != np.int32 or array.ndim not in (2, 3):
    raise TokzooError(
      f"ids are int32[B, L] or int32[B, L, Q]; these are {_layout(array)}."
    )
  if array.size and (array.min() < 0 or array.max() >= vocab):
    bad = int(array.min() if array.min() < 0 else array.max())
    raise TokzooError(
      f"id {bad} is out of range: this tokenizer has the ids 0 to {vocab - 1}."
    )


def _check_packed(array: np.ndarray, bits: int) -> None:
  words = words_per_token(bits)
  if array.dtype != np.uint32 or array.ndim != 3 or array.shape[-1] != words:
    raise TokzooError(
      f"binary tokens of {bits} bits are uint32[B, L, {words}]; these are {_layout(array)}."
    )
  spare = words * 32 - bits
  if spare and array.size and (array[..., -1] >> np.uint32(32 - spare)).any():
    raise TokzooError(
      f"a bit above the {bits} bits of a token is set: the tokens are corrupt, or were "
      "packed with another number of bits."
    )


def _check_scale(scale: np.ndarray, batch: int) -> None:
  if scale.dtype != np.float32 or scale.ndim != 2 or scale.shape[0] != batch:
    raise TokzooError(
      f"the scale of {batch} rows of tokens is float32[{batch}, S]; this one is "
      f"{_layout(scale)}."
    )
  if not (np.isfinite(scale).all() and (scale > 0).all()):
    raise TokzooError("scales are finite and above 0; these are not: encode again.")


def _check_values(array: np.ndarray) -> None:
  if array.dtype != np.float32 or array.ndim != 3:
    raise TokzooError(
      f"continuous tokens are float32[B, L, D]; these are {_layout(array)}."
    )
  if not np.isfinite(array).all():
    raise TokzooError("continuous tokens are finite; these hold NaN or infinity.")


def _layout(array: np.ndarray) -> str:
  return f"{array.dtype}{list(array.shape)}"
