"""FlexTok from latents on: registers, FSQ, velocities, guidance, samples, gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, compiled
from tests.parity.instella_t2i import authors_state, gradients
from tests.parity.maskgit_vqgan import channels_first
from tokzoo.nn.flow_matching import adaptive_projected, noised
from tokzoo.nn.prefix import prefix_mask
from tokzoo.tokenizers.image.flextok import WEIGHTS, Config, Size


def make_config(config: dict) -> Config:
  # Without an autoencoder the latents are what the model calls an image.
  return Config(
    image_size=config["H"],
    channels=config["cin"],
    vae=None,
    patch=config["p"],
    num_tokens=config["K"],
    levels=tuple(config["levels"]),
    encoder=Size(config["edim"], config["edepth"]),
    decoder=Size(config["ddim"], config["ddepth"]),
    head_dim=config["hd"],
    time_features=config["freq"],
    max_time=config["max_timestep"],
    max_period=config["max_period"],
  )


def compare_flextok(config, tensors):
  module = make_config(config).build()
  latents, noise = (
    jnp.asarray(tensors[f"in/{name}"].transpose(0, 2, 3, 1))
    for name in ("vae_latents", "noise")
  )
  t = jnp.asarray(tensors["in/t"])
  like = jax.eval_shape(module.init, jax.random.key(0), latents)
  variables = WEIGHTS.to_ours(authors_state(tensors), like)
  x_t = noised(latents, noise, t)
  kept = prefix_mask(jnp.asarray(tensors["in/keep_k"], jnp.int32), config["K"])

  @compiled
  def run(variables):
    def parts(m):
      z = m.encoder(latents)
      quantized = m.quantizer(z)
      codes = quantized.values
      half = np.array(config["levels"], np.float32)[None, None] // 2
      bounded = m.quantizer._position(z)[0] - half
      null = jnp.ones(len(latents), bool)
      full = m.velocity(codes, x_t, t)
      some = m.velocity(codes, x_t, t, kept)
      without = m.velocity(codes, x_t, t, None, null)
      plain = m.sample_latents(codes, noise, kept, steps=3, guidance=1.0)
      cfg = m.sample_latents(codes, noise, kept, steps=3, guidance=2.0, guide_by="cfg")
      apg = m.sample_latents(codes, noise, kept, steps=3, guidance=4.0, guide_by="apg")
      guided, _ = adaptive_projected(some, without, 3.0, jnp.zeros_like(some))
      return quantized.ids, {
        "encoder_latents": z,
        "fsq_bounded": bounded,
        "quantized": codes,
        "noised": x_t,
        "velocity_full": full,
        "velocity_keep": some,
        "velocity_null": without,
        "velocity_cfg3": without + 3.0 * (some - without),
        "velocity_apg3": guided,
        "sample_euler3": plain,
        "sample_euler3_cfg2": cfg,
        "sample_euler3_apg4": apg,
      }

    return module.apply(variables, method=parts)

  @compiled
  @jax.value_and_grad
  def loss(variables):
    def error(m):
      codes = m.quantizer(m.encoder(latents), train=True).values
      return jnp.square(m.velocity(codes, x_t, t) - (noise - latents)).mean()

    return module.apply(variables, method=error)

  ids, found = run(variables)
  value, grads = loss(variables)
  bounded = np.asarray(found["fsq_bounded"])
  # Halfway between two levels either one will do.
  tied = np.abs(np.abs(bounded - np.floor(bounded)) - 0.5).min(-1) < 1e-5
  out = {
    f"out/{name}": x if x.ndim == 3 else channels_first(x) for name, x in found.items()
  }
  out |= {"out/indices": Ids(np.asarray(ids), tied), "out/flow_loss": value}
  return out | gradients(WEIGHTS, grads, tensors)


COMPARISONS = {"flextok": Comparison(compare_flextok)}
