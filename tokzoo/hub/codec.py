"""A codec of sound with its variables: what `tokzoo.load` returns for EnCodec and its kin.

Sound is float32[B, T, C] in [-1, 1] at the codec's own rate; tokens are ids [B, L, Q]. Inputs are
checked here, at the boundary.

A sound of up to CHUNK_S seconds is coded whole, as published. A longer one is coded piece by
piece, so that its length costs no memory:

  chunked     a codec that is published with chunks of its own (EnCodec 48 kHz) gets groups of
              them: the same tokens as of the whole
  stepped     a causal codec carries its state from piece to piece: the same tokens, but for a last
              frame that is not full, which is filled up with silence
  windowed    any other sees each piece between CONTEXT_S seconds of its neighbours: the same
              tokens where nothing in it looks further (DAC), nearly so otherwise (an LSTM)
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from tokzoo.errors import TokzooError
from tokzoo.hub.pretrained import Pretrained
from tokzoo.tokenizers.audio.waves import from_flat
from tokzoo.tokens import Origin, Tokens
from tokzoo.train import MeshShape, make_mesh
from tokzoo.train.mesh import ambient, batch_sharding, replicated

CHUNK_S = 20.0
"""Seconds of sound that are coded at once."""

CONTEXT_S = 1.0
"""Seconds on either side of a piece that a codec sees and does not keep."""


class PretrainedCodec(Pretrained):
  """A codec: sound to tokens and back.

  mesh:  of the devices that share a batch (`spread`); None: one device
  """

  mesh: Mesh | None = None

  def spread(self, devices: Sequence[Any]) -> "PretrainedCodec":
    """The same codec, with a copy on each of some devices of this process, which split the
    rows of a batch among them."""
    mesh = make_mesh(MeshShape(), devices)
    variables = jax.device_put(self.variables, replicated(mesh))
    copy = PretrainedCodec(self.module, variables, self.card)
    copy.mesh = mesh
    copy.__dict__["fingerprint"] = self.fingerprint  # the same weights
    return copy

  @functools.cached_property
  def origin(self) -> Origin:
    """Stamped on every token that it makes."""
    return Origin(self.card.system, self.fingerprint)

  def codebooks_of(self, kbps: float | None) -> int | None:
    """How many codebooks a bit rate takes; None stays None: all.

    Raises:
      TokzooError: a rate that the model does not have; those that it has are listed.
    """
    if kbps is None:
      return None
    rates = self.config.rates_kbps
    for rate, codebooks in rates.items():
      if abs(rate - kbps) < 1e-6:
        return codebooks
    known = ", ".join(f"{rate:g}" for rate in rates)
    raise TokzooError(
      f"{self.card.name} has no rate of {kbps:g} kbps: choose one of {known}."
    )

  def kbps_of(self, tokens: Tokens, samples: int) -> float:
    """Bit rate of the tokens of a sound of so many samples, what scales take included."""
    seconds = samples * tokens.batch / self.config.sample_rate_hz
    return tokens.total_bits / seconds / 1000

  # ------------------------------------------------------------ encoding

  def encode(self, sound: Any, num_codebooks: int | None = None) -> Tokens:
    """Sound to tokens.

    Args:
      sound: float[B, T, C] in [-1, 1] at the model's rate; [T, C] or [T] is a batch of one.
      num_codebooks: Q, see `codebooks_of`; None: all.

    Raises:
      TokzooError: another shape or range, NaN, or codebooks that the model does not have.
    """
    wave = as_sound(sound, self.config.channels)
    if wave.shape[1] <= self._chunk:
      tokens = self._encode(self.variables, self._put(wave), num_codebooks)
      return tokens.replace(origin=self.origin)
    rows = [self.encode_blocks([row], num_codebooks)[0] for row in wave]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)

  def encode_blocks(
    self,
    blocks: Iterable[Float[np.ndarray, "n C"]],
    num_codebooks: int | None = None,
  ) -> tuple[Tokens, int]:
    """One sound of any length, as it comes.

    Args:
      blocks: its parts in order, float[n, C] in [-1, 1].
      num_codebooks: Q; None: all.

    Returns:
      The tokens, B = 1, and the number of samples.

    Raises:
      TokzooError: as `encode`, or no samples at all.
    """
    reader = _Reader(blocks, self.config.channels)
    first = reader.window(0, self._chunk + 1)
    if len(first) <= self._chunk:
      return self.encode(first, num_codebooks), len(first)
    if getattr(self.config, "chunk", None):
      parts = self._encode_chunked(reader, num_codebooks)
    elif self.config.is_causal:
      parts = self._encode_stepped(reader, num_codebooks)
    else:
      parts = self._encode_windowed(reader, num_codebooks)
    # Held on the host: an hour of tokens is small, and growing arrays would be compiled anew.
    kept = [jax.tree.map(np.asarray, part.replace(grid=None)) for part in parts]
    # Both ids and scales grow along their second axis.
    joined = jax.tree.map(lambda *xs: np.concatenate(xs, 1), *kept)
    grid = (joined.ids.shape[1],)
    return joined.replace(grid=grid, origin=self.origin), reader.total

  # ------------------------------------------------------------ decoding

  def decode(
    self, tokens: Tokens, samples: int | None = None, seed: int = 0
  ) -> Float[np.ndarray, "B T C"]:
    """Tokens to sound, float32 in [-1, 1] (clipped).

    Args:
      tokens: made by this very codec; ids [B, L, Q], [B, L] of a single codebook, or flat
        (`tokzoo.tokenizers.audio.waves.flat`), as a generator makes them.
      samples: cut, or filled up with silence, to so many; None: what the codec gives.
      seed: of codecs that decode with noise (SNAC).

    Raises:
      TokzooError: another codec's tokens, or tokens that are not sound.
    """
    rows = []
    for b in range(tokens.batch):
      row = jax.tree.map(lambda x, b=b: x[b : b + 1], tokens)
      rows.append(np.concatenate(list(self.decode_blocks(row, samples, seed))))
    return np.stack(rows)

  def decode_blocks(
    self, tokens: Tokens, samples: int | None = None, seed: int = 0
  ) -> Iterator[Float[np.ndarray, "n C"]]:
    """As `decode`, of one sound (B = 1), piece by piece."""
    tokens.check().require_origin(self.origin)
    plain = tokens.replace(origin=None)
    if plain.ids is not None and plain.ids.ndim == 2:  # one row of ids
      codes, vocab = self.config.num_codes, plain.vocab or 0
      ids = (
        from_flat(plain.ids, vocab, codes) if vocab > codes else plain.ids[..., None]
      )
      plain = plain.replace(ids=ids, vocab=min(vocab, codes), grid=(ids.shape[1],))
    rng, config = jax.random.key(seed), self.config
    left = samples
    for piece in self._decoded(plain, rng):
      piece = np.clip(np.asarray(piece[0], np.float32), -1, 1)
      if left is not None:
        piece, left = piece[:left], left - len(piece[:left])
      if len(piece):
        yield piece
    if left:
      yield np.zeros((left, config.channels), np.float32)

  def reconstruct(
    self, sound: Any, num_codebooks: int | None = None
  ) -> Float[np.ndarray, "B T C"]:
    """`decode(encode(sound))`, at the sound's own length."""
    wave = as_sound(sound, self.config.channels)
    return self.decode(self.encode(wave, num_codebooks), wave.shape[1])

  # ------------------------------------------------------------ pieces

  @property
  def _unit(self) -> int:
    """Samples that every piece is a multiple of."""
    return getattr(self.config, "multiple", self.config.hop)

  @property
  def _chunk(self) -> int:
    """Samples of a piece."""
    unit = self._unit
    return max(round(CHUNK_S * self.config.sample_rate_hz / unit), 1) * unit

  @property
  def _context(self) -> int:
    unit = self._unit
    return max(round(CONTEXT_S * self.config.sample_rate_hz / unit), 1) * unit

  @property
  def _group(self) -> int:
    """Chunks of a codec that has them which are coded at once."""
    return max(round(CHUNK_S * self.config.sample_rate_hz / self.config.stride), 1)

  def _encode_chunked(
    self, reader: "_Reader", num_codebooks: int | None
  ) -> Iterator[Tokens]:
    config, group = self.config, self._group
    size = (group - 1) * config.stride + config.chunk
    start = 0
    while len(window := reader.window(start, size)):
      tokens = self._encode(self.variables, window[None], num_codebooks)
      # The next group begins with the chunk that begins in this window's last samples.
      frames = config.frames(len(window))[:group]
      kept = _frames(tokens, 0, sum(frames))
      yield kept.replace(scale=tokens.scale[:, : len(frames)])
      start += group * config.stride
      reader.forget(start)

  def _encode_stepped(
    self, reader: "_Reader", num_codebooks: int | None
  ) -> Iterator[Tokens]:
    hop, size, start = self.config.hop, self._chunk, 0
    state = self.init_state(1)
    while len(window := reader.window(start, size)):
      frames = -(-len(window) // hop)
      # Filled up to one size: a causal codec's first frames do not know what follows.
      window = np.pad(window, ((0, size - len(window)), (0, 0)))
      state, tokens = self.encode_step(state, window[None], num_codebooks)
      yield _frames(tokens.replace(origin=None), 0, frames)
      start += size
      reader.forget(start)

  def _encode_windowed(
    self, reader: "_Reader", num_codebooks: int | None
  ) -> Iterator[Tokens]:
    hop, context, step = self.config.hop, self._context, self._chunk
    start, size = 0, step + 2 * context
    while True:
      window = reader.window(start, size)
      is_last = reader.total_known and start + len(window) >= reader.total
      tokens = self._encode(self.variables, window[None], num_codebooks)
      first = context // hop if start else 0
      end = tokens.length if is_last else (context + step) // hop
      yield _frames(tokens, first, end)
      if is_last:
        return
      start += step
      reader.forget(start)

  def _decoded(self, tokens: Tokens, rng: Any) -> Iterator[Any]:
    """Pieces of sound [1, n, C], in order."""
    config, hop, length = self.config, self.config.hop, tokens.length
    frames = self._chunk // hop
    if length <= frames:
      yield self._decode(self.variables, tokens, rng)
      return
    assert tokens.ids is not None
    ids = np.asarray(tokens.ids)

    if getattr(config, "chunk", None):
      yield from self._decode_chunked(tokens)
    elif config.is_causal:
      state = self.init_state(1)
      for start in range(0, length, frames):
        count = min(frames, length - start)
        piece = np.pad(
          ids[:, start : start + count], ((0, 0), (0, frames - count), (0, 0))
        )
        state, sound = self.decode_step(
          state, tokens.replace(ids=piece, grid=(frames,)), check=False
        )
        yield sound[:, : count * hop]
    else:
      context = self._context // hop
      for start in range(0, length, frames):
        first = max(start - context, 0)
        # The last piece keeps all that the codec gives.
        is_last = start + frames + context >= length
        end = length if is_last else start + frames + context
        sound = self._decode(self.variables, _frames(tokens, first, end), rng)
        stop = None if is_last else (start - first + frames) * hop
        yield sound[:, (start - first) * hop : stop]
        if is_last:
          return

  def _decode_chunked(self, tokens: Tokens) -> Iterator[Any]:
    """Groups of chunks, each after the chunk before it, whose end it is faded into."""
    config, group = self.config, self._group
    scale = np.asarray(tokens.scale)
    chunks, ids = scale.shape[1], np.asarray(tokens.ids)
    frames = config.frames_of(tokens.length, chunks)
    ends = [0, *np.cumsum(frames)]
    for start in range(0, chunks, group):
      first, end = max(start - 1, 0), min(start + group, chunks)
      sound = self._decode_chunks(
        self.variables,
        ids[:, ends[first] : ends[end]],
        scale[:, first:end],
        tuple(frames[first:end]),
      )
      stop = None if end == chunks else (end - first) * config.stride
      yield sound[:, (start - first) * config.stride : stop]

  # ------------------------------------------------------------ streams

  def init_state(self, batch_size: int = 1) -> Any:
    """The state of a stream before its first piece.

    Raises:
      TokzooError: the codec is not causal.
    """
    if not self.config.is_causal:
      raise TokzooError(
        f"{self.card.name} looks ahead, so it cannot stream: choose a causal codec."
      )
    return self.module.apply(self.variables, batch_size, method="init_state")

  def encode_step(
    self, state: Any, wave: Any, num_codebooks: int | None = None
  ) -> tuple[Any, Tokens]:
    """The next piece [B, n, C] of a stream, n a whole number of hops, to its tokens."""
    state, tokens = self._encode_step(self.variables, state, wave, num_codebooks)
    return state, tokens.replace(origin=self.origin)

  def decode_step(
    self, state: Any, tokens: Tokens, check: bool = True
  ) -> tuple[Any, Any]:
    """The next tokens of a stream to their sound [B, n, C], not clipped.

    Raises:
      TokzooError: another codec's tokens.
    """
    if check:
      tokens.check().require_origin(self.origin)
    return self._decode_step(self.variables, state, tokens.replace(origin=None))

  def _put(self, rows: np.ndarray) -> Any:
    """Rows where they are encoded: split over the devices if these divide them."""
    if self.mesh is None:
      return rows
    divides = len(rows) % self.mesh.size == 0
    return jax.device_put(
      rows, batch_sharding(self.mesh) if divides else replicated(self.mesh)
    )

  @functools.cached_property
  def _encode(self):
    def encode(variables, wave, num_codebooks):
      return self.module.apply(
        variables, wave, num_codebooks=num_codebooks, method="encode"
      )

    whole = encode if self.mesh is None else ambient(self.mesh, encode)
    return jax.jit(whole, static_argnums=2)

  @functools.cached_property
  def _decode(self):
    def decode(variables, tokens, rng):
      return self.module.apply(variables, tokens, rng=rng, method="decode")

    return jax.jit(decode)

  @functools.cached_property
  def _decode_chunks(self):
    """Of some chunks alone, whose frames cannot be told from their number."""

    def decode(variables, ids, scale, frames):
      def run(module):
        return module.audio(module.quantizer.ids_to_codes(ids), scale, frames)

      return self.module.apply(variables, method=run)

    return jax.jit(decode, static_argnums=3)

  @functools.cached_property
  def _encode_step(self):
    def step(variables, state, wave, num_codebooks):
      return self.module.apply(
        variables, state, wave, num_codebooks=num_codebooks, method="encode_step"
      )

    return jax.jit(step, static_argnums=3)

  @functools.cached_property
  def _decode_step(self):
    def step(variables, state, tokens):
      return self.module.apply(variables, state, tokens, method="decode_step")

    return jax.jit(step)


def example_sound(config: Any) -> jax.ShapeDtypeStruct:
  """A shape that any codec of this config takes: a few frames."""
  unit = getattr(config, "multiple", config.hop)
  length = -(-1_024 // unit) * unit
  return jax.ShapeDtypeStruct((1, length, config.channels), jnp.float32)


def as_sound(sound: Any, channels: int) -> Float[np.ndarray, "B T C"]:
  """Sound from outside as float32[B, T, C] in [-1, 1].

  Raises:
    TokzooError: another shape, dtype or range, or NaN.
  """
  array = np.asarray(sound)
  if array.ndim == 1:
    array = array[:, None]
  if array.ndim == 2:
    array = array[None]
  if array.ndim != 3 or array.shape[-1] != channels or 0 in array.shape:
    raise TokzooError(
      f"sound of shape [B, T, {channels}] or [T, {channels}] was expected; this is "
      f"{list(np.shape(sound))}: mix the channels or turn the axes round first."
    )
  if not np.issubdtype(array.dtype, np.floating):
    raise TokzooError(
      f"sound is float in [-1, 1]; this is {array.dtype}: divide 16-bit samples by 32768."
    )
  if not np.isfinite(array).all():
    raise TokzooError(
      f"{int((~np.isfinite(array)).sum())} samples are NaN or infinite: mend them first."
    )
  highest = float(np.abs(array).max())
  # One part in a thousand of slack for resampling and rounding.
  if highest > 1.001:
    raise TokzooError(
      f"sound lies in [-1, 1]; this reaches {highest:.3g}: scale it first."
    )
  return array.astype(np.float32)


def _frames(tokens: Tokens, first: int, end: int) -> Tokens:
  """The frames first .. end."""
  assert tokens.ids is not None
  return tokens.replace(ids=tokens.ids[:, first:end], grid=(end - first,))


class _Reader:
  """Windows of a sound that comes in blocks; only what is still needed is kept.

  total:        samples read so far; of the whole sound once `total_known`
  """

  def __init__(self, blocks: Iterable[np.ndarray], channels: int):
    self._blocks = iter(blocks)
    self._channels = channels
    self._start = 0
    self._kept = np.zeros((0, channels), np.float32)
    self.total = 0
    self.total_known = False

  def window(self, start: int, size: int) -> np.ndarray:
    """Samples start .. start + size, fewer where the sound ends."""
    parts, have = [self._kept], self._start + len(self._kept)
    # One more than is asked for, to know whether it is the end.
    while have <= start + size and not self.total_known:
      block = next(self._blocks, None)
      if block is None:
        self.total_known = True
      else:
        block = as_sound(block, self._channels)[0]
        parts.append(block)
        have += len(block)
        self.total += len(block)
    self._kept = np.concatenate(parts)
    return self._kept[start - self._start :][:size]

  def forget(self, before: int) -> None:
    """Drops what lies before a sample."""
    self._kept = self._kept[before - self._start :]
    self._start = before
