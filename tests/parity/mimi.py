"""Mimi against transformers' MimiModel."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, compiled
from tests.parity.encodec import bct, btc, tied_by
from tests.parity.instella_t2i import authors_state
from tokzoo.nn.seanet import SEANet
from tokzoo.tokenizers.audio import mimi
from tokzoo.tokens import Tokens

PADS = {"constant": "zero", "reflect": "reflect", "replicate": "replicate"}


def make_config(config: dict) -> mimi.Config:
  assert config["num_key_value_heads"] == config["num_attention_heads"]
  assert config["rope_parameters"]["rope_theta"] == 10_000
  assert config["upsample_groups"] == config["hidden_size"]
  assert config["norm_eps"] == 1e-5 and not config["attention_bias"]
  hop = int(np.prod(config["upsampling_ratios"]))
  rate = config["frame_rate"]
  down = 2 if rate is None else round(config["sampling_rate"] / hop / rate)
  net = SEANet(
    dim=config["hidden_size"],
    filters=config["num_filters"],
    ratios=tuple(config["upsampling_ratios"]),
    kernel=config["kernel_size"],
    last_kernel=config["last_kernel_size"],
    residual_kernel=config["residual_kernel_size"],
    dilation_base=config["dilation_growth_rate"],
    compress=config["compress"],
    pad_mode=PADS[config["pad_mode"]],
    trim_right_ratio=config["trim_right_ratio"],
    lstm_layers=0,
    true_skip=not config["use_conv_shortcut"],
  )
  return mimi.Config(
    sample_rate_hz=config["sampling_rate"],
    net=net,
    downsample=down,
    layers=config["num_hidden_layers"],
    heads=config["num_attention_heads"],
    hidden=config["intermediate_size"],
    window=config["sliding_window"],
    num_codebooks=config["num_quantizers"],
    num_semantic=config["num_semantic_quantizers"],
    num_codes=config["codebook_size"],
    code_dim=config["vector_quantization_hidden_dimension"],
  )


def compare_mimi(config, tensors):
  ours = make_config(config)
  model, x = ours.build(), btc(tensors["in/audio"])
  like = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = mimi.weights(ours.heads).to_ours(authors_state(tensors), like)
  theirs = jnp.asarray(tensors["out/codes"].transpose(0, 2, 1), jnp.int32)

  def run(model, x):
    z = model.latents(x)
    two = model.encode(x, num_codebooks=2)
    codes = model.quantizer.ids_to_codes(theirs)
    audio = model.decode(Tokens.from_ids(theirs, ours.num_codes))
    q = model.quantizer
    inside = [q.semantic_in(z), q.acoustic_in(z)] if q.has_projections else [z, z]
    return z, model.encode(x), two, codes, audio, inside

  z, tokens, two, codes, audio, inside = compiled(
    lambda v: model.apply(v, x, method=run)
  )(variables)
  ids, count = np.asarray(tokens.ids), ours.num_semantic
  parts = [("semantic", ids[..., :count]), ("acoustic", ids[..., count:])]
  ties = []
  for latents, (kind, own) in zip(inside, parts, strict=True):
    books = variables["codebook"]["quantizer"][kind]
    levels = [books[f"levels_{q}"]["codes"] for q in range(own.shape[-1])]
    ties.append(tied_by(latents, levels, own))
  tied = bct(np.concatenate(ties, axis=-1))
  return {
    "out/latents": bct(z),
    "out/codes": Ids(bct(ids), tied),
    "out/codes_2q": Ids(bct(two.ids), tied[:, :2]),
    "out/quantized": bct(codes),
    "out/audio": bct(audio),
  }


COMPARISONS = {"mimi": Comparison(compare_mimi)}
