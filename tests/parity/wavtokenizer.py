"""WavTokenizer's decoder against the authors' own."""

import jax
import jax.numpy as jnp

from tests.parity.base import Comparison, applied
from tests.parity.encodec import bct, btc
from tests.parity.instella_t2i import authors_state
from tokzoo.nn.seanet import SEANet
from tokzoo.nn.vocos import Vocos
from tokzoo.tokenizers.audio import wavtokenizer


def make_config(config: dict) -> wavtokenizer.Config:
  """The fixture's decoder, behind an encoder of the same hop that is not compared."""
  assert config["padding"] == "same"
  net = SEANet(
    dim=config["input_channels"],
    filters=2,
    ratios=(config["hop_length"],),
    is_causal=False,
  )
  vocos = Vocos(
    dim=config["dim"],
    hidden=config["intermediate_dim"],
    layers=config["num_layers"],
    groups=config["groupnorm_groups"],
    bandwidths=config["adanorm_num_embeddings"],
    n_fft=config["n_fft"],
    hop=config["hop_length"],
  )
  return wavtokenizer.Config(net=net, vocos=vocos, bandwidth_id=config["bandwidth_id"])


def compare_decoder(config, tensors):
  assert list(tensors["in/bandwidth_id"]) == [config["bandwidth_id"]]
  model = make_config(config).build()
  like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 1)))
  kept = {"params": {part: like["params"][part] for part in ("backbone", "head")}}
  variables = wavtokenizer.WEIGHTS.to_ours(authors_state(tensors), kept)
  features = btc(tensors["in/features"])
  audio, found = applied(
    model, variables, features, method="audio", capture_intermediates=True
  )
  inside = found["intermediates"]["backbone"]
  return {
    "out/audio": audio[..., 0],
    "out/backbone": inside["__call__"][0],
    "out/embed": bct(inside["embed"]["__call__"][0]),
    "out/pos_net": bct(inside["pos_net_5"]["__call__"][0]),
  }


COMPARISONS = {"wavtokenizer-decoder": Comparison(compare_decoder)}
