"""`tokzoo stream`: PCM on stdin to tokens on stdout, and back, with the latency measured.

  arecord -t raw -f S16_LE -r 24000 -c 1 | tokzoo stream --model mimi | tokzoo stream --model mimi \\
    --decode | aplay -t raw -f S16_LE -r 24000 -c 1

PCM is 16-bit, little-endian, at the model's rate, channels interleaved. A stream of tokens is one line
of JSON (format, system, weights, codebooks), then for each frame its ids as 16-bit little-endian
numbers, coarsest first. A frame is written as soon as it is known.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from tokzoo.cli.console import note, parse
from tokzoo.data.sound import to_int16
from tokzoo.errors import TokzooError
from tokzoo.hub import PretrainedCodec, load
from tokzoo.tokens import Tokens

FORMAT = "tokzoo-token-stream"
VERSION = 1


def run_stream(arguments: Sequence[str]) -> None:
  parse(stream, "stream", arguments)


def stream(
  model: str,
  decode: bool = False,
  kbps: float | None = None,
  piece_ms: float = 80.0,
  preset: str | None = None,
) -> None:
  """PCM on stdin to tokens on stdout, or with --decode tokens to PCM, piece by piece.

  PCM is 16-bit little-endian at the model's rate. The latency, that of collecting a piece and that of
  computing it, is told on stderr at the end.

  Args:
    model: a causal codec (encodec-24khz, mimi), by name, run directory or file.
    decode: tokens to PCM.
    kbps: bit rate to encode at; the highest by default.
    piece_ms: sound in a piece, rounded to whole frames; longer ones take less computing, and wait
      longer.
    preset: the published config of a file in its authors' layout.
  """
  codec = load(model, preset=preset)
  if not isinstance(codec, PretrainedCodec):
    raise TokzooError(f"{model} is no codec of sound: name one, such as encodec-24khz.")
  if decode and kbps is not None:
    raise TokzooError("--kbps came with --decode: the stream of tokens says its rate.")
  if not piece_ms > 0:
    raise TokzooError(f"--piece-ms {piece_ms:g} came: a piece has more than 0 ms.")
  hop, rate = codec.config.hop, codec.config.sample_rate_hz
  frames = max(round(piece_ms / 1000 * rate / hop), 1)
  run = decode_stream if decode else encode_stream
  settings = {} if decode else {"codebooks": codec.codebooks_of(kbps)}
  times = run(codec, sys.stdin.buffer, sys.stdout.buffer, frames, **settings)
  note(latency(times, frames, codec))


def encode_stream(
  codec: PretrainedCodec,
  source: BinaryIO,
  sink: BinaryIO,
  frames: int,
  codebooks: int | None = None,
) -> list[float]:
  """PCM to tokens until the source ends; the last frame is filled up with silence.

  Args:
    codec: a causal one.
    source: of 16-bit PCM.
    sink: of the stream of tokens.
    frames: of a piece.
    codebooks: Q; None: all.

  Returns:
    Seconds of computing for each piece but the first.

  Raises:
    TokzooError: the codec cannot stream.
  """
  hop, channels = codec.config.hop, codec.config.channels
  state = codec.init_state(1)
  first = max(frames, state.first_hops)
  _warm(codec, state, first, frames, codebooks, is_decoding=False)
  wave_bytes = 2 * channels * hop
  codebooks = codebooks or codec.config.num_codebooks
  head = {
    "format": FORMAT,
    "version": VERSION,
    "system": codec.origin.system,
    "weights": codec.origin.weights,
    "codebooks": codebooks,
  }
  sink.write(json.dumps(head).encode() + b"\n")
  sink.flush()
  times = []
  for number, data in enumerate(_pieces(source, wave_bytes, first, frames)):
    whole = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768
    count = -(-len(data) // wave_bytes)
    size = (frames if number else first) * hop * channels
    wave = np.pad(whole, (0, size - len(whole))).reshape(1, -1, channels)
    begin = time.monotonic()
    state, tokens = codec.encode_step(state, wave, codebooks)
    assert tokens.ids is not None
    ids = np.asarray(tokens.ids)[0, :count].astype("<u2")
    if number:
      times.append(time.monotonic() - begin)
    sink.write(ids.tobytes())
    sink.flush()
  return times


def decode_stream(
  codec: PretrainedCodec, source: BinaryIO, sink: BinaryIO, frames: int
) -> list[float]:
  """Tokens to PCM until the source ends; as `encode_stream`.

  Raises:
    TokzooError: something else than a stream of tokens, that of another codec or of codebooks
      that it does not have, an id out of range, or one that ends within a frame.
  """
  codebooks = _read_head(codec, source)
  config = codec.config
  state = codec.init_state(1)
  first = max(frames, state.first_hops)
  _warm(codec, state, first, frames, codebooks, is_decoding=True)
  times = []
  for number, data in enumerate(_pieces(source, 2 * codebooks, first, frames)):
    if len(data) % (2 * codebooks):
      raise TokzooError(
        f"the stream of tokens ends within a frame of {codebooks} ids: it was cut short."
      )
    ids = np.frombuffer(data, "<u2").astype(np.int32).reshape(1, -1, codebooks)
    count = ids.shape[1]
    if ids.max(initial=0) >= config.num_codes:
      raise TokzooError(
        f"id {ids.max()} is out of range: this codec has the ids 0 to {config.num_codes - 1}; "
        "the stream is damaged."
      )
    missing = (frames if number else first) - count
    begin = time.monotonic()
    tokens = Tokens.from_ids(
      jnp.pad(ids, ((0, 0), (0, missing), (0, 0))), config.num_codes
    )
    state, wave = codec.decode_step(state, tokens, check=False)
    samples = np.asarray(wave)[0, : count * config.hop]
    if number:
      times.append(time.monotonic() - begin)
    sink.write(to_int16(samples).astype("<i2").tobytes())
    sink.flush()
  return times


def latency(times: Sequence[float], frames: int, codec: PretrainedCodec) -> str:
  """What is told of the latency."""
  piece_ms = 1000 * frames * codec.config.hop / codec.config.sample_rate_hz
  if not times:
    return (
      f"pieces of {piece_ms:.0f} ms; too few came to tell how long computing takes."
    )
  middle, late = (1000 * float(np.quantile(times, q)) for q in (0.5, 0.95))
  keeps_up = "keeps up" if late < piece_ms else "does not keep up"
  return (
    f"latency: {piece_ms:.0f} ms to collect a piece, {middle:.1f} ms to compute it (median of "
    f"{len(times)}; 95 % within {late:.1f} ms): this machine {keeps_up} with the sound."
  )


def _pieces(source: BinaryIO, unit: int, first: int, frames: int) -> Iterator[bytes]:
  """The source in pieces of so many frames, the first one perhaps longer; the last is shorter."""
  wanted = first * unit
  while True:
    data = source.read(wanted)
    if data:
      yield data
    if len(data) < wanted:
      return
    wanted = frames * unit


def _warm(
  codec: PretrainedCodec,
  state: Any,
  first: int,
  frames: int,
  codebooks: int | None,
  is_decoding: bool,
) -> None:
  """Compiles both programs before the first sound comes."""
  config = codec.config
  for count in (first, frames):
    if is_decoding:
      ids = np.zeros((1, count, codebooks or 1), np.int32)
      tokens = Tokens.from_ids(jnp.asarray(ids), config.num_codes)
      state, _ = codec.decode_step(state, tokens, check=False)
    else:
      wave = np.zeros((1, count * config.hop, config.channels), np.float32)
      state, _ = codec.encode_step(state, wave, codebooks)


def _read_head(codec: PretrainedCodec, source: BinaryIO) -> int:
  """The first line of a stream of tokens; the number of its codebooks."""
  line = source.readline(4096)
  try:
    head = json.loads(line)
    is_ours = head["format"] == FORMAT and int(head["version"]) <= VERSION
    maker, codebooks = (head["system"], head["weights"]), int(head["codebooks"])
  except (ValueError, KeyError, TypeError) as error:
    raise TokzooError(
      "this is no stream of tokens: pipe in what  tokzoo stream  wrote."
    ) from error
  if not is_ours:
    raise TokzooError(
      f"the stream has format {head['format']} {head['version']}, this tokzoo reads {FORMAT} "
      f"{VERSION}: upgrade tokzoo."
    )
  if maker != (codec.origin.system, codec.origin.weights):
    raise TokzooError(
      f"this stream was made by {maker[0]}@{maker[1][:12]}, but {codec.origin} was to read it: "
      "name the codec that made it."
    )
  if not 1 <= codebooks <= codec.config.num_codebooks:
    raise TokzooError(
      f"this stream has {codebooks} codebooks, {codec.card.name} has 1 to "
      f"{codec.config.num_codebooks}: it is damaged."
    )
  return codebooks
