"""EnCodec against transformers' EncodecModel, causal and in chunks."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, compiled
from tests.parity.instella_t2i import authors_state
from tokzoo.nn.seanet import SEANet
from tokzoo.tokenizers.audio import encodec
from tokzoo.tokens import Tokens


def btc(x: np.ndarray) -> jax.Array:
  """[B, C, T] to ours."""
  return jnp.asarray(np.asarray(x).transpose(0, 2, 1))


def bct(x) -> np.ndarray:
  """[B, T, C] to torch's."""
  return np.asarray(x).transpose(0, 2, 1)


def tied_by(z, codebooks, ids) -> np.ndarray:
  """Where the two nearest codes tie within 1e-5, or did at a level before; bool[B, L, Q].

  Args:
    z: latents [B, L, D].
    codebooks: [K, D] of each level.
    ids: [B, L, Q], whose codes each level leaves behind.
  """
  rest = np.asarray(z, np.float64)
  tied = []
  for level, codes in enumerate(np.asarray(c, np.float64) for c in codebooks):
    error = np.square(rest[..., None, :] - codes).sum(-1)
    best = np.sort(error, axis=-1)
    near = best[..., 1] - best[..., 0] < 1e-5
    tied.append(near | tied[-1] if tied else near)
    rest = rest - codes[np.asarray(ids)[..., level]]
  return np.stack(tied, axis=-1)


def make_config(config: dict) -> encodec.Config:
  assert config["codebook_dim"] == config["hidden_size"]
  return encodec.Config(
    sample_rate_hz=config["sampling_rate"],
    net=SEANet(
      channels=config["audio_channels"],
      dim=config["hidden_size"],
      filters=config["num_filters"],
      ratios=tuple(config["upsampling_ratios"]),
      residual_layers=config["num_residual_layers"],
      kernel=config["kernel_size"],
      last_kernel=config["last_kernel_size"],
      residual_kernel=config["residual_kernel_size"],
      dilation_base=config["dilation_growth_rate"],
      compress=config["compress"],
      is_causal=config["use_causal_conv"],
      pad_mode={"reflect": "reflect", "constant": "zero", "replicate": "replicate"}[
        config["pad_mode"]
      ],
      trim_right_ratio=config["trim_right_ratio"],
      norm={"weight_norm": "none", "time_group_norm": "time_group"}[
        config["norm_type"]
      ],
      lstm_layers=config["num_lstm_layers"],
      true_skip=not config["use_conv_shortcut"],
    ),
    num_codebooks=config["num_quantizers_total"],
    num_codes=config["codebook_size"],
    bandwidths_kbps=tuple(config["target_bandwidths"]),
    chunk=config["chunk_length"],
    stride=config["chunk_stride"],
    is_normalized=config["normalize"],
  )


def compare_encodec(config, tensors):
  ours = make_config(config)
  model, x = ours.build(), btc(tensors["in/audio"])
  like = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = encodec.WEIGHTS.to_ours(authors_state(tensors), like)
  used = ours.rates_kbps[config["bandwidth_used"]]
  assert used == config["num_quantizers_used"]
  frames = ours.frames(x.shape[1])

  def run(model, x):
    z, scale = model.latents(x)
    tokens = model.encode(x, num_codebooks=used)
    codes = model.quantizer.ids_to_codes(tokens.ids)
    return z, scale, tokens, codes, model(x, num_codebooks=used)

  z, scale, tokens, codes, output = compiled(lambda v: model.apply(v, x, method=run))(
    variables
  )
  ids = np.asarray(tokens.ids)
  np.testing.assert_array_equal(ids, output.tokens.ids)
  books = variables["codebook"]["quantizer"]
  levels = [books[f"levels_{q}"]["codes"] for q in range(used)]
  tied = tied_by(z, levels, ids)
  chunks, ties, start = [], [], 0
  for count in frames:
    ending = ((0, 0), (0, 0), (0, frames[0] - count))
    for found, into in ((ids, chunks), (tied, ties)):
      part = np.asarray(found)[:, start : start + count].transpose(0, 2, 1)
      into.append(np.pad(part, ending))
    start += count
  # Decoded from the authors' own codes: a tie does not spread.
  theirs = np.asarray(tensors["out/codes"]).transpose(1, 0, 3, 2)
  rows = [theirs[:, i, :count] for i, count in enumerate(frames)]
  given = Tokens.from_ids(
    jnp.asarray(np.concatenate(rows, axis=1), jnp.int32), ours.num_codes, scale=scale
  )
  audio = compiled(lambda v: model.apply(v, given, method="decode"))(variables)
  if np.array_equal(given.ids, tokens.ids):
    whole = np.asarray(audio)[:, : x.shape[1]]
    np.testing.assert_allclose(output.reconstruction, whole, atol=1e-4)
  out = {
    "out/codes": Ids(np.stack(chunks), np.stack(ties)),
    "out/encoder_first_frame": bct(z[:, : frames[0]]),
    "out/quantized_first_frame": bct(codes[:, : frames[0]]),
    "out/last_frame_pad_length": np.asarray(frames[0] - frames[-1]),
    "out/audio": bct(audio),
  }
  if scale is not None:
    out["out/scales"] = np.asarray(scale).T[..., None]
  return out


COMPARISONS = {
  "encodec-24khz-causal": Comparison(compare_encodec),
  "encodec-48khz-noncausal": Comparison(compare_encodec),
}
