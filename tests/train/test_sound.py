"""The task of codecs: its losses, players, balancer and distillation, on a tiny codec."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.codecs import CAUSAL, RATE, sound
from tests.tokenizers.audio.tiny import CONFIGS, variables_of
from tests.tokenizers.audio.tiny import sound as sample
from tokzoo.errors import TokzooError
from tokzoo.losses import spectral
from tokzoo.nn.seanet import SEANet
from tokzoo.nn.sound_critics import MSSTFT, Critics, MultiPeriod, MultiResolution
from tokzoo.nn.sound_critics.waves import ScaleCritic
from tokzoo.tokenizers.audio.speechtokenizer import Config as Speech
from tokzoo.train.sound import Distillation, SoundAdversary, SoundReconstruction


class ListOf(nn.Module):
  """One sub-discriminator as a network of its own."""

  critic: nn.Module

  @nn.compact
  def __call__(self, wave):
    return [self.critic(wave)]


MODEL = dataclasses.replace(CAUSAL, num_codebooks=2, bandwidths_kbps=(1.6,))
CRITIC = MSSTFT(n_ffts=(32,), width=2, dilations=(1,))
BATCH = {
  "audio": jnp.stack([jnp.asarray(sound(0.25)), jnp.asarray(sound(0.25, seed=1))])
}
PLAIN = SoundReconstruction(
  model=MODEL, mel=spectral.dac(RATE, 2), weights={"commitment": 0.25}
)
GAN = dataclasses.replace(
  PLAIN, adversary=SoundAdversary(CRITIC, weight=0.5, feature_weight=2.0)
)


def first(task, batch=BATCH):
  return jax.jit(task.init)(jax.random.key(0), batch)


def found(task, variables, step=0, batch=BATCH):
  run = jax.jit(lambda v: task.losses(v, batch, jax.random.key(1), jnp.int32(step)))
  return run(variables)


def test_the_generators_loss_is_the_weighted_sum():
  assert set(GAN.players) == {"discriminator", "model"}
  losses = found(GAN, first(GAN))
  m = {name: float(value) for name, value in losses.metrics.items()}
  total = m["l1"] + m["mel"] + 0.25 * m["commitment"]
  total += 0.5 * m["adversarial"] + 2.0 * m["features"]
  assert np.isclose(float(losses.players["model"]), total, rtol=1e-4)
  assert np.isclose(float(losses.players["discriminator"]), m["discriminator"])
  assert set(losses.updates) == {"codebook"} and not losses.turns


def test_a_mean_of_each_kind_and_a_condition_that_the_step_draws():
  """As WavTokenizer: kinds count alike however many critics they have, and know the entry."""
  network = Critics(
    (MultiPeriod((2, 3), (2, 3)), MultiResolution((64,), 2, conditions=4))
  )
  model = CONFIGS["wavtokenizer"]
  batch = {"audio": sample(model, 40 * model.hop)}
  kinds = SoundAdversary(network, over="kinds", loss="hinge")
  task = SoundReconstruction(model=model, adversary=kinds)
  # Codes that are in use: a start from the batch would draw as well.
  variables = first(task, batch)
  variables["codebook"] = variables_of("wavtokenizer")["codebook"]
  key = jax.random.key(1)

  def losses(variables, step_key):
    return task.losses(variables, batch, step_key, jnp.int32(0))

  run = jax.jit(losses)
  metrics = run(variables, key).metrics
  fake, seen = task._apply(variables, batch["audio"], key, train=True)[0], []
  for wave in (batch["audio"], fake.reconstruction):
    given = {"params": variables["params"]["discriminator"]}
    seen.append(network.apply(given, wave, fake.features["condition"]))
  real, fake = seen
  far = [
    sum(jnp.abs(a - b).mean() for a, b in zip(r.maps, f.maps, strict=True))
    for r, f in zip(real, fake, strict=True)
  ]
  expected = (far[0] + far[1]) / 2 + far[2]
  assert np.isclose(metrics["features"], expected, rtol=1e-3)
  fooled = [jax.nn.relu(1 - f.logits).mean() for f in fake]
  expected = (fooled[0] + fooled[1]) / 2 + fooled[2]
  assert np.isclose(metrics["adversarial"], expected, rtol=1e-3)
  # The entries differ once they have learnt: another draw, another verdict and another sound.
  table = variables["params"]["discriminator"]["networks_1"]["resolution_64"]
  table["condition"]["table"] = jnp.arange(8.0).reshape(4, 2)
  scale = variables["params"]["backbone"]["norm"]["scale"]
  variables["params"]["backbone"]["norm"]["scale"] = scale + jnp.arange(2.0)[:, None]
  draws = [run(variables, jax.random.key(i)).metrics for i in range(8)]
  assert len({float(m["l1"]) for m in draws}) == model.vocos.bandwidths
  assert len({float(m["discriminator"]) for m in draws}) == model.vocos.bandwidths
  fixed = dataclasses.replace(task, model=dataclasses.replace(model, draws_entry=False))
  output = fixed._apply(variables, batch["audio"], key, train=True)[0]
  assert not output.features


def test_critics_that_start_later_are_silent_before():
  late = dataclasses.replace(
    GAN, adversary=dataclasses.replace(GAN.adversary, start_step=5, share=0.5)
  )
  variables = first(late)
  before, after = found(late, variables, 4), found(late, variables, 5)
  assert (
    float(before.players["discriminator"]) == 0 == float(before.metrics["features"])
  )
  assert (
    float(after.players["discriminator"]) > 0 and float(after.metrics["features"]) > 0
  )
  assert after.turns["discriminator"].dtype == bool
  with pytest.raises(TokzooError, match="start_step to 0"):
    dataclasses.replace(late, balance=0.9)


def test_each_player_has_a_gradient_and_the_balanced_one_has_its_shares():
  task = dataclasses.replace(GAN, balance=0.9, weights={}, l1=3.0)
  variables = first(task)
  assert set(variables["task"]["balancer"]) == {"l1", "mel", "adversarial", "features"}

  def player(params, name):
    losses = task.losses(
      {**variables, "params": params}, BATCH, jax.random.key(1), jnp.int32(0)
    )
    return losses.players[name], losses

  run = jax.jit(jax.value_and_grad(player, has_aux=True), static_argnums=1)
  (_, losses), gradient = run(variables["params"], "model")
  critic = gradient.pop("discriminator")
  assert not any(np.any(g) for g in jax.tree.leaves(critic))
  assert all(np.any(g) for g in jax.tree.leaves(gradient["decoder"]))
  norms = {n: float(v) for n, v in losses.metrics.items() if n.startswith("norm_")}
  assert len(norms) == 4 and min(norms.values()) > 0
  kept = losses.updates["task"]["balancer"]["l1"]
  assert (
    np.isclose(float(kept["total"]), norms["norm_l1"]) and float(kept["count"]) == 1
  )
  _, gradient = run(variables["params"], "discriminator")
  assert all(np.any(g) for g in jax.tree.leaves(gradient["discriminator"]))
  assert not any(np.any(g) for g in jax.tree.leaves(gradient["decoder"]))


def test_spectral_norms_hold_from_the_first_look():
  """Vectors as they are drawn know nothing of the kernel: a fiftieth of its norm, layer by layer."""
  critic = ScaleCritic((16, 16, 32, 64, 64, 64, 64), 4, "spectral")
  variables = jax.jit(critic.init)(jax.random.key(0), BATCH["audio"])
  assert len(variables["spectral"]) == 8
  for name, vectors in variables["spectral"].items():
    kernel = np.asarray(variables["params"][name]["kernel"])
    matrix = kernel.reshape(-1, kernel.shape[-1]).T
    sigma = vectors["left"] @ matrix @ vectors["right"]
    assert sigma > 0.3 * np.linalg.norm(matrix, 2)


@pytest.mark.slow
def test_what_critics_keep_moves_once_a_step():
  network = Critics((ListOf(ScaleCritic((2,) * 7, 1, "spectral")),))
  task = dataclasses.replace(PLAIN, adversary=SoundAdversary(network, share=1.0))
  variables = first(task)
  losses = found(task, variables)
  old, new = variables["discriminator"], losses.updates["discriminator"]
  assert jax.tree.structure(old) == jax.tree.structure(new)
  pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
  moved = [not np.array_equal(a, b) for a, b in pairs]
  # All but the logits' kernel's, which has one row: the first iteration has found them.
  assert sum(moved) == len(moved) - 2


def test_evaluation_counts_valid_rows_only():
  variables = first(PLAIN)
  valid = jnp.asarray([True, False])
  broken = {"audio": BATCH["audio"].at[1].set(jnp.nan), "valid": valid}
  run = jax.jit(lambda v, b: PLAIN.evaluate(v, b, jax.random.key(0)))
  states = run(variables, broken)
  alone = run(variables, {"audio": BATCH["audio"][:1], "valid": valid[:1]})
  assert np.isclose(
    states["si_snr_db"].compute(), alone["si_snr_db"].compute(), rtol=1e-4
  )
  assert np.isclose(
    states["mel_distance"].compute(), alone["mel_distance"].compute(), rtol=1e-4
  )
  assert 0 < states["codebook"].compute()["usage"] <= 1
  pictures = PLAIN.pictures(variables, BATCH, jax.random.key(0))
  (shown,) = pictures.values()
  assert shown.shape[0] == 2 and shown.shape[1] == 128 and np.abs(shown).max() <= 1


SPEECH = Speech(
  sample_rate_hz=RATE,
  net=SEANet(
    filters=4,
    dim=8,
    ratios=(4, 2),
    lstm_layers=1,
    is_causal=False,
    is_bidirectional=True,
  ),
  num_codebooks=2,
  num_codes=16,
  semantic_dim=5,
)


def test_distillation_adds_its_weighted_loss_or_says_what_lacks():
  task = SoundReconstruction(model=SPEECH, distillation=Distillation(7.0, ("a", "b")))
  draw = np.random.default_rng(0)
  teachers = {
    name: jnp.asarray(draw.normal(size=(2, 51, 5)), jnp.float32) for name in "ab"
  }
  batch = {**BATCH, **teachers}
  losses = found(task, first(task, batch), batch=batch)
  m = {name: float(value) for name, value in losses.metrics.items()}
  assert np.isclose(
    float(losses.players["model"]), m["l1"] + 7 * m["distillation"], rtol=1e-4
  )
  variables, shares = first(task, batch), []
  for weight in (0.0, 1.0, 3.0):
    how = Distillation(7.0, ("a", "b"), axis="t", similarity=weight)
    frames = dataclasses.replace(task, distillation=how)
    made = found(frames, variables, batch=batch).metrics["distillation"]
    shares.append(float(made))
  assert np.isclose(shares[2] - shares[0], 3 * (shares[1] - shares[0]), rtol=1e-4)
  assert shares[1] > shares[0]
  with pytest.raises(TokzooError, match="the data has no 'a'"):
    found(task, first(task, batch))
  other = dataclasses.replace(PLAIN, distillation=Distillation(1.0, ("a",)))
  with pytest.raises(TokzooError, match="the codec has no feature"):
    found(other, first(other), batch=batch)
  wrong = dataclasses.replace(PLAIN, weights={"codebok": 1.0})
  with pytest.raises(TokzooError, match="weighs a loss 'codebok'"):
    found(wrong, first(wrong))
