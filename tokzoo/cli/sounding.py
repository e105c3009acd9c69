"""Sound for `tokzoo encode`, `decode` and `reconstruct`: files through a codec, in pieces.

A long file is never whole in memory: blocks are read, resampled, coded and written one after the
other, and the peak of the process's memory is told.
"""

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from tokzoo.cli.console import emit, note, table, write_json
from tokzoo.data.sound import (
  SOUND_SUFFIXES,
  read_sound,
  resampled,
  sound_blocks,
  sound_writer,
  write_sound,
)
from tokzoo.errors import TokzooError
from tokzoo.hub import PretrainedCodec
from tokzoo.metrics import audio as metrics
from tokzoo.metrics import mel_distance, si_sdr
from tokzoo.tokens import load_tokens, save_tokens


def is_sound(path: str | Path) -> bool:
  """Whether a file is sound by its name."""
  return Path(path).suffix.lower() in SOUND_SUFFIXES


def encode_file(
  codec: PretrainedCodec, source: str | Path, out: Path, kbps: float | None
) -> dict[str, Any]:
  """A sound file to a token file, and what is told of it.

  Raises:
    TokzooError: a file that cannot be read, or a rate that the codec does not have.
  """
  codebooks = codec.codebooks_of(kbps)
  rate, channels = codec.config.sample_rate_hz, codec.config.channels
  blocks = sound_blocks(source, rate, channels, note)
  begin = time.monotonic()
  tokens, samples = codec.encode_blocks(blocks, codebooks)
  seconds = time.monotonic() - begin
  about = {"samples": samples, "sample_rate_hz": rate, "channels": channels}
  save_tokens(out, tokens, {name: str(value) for name, value in about.items()})
  assert tokens.ids is not None
  return {
    "out": str(out),
    "seconds": samples / rate,
    "frames": tokens.length,
    "codebooks": tokens.ids.shape[-1] if tokens.ids.ndim == 3 else 1,
    "kbps": codec.kbps_of(tokens, samples),
    "bytes": math.ceil(tokens.total_bits / 8),
    "real_time_factor": seconds * rate / samples,
    "peak_memory_mb": peak_memory_mb(),
    "model": str(tokens.origin),
  }


def decode_file(codec: PretrainedCodec, tokens: Path, out: Path) -> None:
  """A token file to a sound file.

  Raises:
    TokzooError: tokens of another codec or not of a sound, or a path that cannot be written.
  """
  loaded, extra = load_tokens(tokens, codec.origin)
  try:
    samples = int(extra["samples"])
  except (KeyError, ValueError) as error:
    raise TokzooError(
      f"{tokens} does not say how long its sound is: it was not written by tokzoo encode from "
      "a sound file."
    ) from error
  rate, channels = codec.config.sample_rate_hz, codec.config.channels
  with sound_writer(out, rate, channels) as write:
    for block in codec.decode_blocks(loaded, samples):
      write(block)
  note(
    f"wrote {out}: {samples / rate:.2f} s at {rate} Hz; peak memory {peak_memory_mb():.0f} MB."
  )


def peak_memory_mb() -> float:
  """The most memory that this process has held, in MB."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def find_sounds(path: Path) -> list[Path]:
  """A sound file, or all those below a folder, sorted.

  Raises:
    TokzooError: there is none.
  """
  if path.is_file():
    return [path]
  if not path.is_dir():
    raise TokzooError(
      f"there is nothing at {path}: name a sound file or a folder of them."
    )
  found = sorted(p for p in path.rglob("*") if is_sound(p) and p.name[0] != ".")
  if not found:
    raise TokzooError(
      f"the folder {path} holds no sounds ({', '.join(SOUND_SUFFIXES)}): name another."
    )
  return found


# ---------------------------------------------------------------- reconstruct

_HEADS = {
  "model": "model",
  "sound": "sound",
  "kbps": "kbps",
  "si_sdr_db": "SI-SDR (dB)",
  "mel_distance": "mel distance",
  "stoi": "STOI",
  "pesq": "PESQ",
  "dnsmos": "DNSMOS",
  "dnsmos_original": "of original",
  "real_time_factor": "real time",
}
"""Numbers that the tables show, and how they call them; numbers.json has all."""

_MOST_ROWS = 40

_mel_distance = jax.jit(mel_distance, static_argnums=2)


@dataclasses.dataclass(frozen=True)
class _Heard:
  """A sound through a codec: the reconstruction and its numbers."""

  wave: np.ndarray
  numbers: dict[str, float | None]


def reconstruct_files(
  codecs: dict[str, PretrainedCodec],
  sounds: Path,
  out: Path,
  kbps: float | None,
  as_json: bool,
) -> None:
  """Sound files through codecs: reconstructions, a table, numbers.json.

  Raises:
    TokzooError: no sounds, one that cannot be read, or a rate that a codec does not have.
  """
  paths = find_sounds(sounds)
  codebooks = {name: codec.codebooks_of(kbps) for name, codec in codecs.items()}
  rows, means = [], []
  for name, codec in codecs.items():
    rate, channels = codec.config.sample_rate_hz, codec.config.channels
    folder = out / name.replace("/", "-") if len(codecs) > 1 else out
    told = []
    for path in paths:
      wave = read_sound(path, rate, channels, note)
      heard = _through(codec, wave, codebooks[name])
      write_sound(folder / f"{path.stem}.wav", heard.wave, rate)
      told.append({"model": name, "sound": path.name, **heard.numbers})
    rows += told
    means.append(_mean(name, told))
  numbers = {"models": means, "sounds": rows, "not_computed": metrics.not_at_hand()}
  write_json(out / "numbers.json", numbers)
  if absent := metrics.not_at_hand():
    note(f'not computed: {", ".join(absent)}: run  pip install "tokzoo[audio-eval]".')

  def render(console: Console) -> None:
    whose = f" through {next(iter(codecs))}" if len(codecs) == 1 else ""
    for title, lines in ((f"sounds{whose}", rows), (f"means of {len(paths)}", means)):
      chosen = [
        key for key in _HEADS if any(line.get(key) is not None for line in lines)
      ]
      if len(codecs) == 1:
        chosen.remove("model")
      cells = [[_cell(line[key]) for key in chosen] for line in lines]
      if len(lines) <= _MOST_ROWS:
        console.print(table(title, [_HEADS[key] for key in chosen], cells))
    console.print(
      "Real time is seconds of encoding and decoding for a second of sound, compiled before. "
      f"Reconstructions and numbers.json are in {out}."
    )

  emit(numbers, as_json, render)


def _through(codec: PretrainedCodec, wave: np.ndarray, codebooks: int | None) -> _Heard:
  """A sound through a codec, twice: the second time is timed, the programs are there then."""
  made = codec.decode(codec.encode(wave, codebooks), len(wave))
  begin = time.monotonic()
  tokens = codec.encode(wave, codebooks)
  made = codec.decode(tokens, len(wave))[0]
  seconds = time.monotonic() - begin
  rate = codec.config.sample_rate_hz
  numbers = judged(wave, made, rate)
  return _Heard(
    made,
    {
      "kbps": codec.kbps_of(tokens, len(wave)),
      **numbers,
      "real_time_factor": seconds * rate / len(wave),
    },
  )


def judged(
  wave: np.ndarray, made: np.ndarray, rate_hz: int, with_dnsmos: bool = True
) -> dict[str, float | None]:
  """The metrics of a reconstruction float32[T, C]; None: not computed.

  Ratios and mel distance are of all channels; the perceptual ones, which are of one, of their
  mean, PESQ and DNSMOS at 16 kHz; DNSMOS, which takes seconds, only if `with_dnsmos`.
  """
  pair = jnp.asarray(wave)[None], jnp.asarray(made)[None]
  one, other = wave.mean(1), made.mean(1)
  at_16khz = [
    resampled(sound[:, None], rate_hz, metrics.RATE_HZ)[:, 0] for sound in (one, other)
  ]
  original, ours = (
    None if found is None else found["overall"]
    for found in (metrics.dnsmos(s) if with_dnsmos else None for s in at_16khz)
  )
  return {
    "si_sdr_db": _finite(si_sdr(*pair)[0]),
    "sdr_db": _finite(metrics.sdr(one, other)),
    "mel_distance": _finite(_mel_distance(*pair, rate_hz)[0]),
    "stoi": metrics.stoi(one, other, rate_hz),
    "pesq": metrics.pesq(*at_16khz),
    "dnsmos": ours,
    "dnsmos_original": original,
  }


def _mean(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Means of every number over the sounds that have it."""
  means: dict[str, Any] = {"model": name}
  for key in rows[0]:
    values = [row[key] for row in rows if row[key] is not None]
    if key not in ("model", "sound"):
      means[key] = float(np.mean(values)) if values else None
  return means


def _finite(value: Any) -> float | None:
  return float(value) if np.isfinite(value) else None


def _cell(value: Any) -> Any:
  return "-" if value is None else value
