"""SpeechTokenizer and DM-Codec against the authors' own, one step of training included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.base import Comparison, Ids, compiled
from tests.parity.encodec import bct, btc, tied_by
from tests.parity.instella_t2i import authors_state
from tokzoo.nn.seanet import SEANet
from tokzoo.tokenizers.audio import dm_codec, speechtokenizer


def make_config(module, config: dict):
  net = SEANet(
    dim=config["dimension"],
    filters=config["n_filters"],
    ratios=tuple(config["strides"]),
    residual_layers=config["n_residual_layers"],
    residual_kernel=config["residual_kernel_size"],
    dilation_base=config["dilation_base"],
    lstm_layers=config["lstm_layers"],
    is_causal=False,
    is_bidirectional=config["bidirectional"],
    activation={"ELU": "elu", "Snake": "snake"}[config["activation"]],
  )
  return module.Config(
    sample_rate_hz=config["sample_rate"],
    net=net,
    num_codebooks=config["n_q"],
    num_codes=config["codebook_size"],
    semantic_dim=config["semantic_dimension"],
    reset_below=None,
  )


def cosine(a, b, axis: int):
  dot = jnp.sum(a * b, axis)
  return (
    dot
    / jnp.maximum(jnp.linalg.norm(a, axis=axis), 1e-8)
    / jnp.maximum(jnp.linalg.norm(b, axis=axis), 1e-8)
  )


def d_axis(feature, teacher):
  """-mean log sigmoid of the cosine over time, of each feature."""
  n = min(feature.shape[1], teacher.shape[1])
  return -jax.nn.log_sigmoid(cosine(feature[:, :n], teacher[:, :n], 1)).mean()


def t_axis(feature, teacher):
  """L1, and -mean log sigmoid of the cosine over features, of each frame."""
  n = min(feature.shape[1], teacher.shape[1])
  feature, teacher = feature[:, :n], teacher[:, :n]
  alike = -jax.nn.log_sigmoid(cosine(feature, teacher, 2)).mean()
  return jnp.abs(feature - teacher).mean() + alike


def compare(module, config, tensors):
  ours = make_config(module, config)
  model, x = ours.build(), btc(tensors["in/audio"])
  like = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = module.WEIGHTS.to_ours(authors_state(tensors), like)
  theirs = jnp.asarray(tensors["out/codes"].transpose(1, 2, 0), jnp.int32)
  teacher = jnp.asarray(tensors["in/teacher"])
  cotangent = btc(tensors["in/quantizer_cotangent"])
  given = btc(tensors["out/encoder"])

  def run(model, x):
    z = model.encoder(x)
    output = model(x)
    book = np.arange(ours.num_codebooks)
    parts = [
      model.decoder(
        model.quantizer.ids_to_codes(jnp.where(used[None, None], theirs, -1))
      )
      for used in (book >= 0, book < 1, book >= 1)
    ]
    return z, output, model.quantizer(z).values, parts

  z, output, values, parts = compiled(lambda v: model.apply(v, x, method=run))(
    variables
  )

  def objective(z, share):
    quantized, after = model.apply(
      variables,
      z,
      train=True,
      mutable=["codebook"],
      rngs={"codebook": jax.random.key(0)},
      method=lambda m, *a, **k: m.quantizer(*a, **k),
    )
    commit = quantized.losses["commitment"]
    whole = jnp.sum(quantized.values * cotangent)
    total = (
      share * whole + (1 + share * (config["commitment_loss_lambda"] - 1)) * commit
    )
    return total, (commit, quantized.values, after)

  step = compiled(jax.grad(objective, has_aux=True))
  grad, (commit, trained, after) = step(given, 1.0)
  of_commit, _ = step(given, 0.0)
  feature = output.features["semantic"]
  of_feature = compiled(jax.grad(d_axis))(feature, teacher)
  kept = module.WEIGHTS.to_authors({**variables, **after})
  ids = np.asarray(output.tokens.ids)
  books = variables["codebook"]["quantizer"]
  levels = [books[f"levels_{q}"]["codes"] for q in range(ours.num_codebooks)]

  def qbl(x):
    return np.asarray(x).transpose(2, 0, 1)

  return {
    "out/encoder": bct(z),
    "out/codes": Ids(qbl(ids), qbl(tied_by(z, levels, ids))),
    "out/quantized": bct(values),
    "out/audio": bct(parts[0]),
    "out/audio_first_codebook": bct(parts[1]),
    "out/audio_codebooks_1_to_end": bct(parts[2]),
    "out/semantic_feature": np.asarray(feature),
    "out/distill_d_axis": d_axis(feature, teacher),
    "out/distill_t_axis": t_axis(feature, teacher),
    "out/train_commit_loss": commit,
    "out/train_quantized": bct(trained),
    "grad/quantizer_input": bct(grad),
    "grad/quantizer_input_of_commit_loss_only": bct(of_commit),
    "grad/semantic_feature_d_axis": of_feature,
    **{n: kept[n.removeprefix("after/")] for n in tensors if n.startswith("after/")},
  }


COMPARISONS = {
  "speechtokenizer": Comparison(functools.partial(compare, speechtokenizer)),
  "dm-codec": Comparison(functools.partial(compare, dm_codec)),
}
