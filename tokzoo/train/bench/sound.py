"""Codecs of sound beside the same in transformers, PyTorch eager.

  encode, decode   of one sound, with the same random weights and the same tokens on both sides

Float32. `nano` is what a test can afford, `base` the published sizes: EnCodec at 24 kHz (6 kbps)
and 48 kHz (stereo, 6 kbps), DAC at 24 kHz (all 32 codebooks) and Mimi (8 codebooks).
"""

import dataclasses
import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tokzoo.kernels.racing import Row, race
from tokzoo.nn.dac import DACNet
from tokzoo.tokenizers.audio import dac, encodec, mimi
from tokzoo.weights import Table, read_state

PEER = "transformers, eager"


@dataclasses.dataclass(frozen=True)
class Case:
  """One codec to time.

  name, size:  of the rows
  seconds:     of sound
  codebooks:   Q
  config:      ours
  weights:     the table from the published names
  peer:        class name of the peer's config, and what it is made with
  coding:      how the peer's `encode` is told of the codebooks
  """

  name: str
  size: str
  seconds: float
  codebooks: int
  config: Any
  weights: Table
  peer: tuple[str, dict[str, Any]]
  coding: dict[str, Any]


_STEREO = {
  "audio_channels": 2,
  "sampling_rate": 48_000,
  "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
  "normalize": True,
  "chunk_length_s": 1.0,
  "overlap": 0.01,
  "norm_type": "time_group_norm",
  "use_causal_conv": False,
}
_DAC = {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 32, "sampling_rate": 24_000}
_MIMI = {"codebook_dim": 256, "vector_quantization_hidden_dimension": 256}

CASES = (
  Case(
    "EnCodec 24 kHz",
    "nano",
    0.5,
    8,
    dataclasses.replace(
      encodec.Config(), net=dataclasses.replace(encodec.Config().net, filters=4)
    ),
    encodec.WEIGHTS,
    ("Encodec", {"num_filters": 4}),
    {"bandwidth": 6.0},
  ),
  Case(
    "DAC 24 kHz",
    "nano",
    0.1,
    4,
    dataclasses.replace(
      dac.Config(), net=DACNet(encoder_dim=4, decoder_dim=64), num_codebooks=4
    ),
    dac.WEIGHTS,
    (
      "Dac",
      {**_DAC, "encoder_hidden_size": 4, "decoder_hidden_size": 64, "n_codebooks": 4},
    ),
    {"n_quantizers": 4},
  ),
  Case(
    "Mimi",
    "nano",
    0.5,
    4,
    dataclasses.replace(
      mimi.Config(),
      net=dataclasses.replace(mimi.Config().net, filters=4, dim=64),
      layers=2,
      hidden=64,
      code_dim=32,
      num_codebooks=4,
    ),
    mimi.WEIGHTS,
    (
      "Mimi",
      {
        "num_filters": 4,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "codebook_dim": 32,
        "vector_quantization_hidden_dimension": 32,
        "num_quantizers": 4,
        "upsample_groups": 64,
      },
    ),
    {"num_quantizers": 4},
  ),
  Case(
    "EnCodec 24 kHz",
    "base",
    5.0,
    8,
    encodec.PRESETS["encodec-24khz"],
    encodec.WEIGHTS,
    ("Encodec", {}),
    {"bandwidth": 6.0},
  ),
  Case(
    "EnCodec 48 kHz",
    "base",
    5.0,
    4,
    encodec.PRESETS["encodec-48khz"],
    encodec.WEIGHTS,
    ("Encodec", _STEREO),
    {"bandwidth": 6.0},
  ),
  Case(
    "DAC 24 kHz",
    "base",
    2.0,
    32,
    dac.PRESETS["dac-24khz"],
    dac.WEIGHTS,
    ("Dac", _DAC),
    {"n_quantizers": 32},
  ),
  Case(
    "Mimi",
    "base",
    5.0,
    8,
    mimi.PRESETS["mimi"],
    mimi.WEIGHTS,
    ("Mimi", _MIMI),
    {"num_quantizers": 8},
  ),
)


def bench(
  turns: int, size: str | None = None, name: str | None = None
) -> Iterator[tuple[Case, Row]]:
  """Rows of every case of a size and a name, as they are measured.

  The real-time factor of a row is case.seconds / row.seconds.
  """
  for case in CASES:
    if size in (None, case.size) and name in (None, case.name):
      spec = f"{case.name} {case.size}, {case.seconds:g} s"
      for op, (ours, arguments), peer in programs(case):
        for row in race(op, spec, {"tokzoo": (ours, arguments)}, {PEER: peer}, turns):
          yield case, row


def programs(
  case: Case,
) -> Iterator[
  tuple[str, tuple[Callable[..., Any], tuple[Any, ...]], Callable[[], Any]]
]:
  """What is timed of a case: operation, our function with its arguments, the peer's call."""
  import torch

  theirs, state = _peer(case)
  c, module = case.config, case.config.build()
  hops = round(case.seconds * c.sample_rate_hz / c.hop)
  draw = np.random.default_rng(0)
  sound = draw.uniform(-0.5, 0.5, (1, hops * c.hop, c.channels)).astype(np.float32)
  like = jax.eval_shape(module.init, jax.random.key(0), sound)
  variables = jax.tree.map(jnp.asarray, case.weights.to_ours(state, like))
  wave = torch.from_numpy(sound.transpose(0, 2, 1).copy())
  peer = torch.no_grad()

  def encode(variables: Any, x: Any) -> Any:
    return module.apply(variables, x, num_codebooks=case.codebooks, method="encode")

  def decode(variables: Any, tokens: Any) -> Any:
    return module.apply(variables, tokens, method="decode")

  coded = peer(lambda: theirs.encode(wave, **case.coding))()
  rest = {} if "audio_scales" not in coded else {"audio_scales": coded.audio_scales}
  if "last_frame_pad_length" in coded:
    rest["last_frame_pad_length"] = coded.last_frame_pad_length
  tokens = jax.jit(encode)(variables, sound)
  yield (
    "encode",
    (encode, (variables, sound)),
    peer(lambda: theirs.encode(wave, **case.coding).audio_codes),
  )
  yield (
    "decode",
    (decode, (variables, tokens)),
    peer(lambda: theirs.decode(audio_codes=coded.audio_codes, **rest).audio_values),
  )


def _peer(case: Case) -> tuple[Any, dict[str, np.ndarray]]:
  """The peer with random weights, and these as it would publish them."""
  import torch

  transformers = importlib.import_module("transformers")
  kind, settings = case.peer
  torch.manual_seed(0)
  config = getattr(transformers, f"{kind}Config")(**settings)
  model = getattr(transformers, f"{kind}Model")(config).eval()
  with torch.no_grad():
    for name, buffer in model.named_buffers():
      # Codebooks that are not learnt by descent are made of zeros.
      if name.split(".")[-1] in ("embed", "embed_sum"):
        buffer.copy_(torch.randn(buffer.shape))
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    state = read_state(Path(folder) / "model.safetensors")
  return model, state
