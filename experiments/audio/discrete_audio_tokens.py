"""Discrete Audio Tokens: More Than a Survey! (arXiv 2506.10274): codecs side by side.

  tokzoo reproduce discrete-audio-tokens

Lab record
  benchmark   every codec of the catalog whose weights are at hand, at each of its rates, and the
              small ones of the nano recipes, trained here for a minute each: reconstruction by the
              survey's metrics that can be computed offline; taxonomy; published rows apart
  claims      the arithmetic of rates; quantizers at equal encoder and steps

The survey's neural predictors (UTMOS, PLCMOS, speaker similarity, word error rate) need networks that
are not at hand offline: they are not computed here, and nothing stands in for them.
"""

import csv
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tokzoo.cli.console import write_picture
from tokzoo.cli.experiments import load_experiment
from tokzoo.cli.figures import Series, plot
from tokzoo.cli.sounding import judged
from tokzoo.contract import Output
from tokzoo.data import evaluation_batches, loader, open_source
from tokzoo.data.packaged import sound_crops
from tokzoo.data.transforms import fixed_part
from tokzoo.hub import Card, PretrainedCodec, catalog, load
from tokzoo.hub.download import is_at_hand
from tokzoo.losses import spectral
from tokzoo.metrics import CodebookUsage, mel_distance, si_snr
from tokzoo.nn.seanet import Decoder, Encoder, SEANet
from tokzoo.quantizers import FiniteScalar
from tokzoo.systems import SYSTEMS, part_of_config
from tokzoo.tokenizers.audio.codebooks import ema_residual
from tokzoo.tokenizers.audio.waves import of_length
from tokzoo.tokens import Tokens
from tokzoo.train.claims import Claim, fit
from tokzoo.train.sound import SoundReconstruction

SYSTEM = "discrete-audio-tokens"

RECIPES: dict[str, Any] = {}
"""The benchmark trains the nano recipes of the codecs themselves."""

# ---------------------------------------------------------------- taxonomy


@dataclasses.dataclass(frozen=True)
class Kind:
  """A codec in the survey's terms.

  architecture:  CNN, RNN, T (transformer), of encoder and decoder; time or time-frequency
  quantizer:     RVQ, SVQ (single), MSRVQ (several rates), GVQ (groups)
  training:      GAN, Rec(onstruction), VQ, Feat(ure matching); SD: semantic distillation
  streams:       whether it is causal
  domain:        speech, music, audio, of the published weights
  """

  architecture: str
  quantizer: str
  training: str
  streams: str
  domain: str


_GAN = "GAN, Feat, Rec, VQ; joint"

TAXONOMY = {
  "encodec": Kind("CNN+RNN, time", "RVQ", _GAN, "24 kHz only", "speech, music, audio"),
  "dac": Kind("CNN, time", "RVQ, by angle", _GAN, "no", "speech, music, audio"),
  "mimi": Kind("CNN+T, time", "SVQ + RVQ", "GAN, Feat, VQ, SD; joint", "yes", "speech"),
  "snac": Kind("CNN (+T), time", "MSRVQ", _GAN, "no", "speech; music, audio"),
  "speechtokenizer": Kind("CNN+RNN, time", "RVQ", f"{_GAN}, SD", "no", "speech"),
  "dm-codec": Kind(
    "CNN+RNN, time", "RVQ", f"{_GAN}, SD of two teachers", "no", "speech"
  ),
  "wavtokenizer": Kind(
    "CNN+RNN, time; decoder CNN+T, time-frequency",
    "SVQ",
    _GAN,
    "no",
    "speech, music, audio",
  ),
  "xcodec": Kind(
    "CNN beside a speech model (T), time", "RVQ", _GAN, "no", "speech; audio"
  ),
}

# ---------------------------------------------------------------- benchmark

_NANO = ("encodec", "dac", "speechtokenizer", "mimi")
"""Systems whose nano recipe is trained for the benchmark."""
_STEPS = 200
_SOUNDS = 8
_MOST_RATES = 4
_COLUMNS = {
  "kbps": "kbps",
  "tokens_per_s": "tokens/s",
  "si_snr_db": "SI-SNR (dB)",
  "sdr_db": "SDR (dB)",
  "mel_distance": "mel distance",
  "stoi": "STOI",
  "pesq": "PESQ",
  "dnsmos": "DNSMOS",
  "usage": "codes in use",
}


def benchmark(folder: Path, say: Callable[[str], None]) -> list[str]:
  """Measures every codec at hand; writes benchmark.csv and rates.png, returns the report's lines."""
  rows = []
  for codec in [*_from_catalog(say), *_trained(say)]:
    rates = list(codec.config.rates_kbps.items())
    keep = np.unique(np.linspace(0, len(rates) - 1, _MOST_RATES).round().astype(int))
    for kbps, codebooks in (rates[i] for i in keep):
      rows.append(_measured(codec, codebooks))
      say(f"  {codec.card.name} at {kbps:g} kbps: {rows[-1]['si_snr_db']} dB SI-SNR")
  lines = [*_taxonomy_lines(), *_table_lines(rows)]
  with open(folder / "benchmark.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  names = list(dict.fromkeys(row["codec"] for row in rows))
  series = [
    Series(
      name,
      [row["kbps"] for row in rows if row["codec"] == name],
      [row["mel_distance"] for row in rows if row["codec"] == name],
      dots=True,
    )
    for name in names
  ]
  figure = plot(series, "Rate and quality", "kbps", "mel distance (less is better)")
  write_picture(folder / "rates.png", figure)
  return [*lines, "![rate and quality](rates.png)", "", *_published_lines()]


def _from_catalog(say: Callable[[str], None]) -> list[PretrainedCodec]:
  """The catalog's codecs whose weights are on this machine."""
  sound = {slug for slug, system in SYSTEMS.items() if system.modality == "sound"}
  entries = [e for e in catalog().values() if e.system in sound and is_at_hand(e)]
  say(f"published weights at hand: {', '.join(e.name for e in entries) or 'none'}")
  return [load(entry.name) for entry in entries]


def _trained(say: Callable[[str], None]) -> list[PretrainedCodec]:
  """The nano codecs, trained by their recipe's losses without critics."""
  codecs = []
  for slug in _NANO:
    recipe = load_experiment(slug).RECIPES["nano"]()
    task = dataclasses.replace(recipe.task, adversary=None, balance=None)
    say(f"training {slug} nano, {_STEPS} steps")
    batches = loader(recipe.data, recipe.batch_size, 0)
    variables = fit(task, batches, _STEPS, 0)
    batches.close()
    module = task.model.build()
    system, part = part_of_config(task.model)
    card = Card(f"{slug}-nano", system, part, "Apache-2.0", "Apache-2.0")
    kept = {k: v for k, v in variables.items() if k != "task"}
    codecs.append(PretrainedCodec(module, kept, card))
  return codecs


def _measured(codec: PretrainedCodec, codebooks: int) -> dict[str, Any]:
  """Means over the held-out sounds of a codec at one rate."""
  rate, channels = codec.config.sample_rate_hz, codec.config.channels
  config = sound_crops("test", rate, 1.0, channels=1)
  source = open_source(config)
  found, usage, bits, seconds, frames = [], None, 0.0, 0.0, 0
  for index in range(_SOUNDS):
    wave = np.repeat(fixed_part(config, source[index])["audio"], channels, 1)
    tokens = codec.encode(wave, codebooks)
    made = codec.decode(tokens, len(wave))[0]
    snr = float(jax.jit(si_snr)(wave[None], made[None])[0])
    found.append({**judged(wave, made, rate), "si_snr_db": snr})
    assert tokens.ids is not None
    state = CodebookUsage.from_ids(tokens.ids, codec.config.num_codes)
    usage = state if usage is None else usage.merge(state)
    bits += tokens.total_bits
    seconds += len(wave) / rate
    frames += tokens.ids.size
  assert usage is not None
  row: dict[str, Any] = {
    "codec": codec.card.name,
    "system": codec.card.system,
    "codebooks": codebooks,
    "kbps": bits / seconds / 1000,
    "tokens_per_s": frames / seconds,
    "usage": usage.compute()["usage"],
  }
  for name in found[0]:
    values = [one[name] for one in found if one[name] is not None]
    row[name] = float(np.mean(values)) if values else None
  return row


def _table_lines(rows: list[dict[str, Any]]) -> list[str]:
  lines = [
    "## Benchmark",
    "",
    f"Means over {_SOUNDS} held-out synthesised utterances of a second (`tones`, no speech). "
    f"`-nano`: {_STEPS} steps on such utterances, without critics; they say nothing of the "
    "published codecs. A dash: not computed.",
    "",
    f"| codec | codebooks | {' | '.join(_COLUMNS.values())} |",
    f"|---|{'---|' * (len(_COLUMNS) + 1)}",
  ]
  for row in rows:
    cells = [_cell(row[name]) for name in _COLUMNS]
    lines.append(f"| {row['codec']} | {row['codebooks']} | {' | '.join(cells)} |")
  return [*lines, ""]


def _taxonomy_lines() -> list[str]:
  fields = [field.name for field in dataclasses.fields(Kind)]
  lines = [
    "## Taxonomy",
    "",
    f"| system | {' | '.join(fields)} |",
    f"|---|{'---|' * len(fields)}",
  ]
  for slug, kind in TAXONOMY.items():
    cells = [str(getattr(kind, field)) for field in fields]
    lines.append(f"| {slug} | {' | '.join(cells)} |")
  return [*lines, ""]


def _published_lines() -> list[str]:
  """The survey's own rows, which share no column with what was measured here."""
  heads = ("tokenizer", "#Q", "kbps", "SDR", "SI-SNR", "PESQ", "STOI")
  return [
    "### The survey's rows (LibriSpeech; arXiv 2506.10274)",
    "",
    f"| {' | '.join(heads)} |",
    f"|{'---|' * len(heads)}",
    *(f"| {' | '.join(str(cell) for cell in row)} |" for row in PUBLISHED),
    "",
  ]


def _cell(value: float | None) -> str:
  return "-" if value is None else f"{value:.3g}"


PUBLISHED = (
  ("Enc-SMA-24", 2, 1.5, 0.82, -1.53, 1.56, 0.85),
  ("Enc-SMA-24", 8, 6.0, 6.50, 4.83, 2.77, 0.94),
  ("Enc-SMA-24", 32, 24.0, 9.75, 7.90, 3.71, 0.97),
  ("DAC-SMA-24", 2, 1.5, -0.57, -8.40, 1.48, 0.83),
  ("DAC-SMA-24", 8, 6.0, 1.79, -9.51, 3.40, 0.95),
  ("DAC-SMA-24", 32, 24.0, 2.20, -9.47, 4.45, 0.99),
  ("ST-S-16", 2, 1.0, -7.10, -14.46, 1.21, 0.77),
  ("ST-S-16", 8, 4.0, 3.01, 0.53, 2.62, 0.92),
  ("Mimi-S-24", 8, 1.1, 3.43, 1.19, 2.22, 0.90),
  ("Mimi-S-24", 32, 4.4, 9.32, 7.45, 3.38, 0.96),
  ("DWavL-S-16", 2, 1.0, -13.96, -37.23, 1.13, 0.75),
  ("DWavL-S-16", 6, 3.0, -12.69, -35.43, 1.19, 0.75),
  ("SQ-SMA-16", 4, 3.0, 1.91, -8.61, 3.31, 0.96),
  ("WT-SMA-24", 1, 0.98, 2.02, -0.79, 1.88, 0.87),
  ("WT-S-24", 1, 0.52, 0.17, -3.16, 2.05, 0.89),
)

# ---------------------------------------------------------------- claims

_FRAMES = {
  "Enc-SMA-24": (75, 1024),
  "DAC-SMA-24": (75, 1024),
  "ST-S-16": (50, 1024),
  "Mimi-S-24": (12.5, 2048),
  "DWavL-S-16": (50, 1000),
  "SQ-SMA-16": (50, 19_683),
  "WT-SMA-24": (75, 4096),
  "WT-S-24": (40, 4096),
}
"""Frames a second and codes of each codebook, of the survey's table of tokenizers."""

_EXCEPTIONS = ("SQ-SMA-16", "WT-SMA-24", "WT-S-24")
"""Whose kbps column the formula does not give: 3 for 2.85, .98 for .90, .52 for .48."""


def rates(seed: int) -> dict[str, float]:
  """The largest error of frames x codebooks x log2(codes) in kbps, and of the exceptions."""
  errors = {True: 0.0, False: 0.0}
  for name, codebooks, kbps, *_ in PUBLISHED:
    frames, codes = _FRAMES[name]
    found = frames * codebooks * math.log2(codes) / 1000
    is_exception = name in _EXCEPTIONS
    errors[is_exception] = max(errors[is_exception], abs(found - kbps))
  return {"largest error in kbps": errors[False], "of the exceptions": errors[True]}


_NET = SEANet(filters=8, dim=32, ratios=(4, 4, 2), lstm_layers=1)


@dataclasses.dataclass(frozen=True)
class AblationConfig:
  """One encoder and decoder around one of three quantizers."""

  quantizer: str
  """rvq (8 x 256 codes), fsq (64,000 in one token) or svq (1,024 codes)."""
  sample_rate_hz: int = 8_000
  """Samples a second."""
  net: SEANet = _NET
  """Hop 32."""

  channels = 1

  def build(self) -> "Ablation":
    return Ablation(self)


class Ablation(nn.Module):
  """Waves to codes and back; only `__call__`, which is what the ablation measures."""

  config: AblationConfig

  @nn.compact
  def __call__(self, x: Float[Array, "B T 1"], train: bool = False) -> Output:
    net = self.config.net
    z = Encoder(net, name="encoder")(x)
    if self.config.quantizer == "fsq":
      levels = (8, 8, 8, 5, 5, 5)
      small = nn.Dense(len(levels), name="down")(z)
      quantized = FiniteScalar(levels, name="quantizer")(small, train=train)
      values = nn.Dense(net.dim, name="up")(quantized.values)
      vocab = math.prod(levels)
    else:
      count, vocab = (8, 256) if self.config.quantizer == "rvq" else (1, 1024)
      quantizer = ema_residual(count, vocab, net.dim, reset_below=0.5)
      quantized = quantizer.clone(name="quantizer")(z, train=train)
      values = quantized.values
    audio = of_length(Decoder(net, name="decoder")(values), x.shape[1])
    tokens = Tokens.from_ids(jax.lax.stop_gradient(quantized.ids), vocab)
    return Output(audio.astype(jnp.float32), tokens, quantized.losses)


_ABLATION_STEPS = 400


@functools.cache
def _ablated(quantizer: str, seed: int) -> tuple[float, float]:
  """SI-SNR in dB and mel distance on held-out sounds."""
  config = AblationConfig(quantizer)
  task = SoundReconstruction(
    model=config,
    l1=10.0,
    mel=spectral.encodec(config.sample_rate_hz, longest=9),
    weights={} if quantizer == "fsq" else {"commitment": 0.05},
  )
  batches = loader(sound_crops("train", config.sample_rate_hz, 0.5), 8, seed)
  variables = fit(task, batches, _ABLATION_STEPS, seed, 3e-3)
  batches.close()
  module = config.build()
  held_out = sound_crops("test", config.sample_rate_hz, 0.5)
  audio = jnp.asarray(next(evaluation_batches(held_out, 32))["audio"])

  @jax.jit
  def run(variables: Any, audio: Array) -> tuple[Array, Array]:
    made = module.apply(variables, audio).reconstruction
    return si_snr(audio, made).mean(), mel_distance(
      audio, made, config.sample_rate_hz
    ).mean()

  snr, distance = run(variables, audio)
  return float(snr), float(distance)


def quantizers(seed: int) -> dict[str, float]:
  """SI-SNR and mel distance by quantizer."""
  numbers = {}
  for name in ("rvq", "fsq", "svq"):
    snr, distance = _ablated(name, seed)
    numbers[f"SI-SNR (dB): {name}"] = snr
    numbers[f"mel distance: {name}"] = distance
  return numbers


_SHEET = "arXiv 2506.10274"

CLAIMS = (
  Claim(
    "Frames x codebooks x log2(codes) gives the survey's bit rates within rounding, but for "
    "SQ-Codec and WavTokenizer",
    source=f"{_SHEET}, tables of tokenizers and reconstruction",
    measure=rates,
    holds=lambda n: (
      n["largest error in kbps"] <= 0.05 and n["of the exceptions"] > 0.03
    ),
    setting="arithmetic on the published tables",
    seeds=(0,),
  ),
  Claim(
    "At equal encoder and steps RVQ reconstructs better than FSQ, and FSQ better than a single "
    "codebook, in SI-SNR and mel distance; RVQ by 3 dB over the single one (at a higher rate, as "
    "in the survey)",
    source=f"{_SHEET}, ablation on speech",
    measure=quantizers,
    holds=lambda n: (
      n["SI-SNR (dB): rvq"] > n["SI-SNR (dB): fsq"] > n["SI-SNR (dB): svq"]
      and n["mel distance: rvq"] < n["mel distance: fsq"] < n["mel distance: svq"]
      and n["SI-SNR (dB): rvq"] - n["SI-SNR (dB): svq"] >= 3
    ),
    setting="SEANet of 8 filters and hop 32 at 8 kHz on synthesised tones; RVQ 8 x 256, FSQ 64,000, "
    f"single 1,024; {_ABLATION_STEPS} steps of 8 half seconds, without critics",
  ),
)
