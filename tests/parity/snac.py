"""SNAC against the authors' own, with and without attention."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, compiled
from tests.parity.dac import tied_by_angle
from tests.parity.encodec import bct, btc
from tests.parity.instella_t2i import authors_state
from tokzoo.nn.dac import DACNet
from tokzoo.tokenizers.audio import snac


def make_config(config: dict) -> snac.Config:
  net = DACNet(
    encoder_dim=config["encoder_dim"],
    rates=tuple(config["encoder_rates"]),
    decoder_dim=config["decoder_dim"],
    decoder_rates=tuple(config["decoder_rates"]),
    output_padding=True,
    is_snac=True,
    is_depthwise=config["depthwise"],
    has_noise=config["noise"],
    attention_window=config["attn_window_size"],
  )
  return snac.Config(
    sample_rate_hz=config["sampling_rate"],
    net=net,
    strides=tuple(config["vq_strides"]),
    num_codes=config["codebook_size"],
    code_dim=config["codebook_dim"],
  )


def compare_snac(config, tensors):
  ours = make_config(config)
  model, x = ours.build(), btc(tensors["in/audio"])
  like = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = snac.WEIGHTS.to_ours(authors_state(tensors), like)
  books = range(len(ours.strides))
  theirs = [jnp.asarray(tensors[f"out/codes_{q}"], jnp.int32) for q in books]

  def run(model, x):
    z = model.latents(x)
    quantized, ids = model.quantizer(z)
    tokens = model._tokens(theirs)
    return z, quantized.values, ids, model.decode(tokens), model.encode(x)

  (z, values, ids, audio, tokens), found = compiled(
    lambda v: model.apply(v, x, method=run, capture_intermediates=True)
  )(variables)
  inside = found["intermediates"]["quantizer"]
  codes = variables["params"]["quantizer"]
  ties, spread = [], np.zeros(z.shape[:2], bool)
  for q, stride in enumerate(ours.strides):
    near = inside[f"levels_{q}"]["project_in"]["__call__"][0]
    tied = tied_by_angle([near], [codes[f"levels_{q}"]["quantizer"]["codes"]])[..., 0]
    tied = tied | spread[:, ::stride]
    spread = spread | np.repeat(tied, stride, axis=1)
    ties.append(tied)
  # The tokens' own order holds the same ids.
  for own, book in zip(ids, model.bind(variables).by_codebook(tokens.ids), strict=True):
    np.testing.assert_array_equal(own, book)
  padded = np.pad(np.asarray(x), ((0, 0), (0, -x.shape[1] % ours.multiple), (0, 0)))
  return {
    "out/audio": bct(audio),
    "out/audio_padded": bct(padded),
    "out/encoder": bct(z),
    "out/quantized": bct(values),
    **{f"out/codes_{q}": Ids(np.asarray(ids[q]), ties[q]) for q in books},
  }


COMPARISONS = {
  "snac": Comparison(compare_snac),
  "snac-attn": Comparison(compare_snac),
}
