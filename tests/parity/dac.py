"""DAC against transformers' DacModel and the authors' own."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, compiled
from tests.parity.encodec import bct, btc
from tests.parity.instella_t2i import authors_state
from tokzoo.nn.dac import DACNet
from tokzoo.tokenizers.audio import dac
from tokzoo.tokenizers.audio.waves import of_length
from tokzoo.tokens import Tokens


def unit(x: np.ndarray) -> np.ndarray:
  """Of unit norm, in float64."""
  x = np.asarray(x, np.float64)
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def tied_by_angle(inside, codebooks) -> np.ndarray:
  """Where the two nearest codes tie within 1e-5, or did at a level before; bool[B, L, Q].

  Args:
    inside: what each level searches by, [B, L, d] of each.
    codebooks: [K, d] of each.
  """
  tied = []
  for z, codes in zip(inside, codebooks, strict=True):
    near = np.sort(2 * unit(z) @ unit(codes).T, axis=-1)
    near = near[..., -1] - near[..., -2] < 1e-5
    tied.append(near | tied[-1] if tied else near)
  return np.stack(tied, axis=-1)


def hf_config(config: dict) -> dac.Config:
  net = DACNet(
    encoder_dim=config["encoder_hidden_size"],
    rates=tuple(config["downsampling_ratios"]),
    latent_dim=config["hidden_size"],
    decoder_dim=config["decoder_hidden_size"],
    decoder_rates=tuple(config["upsampling_ratios"]),
  )
  return dac.Config(
    sample_rate_hz=config["sampling_rate"],
    net=net,
    num_codebooks=config["n_codebooks"],
    num_codes=config["codebook_size"],
    code_dim=config["codebook_dim"],
    quantizer_dropout=0.0,
  )


def original_config(config: dict) -> dac.Config:
  net = DACNet(
    encoder_dim=config["encoder_dim"],
    rates=tuple(config["encoder_rates"]),
    decoder_dim=config["decoder_dim"],
    decoder_rates=tuple(config["decoder_rates"]),
  )
  return dac.Config(
    sample_rate_hz=config["sample_rate"],
    net=net,
    num_codebooks=config["n_codebooks"],
    num_codes=config["codebook_size"],
    code_dim=config["codebook_dim"],
    quantizer_dropout=0.0,
  )


def forward(ours: dac.Config, tensors, is_padded: bool):
  """What both layouts share: the outputs by name, the model and its variables.

  transformers' model itself does not fill up the audio, the authors' does.
  """
  model, x = ours.build(), btc(tensors["in/audio"])
  like = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = dac.WEIGHTS.to_ours(authors_state(tensors), like)
  theirs = jnp.asarray(tensors["out/codes"].transpose(0, 2, 1), jnp.int32)

  def run(model, x):
    z = model.latents(x) if is_padded else model.encoder(x)
    quantized = model.quantizer(z, train=True)
    one = model.quantizer(z, num_levels=1)
    codes = model.quantizer.ids_to_codes(theirs)
    audio = model.decode(Tokens.from_ids(theirs, ours.num_codes))
    return z, quantized, one, codes, audio, model(x)

  (z, quantized, one, codes, audio, output), found = compiled(
    lambda v: model.apply(v, x, method=run, capture_intermediates=True)
  )(variables)
  levels = [f"levels_{q}" for q in range(ours.num_codebooks)]
  inside = found["intermediates"]["quantizer"]
  inside = [np.asarray(inside[q]["project_in"]["__call__"][0]) for q in levels]
  books = variables["params"]["quantizer"]
  tied = tied_by_angle(inside, [books[q]["quantizer"]["codes"] for q in levels])
  out = {
    "out/encoder": bct(z),
    "out/latents": bct(np.concatenate(inside, axis=-1)),
    "out/codes": Ids(bct(quantized.ids), bct(tied)),
    "out/quantized": bct(quantized.values),
    "out/quantized_first_codebook_only": bct(one.values),
    "out/quantized_1_codebook": bct(one.values),
    "out/quantized_from_codes": bct(codes),
  }
  losses = {name: loss * len(levels) for name, loss in quantized.losses.items()}
  whole = of_length(output.reconstruction, audio.shape[1])
  if np.array_equal(output.tokens.ids, theirs):
    length = min(x.shape[1], audio.shape[1])
    np.testing.assert_allclose(whole[:, :length], audio[:, :length], atol=1e-4)
  return out, losses, audio, model, variables


def compare_hf(config, tensors):
  out, losses, audio, _, _ = forward(hf_config(config), tensors, False)
  batch = len(tensors["in/audio"])
  return {
    **out,
    "out/audio": np.asarray(audio)[:, : tensors["in/audio"].shape[2], 0],
    "out/commitment_loss": np.full(batch, losses["commitment"]),
    "out/codebook_loss": np.full(batch, losses["codebook"]),
  }


def compare_original(config, tensors):
  ours = original_config(config)
  out, losses, audio, model, variables = forward(ours, tensors, True)
  cotangent = btc(tensors["in/quantizer_cotangent"])
  z = btc(tensors["out/encoder"])

  def objective(params, z):
    quantized = model.apply(
      {"params": params}, z, train=True, method=lambda m, *a, **k: m.quantizer(*a, **k)
    )
    named = {k: v * ours.num_codebooks for k, v in quantized.losses.items()}
    value = 0.01 * jnp.sum(quantized.values * cotangent)
    return value + 0.25 * named["commitment"] + named["codebook"]

  grads, grad_z = compiled(jax.grad(objective, argnums=(0, 1)))(variables["params"], z)
  padded = btc(tensors["in/audio"])
  padded = np.pad(padded, ((0, 0), (0, -padded.shape[1] % ours.hop), (0, 0)))
  return {
    **out,
    "out/audio": bct(audio),
    "out/audio_padded": bct(padded),
    "out/train_commitment_loss": losses["commitment"],
    "out/train_codebook_loss": losses["codebook"],
    "grad/quantizer_input": bct(grad_z),
    **normed_gradients(dac.WEIGHTS, {"params": grads}, tensors),
  }


def normed_gradients(table, grads, tensors) -> dict[str, np.ndarray]:
  """Gradients of the file's parameters; of the two parts of weight norm by the chain rule."""
  ours = table.to_authors(grads)
  out = {}
  for name in tensors:
    key = name.removeprefix("grad/")
    if not name.startswith("grad/") or f"param/{key}" not in tensors:
      continue
    stem, _, part = key.rpartition(".weight_")
    if part not in ("g", "v"):
      out[name] = ours[key]
      continue
    g, v = (jnp.asarray(tensors[f"param/{stem}.weight_{x}"]) for x in "gv")

    def weight(g, v):
      return v * (g / jnp.sqrt(jnp.sum(v * v, axis=(1, 2), keepdims=True)))

    of_g, of_v = jax.vjp(weight, g, v)[1](jnp.asarray(ours[f"{stem}.weight"]))
    out[name] = np.asarray(of_g if part == "g" else of_v)
  return out


COMPARISONS = {
  "dac-hf-24khz": Comparison(compare_hf),
  "dac-original": Comparison(compare_original),
}
