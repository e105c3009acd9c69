"""What the neural codecs share: which audio fits, which tokens they read, rates.

Audio is float32[B, T, C] in [-1, 1], channels last. Tokens are ids int32[B, L, Q], L frames
of Q codebooks, coarsest first. Every config of this folder has

  sample_rate_hz   samples a second
  channels         C
  hop              samples a frame of tokens
  num_codebooks    Q at most
  num_codes        K of each codebook
  is_causal        no look ahead beyond the frame (but for padding at the start)
  rates_kbps       bit rate in kbps -> codebooks
"""

import math

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from tokzoo.errors import TokzooError
from tokzoo.tokens import Tokens


def check_audio(shape: tuple[int, ...], channels: int) -> None:
  """Raises TokzooError unless audio of `shape` is [B, T, C] with T of at least one sample."""
  if len(shape) != 3 or shape[2] != channels:
    raise TokzooError(
      f"audio of shape [B, T, {channels}] was expected; this is {list(shape)}: "
      f"{'add the missing axes' if len(shape) < 3 else 'convert the channels'} first."
    )
  if shape[1] == 0:
    raise TokzooError("audio of no samples has no tokens: give at least one sample.")


def check_encode(
  shape: tuple[int, ...],
  channels: int,
  frames: int,
  num_codebooks: int | None,
  most: int,
  num_tokens: int | None,
  least: int = 1,
) -> None:
  """Raises TokzooError unless `encode` can do what it is asked for.

  Args:
    shape: of the audio.
    channels: that the model takes.
    frames: L that this audio has.
    num_codebooks: asked for; None: all.
    most: codebooks of the model.
    num_tokens: frames asked for; None: as many as there are.
    least: codebooks that cannot be left out.
  """
  check_audio(shape, channels)
  if num_codebooks is not None and not least <= num_codebooks <= most:
    raise TokzooError(
      f"{num_codebooks} codebooks were asked for; this model has {least} to {most}."
    )
  if num_tokens not in (None, frames):
    raise TokzooError(
      f"{num_tokens} frames of tokens were asked for, but {shape[1]} samples always have "
      f"{frames} here: leave num_tokens out, or encode another length."
    )


def read_ids(
  tokens: Tokens, num_codes: int, most: int, least: int = 1
) -> Int[Array, "B L Q"]:
  """The ids of a codec's tokens.

  Args:
    tokens: ids [B, L, Q], or [B, L] of a single codebook.
    num_codes: K of the model.
    most: codebooks of the model; fewer are the coarsest ones.
    least: codebooks that cannot be left out.

  Raises:
    TokzooError: tokens of another kind, codebook or number of codebooks, none at all, or ids
      out of range (where they can be read).
  """
  if tokens.ids is None or tokens.vocab != num_codes:
    codes = "" if tokens.vocab is None else f" of {tokens.vocab} codes"
    raise TokzooError(
      f"this codec reads ids [B, L, Q] of {num_codes} codes; these are {tokens.kind}"
      f"{codes}: decode with the codec that made them."
    )
  ids = tokens.ids if tokens.ids.ndim == 3 else tokens.ids[..., None]
  if not least <= ids.shape[2] <= most:
    raise TokzooError(
      f"these tokens have {ids.shape[2]} codebooks, this codec has {least} to {most}: decode with "
      "the codec that made them."
    )
  if ids.shape[1] == 0:
    raise TokzooError("tokens of no frames decode to nothing: give at least one frame.")
  if not isinstance(ids, Tracer):
    known = np.asarray(ids)
    if known.min() < 0 or known.max() >= num_codes:
      wrong = int(known.min() if known.min() < 0 else known.max())
      raise TokzooError(
        f"id {wrong} is out of range: this codec has the ids 0 to {num_codes - 1}."
      )
  return ids


def flat(ids: Int[Array, "B L Q"], num_codes: int) -> Int[Array, "B L*Q"]:
  """Frames of Q codes as one row, code after code, level q in the range q K to (q + 1) K - 1:
  what a generator of one row of ids reads (the flattening of Copet et al., arXiv 2306.05284)."""
  levels = jnp.arange(ids.shape[2], dtype=ids.dtype) * num_codes
  return (ids + levels[None, None]).reshape(len(ids), -1)


def from_flat(
  ids: Int[Array, "B N"], vocab: int, num_codes: int
) -> Int[Array, "B L Q"]:
  """The inverse of `flat`, Q from the vocabulary. A generator may draw an id of another level:
  its place within its own range counts.

  Raises:
    TokzooError: a vocabulary that is not of whole levels, or a frame that is not whole.
  """
  levels = vocab // num_codes
  if vocab % num_codes or ids.shape[1] % levels:
    raise TokzooError(
      f"{ids.shape[1]} ids of {vocab} are not whole frames of levels of {num_codes} codes: "
      "they are not of this codec."
    )
  return ids.reshape(len(ids), -1, levels) % num_codes


def possible_rates(
  num_codebooks: int, num_codes: int, frame_rate_hz: float
) -> dict[float, int]:
  """Bit rate in kbps, to three digits -> codebooks, for every number of codebooks."""
  bits = math.log2(num_codes) * frame_rate_hz / 1000
  return {round(q * bits, 3): q for q in range(1, num_codebooks + 1)}


def pad_end(x: Float[Array, "B T C"], multiple: int) -> Float[Array, "B t C"]:
  """Zeros at the end, up to a multiple."""
  return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0)))


def of_length(x: Float[Array, "B t C"], length: int) -> Float[Array, "B T C"]:
  """Audio cut, or filled up with zeros, to `length` samples."""
  x = x[:, :length]
  return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0)))
