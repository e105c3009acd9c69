"""The MS-STFT discriminator of EnCodec, SpeechTokenizer and DM-Codec: maps, logits, losses."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, compiled
from tests.parity.instella_t2i import authors_state
from tokzoo.losses import adversarial, feature_matching
from tokzoo.nn.sound_critics import MSSTFT, msstft_weights


def channels_first(x) -> np.ndarray:
  """[B, frames, bins, D] to the authors' [B, D, frames, bins]."""
  return np.asarray(x).transpose(0, 3, 1, 2)


def compare_msstft(config, tensors):
  module = MSSTFT(
    n_ffts=tuple(config["n_ffts"]),
    hops=tuple(config["hop_lengths"]),
    width=config["filters"],
    dilations=tuple(config["dilations"]),
  )
  assert config["n_ffts"] == config["win_lengths"] and config["filters_scale"] == 1
  waves = {
    k: jnp.asarray(tensors[f"in/{k}"].transpose(0, 2, 1)) for k in ("real", "fake")
  }
  like = jax.eval_shape(module.init, jax.random.key(0), waves["real"])
  variables = msstft_weights().to_ours(authors_state(tensors), like)

  def run(variables, real, fake):
    heard = module.apply(variables, real)

    def fooling(fake):
      seen = module.apply(variables, fake)
      adv = sum(adversarial.least_squares_generator(v.logits) for v in seen)
      feature = feature_matching.absolute(
        [v.maps for v in heard], [v.maps for v in seen], 2.0
      )
      return adv + feature, (seen, adv, feature)

    (_, (seen, adv, feature)), gradient = jax.value_and_grad(fooling, has_aux=True)(
      fake
    )
    telling = sum(
      adversarial.least_squares_discriminator(r.logits, f.logits)
      for r, f in zip(heard, seen, strict=True)
    )
    return heard, seen, adv, feature, telling, gradient

  heard, seen, adv, feature, telling, gradient = compiled(run)(variables, **waves)
  found = {
    "out/adv_loss": np.asarray(adv),
    "out/disc_loss": np.asarray(telling),
    "out/feature_loss": np.asarray(feature),
    "grad/fake": np.asarray(gradient).transpose(0, 2, 1),
  }
  for s, (real, fake) in enumerate(zip(heard, seen, strict=True)):
    found[f"out/logits_real_{s}"] = channels_first(real.logits)
    found[f"out/logits_fake_{s}"] = channels_first(fake.logits)
    for i, one in enumerate(real.maps):
      found[f"out/fmap_real_{s}_{i}"] = channels_first(one)
  return found


COMPARISONS = {"dm-codec-msstft-disc": Comparison(compare_msstft)}
