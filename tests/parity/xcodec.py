"""X-Codec against transformers' XcodecModel."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, compiled
from tests.parity.encodec import bct, btc, tied_by
from tests.parity.instella_t2i import authors_state
from tokzoo.nn.dac import DACNet
from tokzoo.nn.hubert import HuBERT
from tokzoo.tokenizers.audio import xcodec
from tokzoo.tokens import Tokens


def make_config(config: dict) -> xcodec.Config:
  assert set(config["strides"]) == {1}
  acoustic, semantic = config["acoustic"], config["semantic"]
  assert semantic["feat_extract_norm"] == "group"
  assert not semantic["do_stable_layer_norm"]
  net = DACNet(
    encoder_dim=acoustic["encoder_hidden_size"],
    rates=tuple(acoustic["downsampling_ratios"]),
    latent_dim=acoustic["hidden_size"],
    decoder_dim=acoustic["decoder_hidden_size"],
    decoder_rates=tuple(acoustic["upsampling_ratios"]),
    has_tanh=False,
    output_padding=True,
  )
  teacher = HuBERT(
    dim=semantic["hidden_size"],
    layers=semantic["num_hidden_layers"],
    heads=semantic["num_attention_heads"],
    hidden=semantic["intermediate_size"],
    conv_dims=tuple(semantic["conv_dim"]),
    conv_strides=tuple(semantic["conv_stride"]),
    conv_kernels=tuple(semantic["conv_kernel"]),
    position_kernel=semantic["num_conv_pos_embeddings"],
    position_groups=semantic["num_conv_pos_embedding_groups"],
  )
  rates = tuple(config["target_bandwidths"])
  bits = np.ceil(np.log2(config["codebook_size"]))
  frames = np.ceil(config["sample_rate"] / net.hop)
  ours = xcodec.Config(
    sample_rate_hz=config["sample_rate"],
    net=net,
    semantic=teacher,
    channel_ratios=tuple(config["channel_ratios"]),
    dilations=tuple(config["block_dilations"]),
    kernel=config["kernel_size"],
    unit_kernel=config["unit_kernel_size"],
    num_codebooks=int(1000 * rates[-1] // (frames * bits)),
    num_codes=config["codebook_size"],
    bandwidths_kbps=rates,
  )
  assert config["codebook_dim"] == ours.dim
  return ours


def compare_xcodec(config, tensors):
  ours = make_config(config)
  model, x = ours.build(), btc(tensors["in/audio"])
  like = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = xcodec.WEIGHTS.to_ours(authors_state(tensors), like)
  used = ours.rates_kbps[config["bandwidth"]]
  theirs = jnp.asarray(tensors["out/codes"].transpose(0, 2, 1), jnp.int32)

  def run(model, x):
    z, _ = model.latents(x)
    ids = model.quantizer(z, num_levels=used).ids
    return z, ids, model.decode(Tokens.from_ids(theirs, ours.num_codes))

  z, ids, audio = compiled(lambda v: model.apply(v, x, method=run))(variables)
  books = variables["codebook"]["quantizer"]
  levels = [books[f"levels_{q}"]["codes"] for q in range(used)]
  return {
    "out/embeddings_before_rvq": bct(z),
    "out/codes": Ids(bct(ids), bct(tied_by(z, levels, ids))),
    "out/audio": bct(audio[:, : x.shape[1]]),
  }


COMPARISONS = {"xcodec": Comparison(compare_xcodec)}
