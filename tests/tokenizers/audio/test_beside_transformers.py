"""EnCodec, DAC and Mimi beside transformers' own, tiny and random (extra `parity`).

`pytest -n 0 -m torch tests/tokenizers/audio/test_beside_transformers.py`
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import dac as dac_fixture
from tests.parity import encodec as encodec_fixture
from tests.parity import mimi as mimi_fixture
from tests.parity.base import compiled
from tests.parity.encodec import btc
from tokzoo.tokenizers.audio import dac, encodec, mimi
from tokzoo.tokens import Tokens
from tokzoo.weights import read_state

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ENCODEC = {
  "target_bandwidths": [1.0, 2.0],
  "sampling_rate": 800,
  "hidden_size": 12,
  "num_filters": 4,
  "upsampling_ratios": [5, 3],
  "codebook_size": 32,
  "num_residual_layers": 2,
}
STEREO = {
  **ENCODEC,
  "audio_channels": 2,
  "sampling_rate": 400,
  "target_bandwidths": [1.0],
  "normalize": True,
  "chunk_length_s": 0.25,
  "overlap": 0.04,
  "norm_type": "time_group_norm",
  "use_causal_conv": False,
}
MUSIC = {**ENCODEC, "use_causal_conv": False, "use_conv_shortcut": False}
DAC = {
  "encoder_hidden_size": 4,
  "downsampling_ratios": [2, 5, 3],
  "decoder_hidden_size": 32,
  "n_codebooks": 3,
  "codebook_size": 32,
  "codebook_dim": 4,
}
MIMI = {
  "sampling_rate": 480,
  "hidden_size": 16,
  "num_filters": 4,
  "upsampling_ratios": [4, 3],
  "codebook_size": 16,
  "codebook_dim": 8,
  "vector_quantization_hidden_dimension": 8,
  "num_quantizers": 5,
  "upsample_groups": 16,
  "num_hidden_layers": 2,
  "intermediate_size": 32,
  "num_attention_heads": 2,
  "num_key_value_heads": 2,
  "sliding_window": 7,
}


@torch.no_grad()
def randomised(model, seed: int = 0, gain: float = 1.0):
  """The model with every parameter and codebook drawn.

  Args:
    model: of transformers.
    seed: of the draw.
    gain: of linear maps; so deep a stack as DAC's would else amplify rounding.
  """
  draw = torch.Generator().manual_seed(seed)
  tensors = [*model.named_parameters(), *model.named_buffers()]
  for name, tensor in tensors:
    last = name.split(".")[-1]
    if not tensor.is_floating_point() or last in ("inited", "initialized", "inv_freq"):
      continue
    noise = torch.randn(tensor.shape, generator=draw)
    if last in ("cluster_usage", "cluster_size", "alpha"):
      tensor.copy_(noise.abs() + 0.5)
    elif "norm" in name and last == "weight":
      tensor.copy_(1 + 0.1 * noise)
    elif last in ("original0", "weight_g"):
      # A gain of about one keeps the signal's size.
      tensor.copy_(1 + 0.1 * noise)
    elif last.startswith("embed") or "codebook" in name:
      tensor.copy_(noise)
    else:
      fan = max(1, tensor[0].numel()) if tensor.dim() > 1 else 25
      tensor.copy_(gain * noise / fan**0.5)
  return model.eval()


def published(model, folder) -> dict:
  """The state as save_pretrained writes it: what lies on the hub."""
  model.save_pretrained(folder)
  return read_state(folder / "model.safetensors")


def audio_of(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
  draw = np.random.default_rng(seed)
  return draw.uniform(-1, 1, (2, channels, samples)).astype(np.float32)


@pytest.mark.parametrize(
  ("settings", "samples"),
  [(ENCODEC, 203), (STEREO, 331), (STEREO, 77), (MUSIC, 240)],
  ids=["causal", "stereo", "stereo-short", "music"],
)
def test_encodec(settings, samples, tmp_path):
  config = transformers.EncodecConfig(**settings)
  theirs = randomised(transformers.EncodecModel(config))
  told = {
    **config.to_dict(),
    "chunk_length": config.chunk_length,
    "chunk_stride": config.chunk_stride,
    "num_quantizers_total": config.num_quantizers,
  }
  ours = encodec_fixture.make_config(told)
  x = audio_of(samples, config.audio_channels)
  rate = config.target_bandwidths[-1]
  model = ours.build()
  like = jax.eval_shape(model.init, jax.random.key(0), btc(x))
  variables = encodec.WEIGHTS.to_ours(published(theirs, tmp_path), like)
  with torch.no_grad():
    coded = theirs.encode(torch.from_numpy(x), bandwidth=rate)
    decoded = theirs.decode(
      coded.audio_codes,
      coded.audio_scales,
      last_frame_pad_length=coded.last_frame_pad_length,
    )[0]
  used = ours.rates_kbps[rate]
  tokens = compiled(
    lambda v: model.apply(v, btc(x), num_codebooks=used, method="encode")
  )(variables)
  audio = compiled(lambda v, t: model.apply(v, t, method="decode"))(variables, tokens)
  frames = ours.frames(samples)
  rows = [coded.audio_codes[i, :, :, :count] for i, count in enumerate(frames)]
  codes = torch.cat(rows, dim=-1).transpose(1, 2).numpy()
  np.testing.assert_array_equal(tokens.ids, codes)
  np.testing.assert_allclose(audio, btc(decoded.numpy()), atol=1e-4)
  if tokens.scale is not None:
    scales = torch.stack(list(coded.audio_scales))[..., 0].T.numpy()
    np.testing.assert_allclose(tokens.scale, scales, rtol=1e-5)
  assert audio.std() > 1e-2


@pytest.mark.parametrize("samples", [30 * 7, 30])
def test_dac(samples, tmp_path):
  config = transformers.DacConfig(**DAC)
  theirs = randomised(transformers.DacModel(config), gain=0.6)
  told = {
    **config.to_dict(),
    "hidden_size": config.hidden_size,
    "upsampling_ratios": config.upsampling_ratios,
  }
  ours = dac_fixture.hf_config(told)
  model, x = ours.build(), audio_of(samples)
  like = jax.eval_shape(model.init, jax.random.key(0), btc(x))
  variables = dac.WEIGHTS.to_ours(published(theirs, tmp_path), like)
  with torch.no_grad():
    coded = theirs.encode(torch.from_numpy(x))
    decoded = theirs.decode(audio_codes=coded.audio_codes).audio_values
  tokens = compiled(lambda v: model.apply(v, btc(x), method="encode"))(variables)
  np.testing.assert_array_equal(tokens.ids, coded.audio_codes.transpose(1, 2).numpy())
  audio = compiled(lambda v, t: model.apply(v, t, method="decode"))(variables, tokens)
  np.testing.assert_allclose(audio[..., 0], decoded.numpy(), atol=1e-4)
  assert audio.std() > 1e-2


@pytest.mark.parametrize("samples", [24 * 21, 24 * 3 + 5])
def test_mimi(samples, tmp_path):
  config = transformers.MimiConfig(**MIMI)
  theirs = randomised(transformers.MimiModel(config))
  told = {**config.to_dict(), "frame_rate": None, "head_dim": config.head_dim}
  ours = mimi_fixture.make_config(told)
  model, x = ours.build(), audio_of(samples)
  like = jax.eval_shape(model.init, jax.random.key(0), btc(x))
  state = published(theirs, tmp_path)
  assert "encoder.layers.0.conv.weight" in state
  variables = mimi.weights(ours.heads).to_ours(state, like)
  with torch.no_grad():
    coded = theirs.encode(torch.from_numpy(x))
    decoded = theirs.decode(coded.audio_codes).audio_values
  tokens = compiled(lambda v: model.apply(v, btc(x), method="encode"))(variables)
  codes = coded.audio_codes.transpose(1, 2).numpy()
  np.testing.assert_array_equal(tokens.ids, codes)
  given = Tokens.from_ids(jnp.asarray(codes, jnp.int32), ours.num_codes)
  audio = compiled(lambda v, t: model.apply(v, t, method="decode"))(variables, given)
  np.testing.assert_allclose(audio, btc(decoded.numpy()), atol=1e-4)
  assert audio.std() > 1e-2
