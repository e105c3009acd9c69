"""The task that codecs of sound train with: give back the wave, against discriminators.

The generator's losses are functions of the reconstruction: waveform L1, spectra, the critics'
verdicts and feature maps. They are weighed and added, or balanced by their gradients (EnCodec);
the quantizer's losses and the distillation of a teacher are added with their weights outside.

The critics' parameters are `params/discriminator`, what they keep (spectral norm) the collection
`discriminator`, the balancer's averages the collection `task`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.contract import Batch, Losses, Output, Variables
from tokzoo.errors import TokzooError
from tokzoo.losses import adversarial, balancer, distillation, feature_matching
from tokzoo.losses.spectral import MelLoss, STFTLoss
from tokzoo.metrics import SISNR, Mean, mel_distance
from tokzoo.nn.sound_critics import Verdict, called
from tokzoo.nn.spectra import Mel
from tokzoo.train.state import variables_of_model
from tokzoo.train.tasks import usage

Verdicts = list[Verdict]


@dataclasses.dataclass(frozen=True)
class SoundAdversary:
  """Critics against the reconstructions."""

  network: Annotated[Any, tyro.conf.Fixed]
  """A module of `tokzoo/nn/sound_critics`."""
  weight: float = 1.0
  """Of the generator's adversarial loss."""
  feature_weight: float = 1.0
  """Of feature matching."""
  loss: Literal["least_squares", "hinge"] = "least_squares"
  """LSGAN, or the hinge of EnCodec on both sides."""
  over: Literal["sum", "mean", "kinds"] = "sum"
  """How the critics' losses are joined; kinds: the mean of each kind, added (WavTokenizer, where it
  holds of the plain distance of maps as well)."""
  features: Literal["relative", "absolute"] = "absolute"
  """EnCodec's relative distance of maps, or the plain one."""
  feature_factor: float = 1.0
  """Of the plain distance: 2 in HiFi-GAN and SpeechTokenizer."""
  skips_logits: bool = False
  """Leave the last map of each critic out (DAC, where it is the logits)."""
  start_step: int = 0
  """First step at which either side sees the other; the discriminator's optimizer has a
  `start_step` of its own."""
  share: float = 1.0
  """Of the steps at which the critics learn, drawn at random (EnCodec: 2/3)."""


@dataclasses.dataclass(frozen=True)
class Distillation:
  """A teacher for the codec's feature "semantic"."""

  weight: float = 120.0
  """Of the loss."""
  teachers: tuple[str, ...] = ("teacher",)
  """Names in the batch: float32[B, M, D] each, a frame for about a token."""
  shares: tuple[float, ...] | None = None
  """Of several teachers; None: alike."""
  axis: Literal["d", "t"] = "d"
  """Cosines along time for each dimension, or along dimensions for each frame with L1."""
  similarity: float = 1.0
  """Weight of the cosines beside L1 (the authors' lambda_sim), on the axis t."""


@dataclasses.dataclass(frozen=True)
class SoundReconstruction:
  """Trains a codec to give back sound. Batches hold `audio` float32[B, T, C] in [-1, 1]."""

  model: Any
  """Config of the codec; its `build()` makes the module."""
  l1: float = 1.0
  """Weight of the mean absolute difference of waves."""
  mel: MelLoss | None = None
  """Distance of mel spectra; None: none."""
  mel_weight: float = 1.0
  """Of it."""
  stft: STFTLoss | None = None
  """Multi-resolution STFT; None: none."""
  stft_weight: float = 1.0
  """Of it."""
  weights: dict[str, float] = dataclasses.field(default_factory=dict)
  """Weight of each of the codec's named losses; those not named are only logged."""
  adversary: SoundAdversary | None = None
  """Critics; None: no second player."""
  balance: float | None = None
  """Decay of EnCodec's balancer over l1, mel, stft and the critics' losses; None: plain sums."""
  distillation: Distillation | None = None
  """Of a teacher's features; None: none."""

  def __post_init__(self):
    late = self.adversary is not None and self.adversary.start_step > 0
    if self.balance is not None and late:
      raise TokzooError(
        "a balancer averages the norms of gradients from the first step on, so critics that "
        "start later would count for too much: set adversary.start_step to 0, or balance to None."
      )

  @property
  def players(self) -> Mapping[str, str]:
    if self.adversary is None:
      return {"model": ".*"}
    return {"discriminator": "discriminator/", "model": ".*"}

  def init(self, rng: PRNGKeyArray, batch: Batch) -> Variables:
    model_rng, critic_rng = jax.random.split(rng)
    audio = batch["audio"]
    variables = dict(self.model.build().init(_streams(model_rng), audio))
    if self.adversary is not None:
      found = dict(self.adversary.network.init(critic_rng, audio))
      params = found.pop("params")
      variables["params"] = {**variables["params"], "discriminator": params}
      if found:
        variables["discriminator"] = found
    if self.balance is not None:
      variables["task"] = {"balancer": balancer.first_state(self._weights())}
    return variables

  def losses(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray, step: Int[Array, ""]
  ) -> Losses:
    audio = batch["audio"]
    output, updates = self._apply(variables, audio, rng, train=True)
    shown = output.reconstruction
    metrics = dict(output.losses)
    outside = self._outside(output, batch, metrics)
    condition = output.features.get("condition")
    critic = None
    if self.adversary is not None:
      critic = _Critic(self.adversary, variables, condition)
    real = None if critic is None else critic.judge(audio)
    is_on = jnp.ones((), jnp.float32)
    if self.adversary is not None:
      is_on = (step >= self.adversary.start_step).astype(jnp.float32)

    def felt(shown: Array) -> dict[str, Array]:
      losses = self._felt(audio, shown)
      if critic is not None and real is not None:
        fooling, features = critic.fool(real, critic.judge(shown))
        losses |= {"adversarial": is_on * fooling, "features": is_on * features}
      return losses

    if self.balance is None:
      losses = felt(shown)
      inside = _weighed(losses, self._weights())
    else:
      losses, inside, state, norms = self._balanced(variables, felt, shown)
      updates["task"] = {"balancer": state}
      metrics |= {f"norm_{name}": norm for name, norm in norms.items()}
    metrics |= losses
    total = inside + outside
    if critic is None:
      return Losses({"model": total}, metrics, updates)
    telling = critic.tell(
      critic.learn(audio), critic.judge(jax.lax.stop_gradient(shown))
    )
    metrics["discriminator"] = telling
    if critic.kept:
      updates["discriminator"] = critic.kept
    turns = {}
    if critic.adversary.share < 1.0:
      draw = jax.random.uniform(jax.random.fold_in(rng, 1))
      turns["discriminator"] = draw < critic.adversary.share
    players = {"model": total, "discriminator": is_on * telling}
    return Losses(players, metrics, updates, turns)

  def evaluate(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Any]:
    audio, valid = batch["audio"], batch.get("valid")
    output, _ = self._apply(variables, audio, rng, train=False)
    shown = jnp.clip(output.reconstruction, -1, 1)
    distance = mel_distance(audio, shown, self.model.sample_rate_hz)
    return {
      "si_snr_db": SISNR.from_batch(audio, shown, valid),
      "mel_distance": Mean.from_batch(distance, valid),
    } | usage(output.tokens, valid)

  def pictures(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Float[Array, "B H W C"]]:
    audio = batch["audio"]
    output, _ = self._apply(variables, audio, rng, train=False)
    shown = jnp.clip(output.reconstruction, -1, 1)
    size = 512
    while size >= audio.shape[1]:
      size //= 2
    mel = Mel(size, size // 4, 64)

    def picture(wave: Array) -> Array:
      # log10 magnitudes from -5 (black) to 1 (white), high notes at the top.
      grey = (mel(wave[..., :1], self.model.sample_rate_hz) + 2.0) / 3.0
      return jnp.clip(grey.swapaxes(1, 2)[:, ::-1, :, None], -1, 1)

    pair = [picture(audio), picture(shown)]
    return {"mel_original_over_reconstruction": jnp.concatenate(pair, 1)}

  def _weights(self) -> dict[str, float]:
    """Of the losses on the reconstruction."""
    weights = {"l1": self.l1}
    if self.mel is not None:
      weights["mel"] = self.mel_weight
    if self.stft is not None:
      weights["stft"] = self.stft_weight
    if self.adversary is not None:
      weights["adversarial"] = self.adversary.weight
      weights["features"] = self.adversary.feature_weight
    return weights

  def _felt(self, audio: Array, shown: Array) -> dict[str, Array]:
    """The losses that need no critic, unweighted."""
    x, y = audio.astype(jnp.float32), shown.astype(jnp.float32)
    losses = {"l1": jnp.abs(x - y).mean()}
    if self.mel is not None:
      losses["mel"] = self.mel(x, y)
    if self.stft is not None:
      losses["stft"] = self.stft(x, y)
    return losses

  def _outside(
    self, output: Output, batch: Batch, metrics: dict[str, Array]
  ) -> Float[Array, ""]:
    """The weighted losses that are not of the reconstruction; a teacher's goes to `metrics`."""
    total = jnp.zeros((), jnp.float32)
    if unknown := set(self.weights) - set(metrics):
      raise TokzooError(
        f"the recipe weighs a loss {min(unknown)!r}, but this codec has "
        f"{', '.join(sorted(metrics)) or 'none'}: correct the name under weights."
      )
    for name, weight in self.weights.items():
      total = total + weight * metrics[name]
    if self.distillation is None:
      return total
    how = self.distillation
    missing = [name for name in how.teachers if name not in batch]
    if missing or "semantic" not in output.features:
      lacks = (
        f"the data has no {missing[0]!r}" if missing else "the codec has no feature"
      )
      raise TokzooError(
        f"{lacks} to distil: give batches with teachers ({', '.join(how.teachers)}) and a codec "
        "with the feature 'semantic'."
      )
    feature = output.features["semantic"]
    teachers = [batch[name] for name in how.teachers]
    if how.axis == "d":
      metrics["distillation"] = distillation.combined(feature, teachers, how.shares)
    else:
      shares = how.shares or (1.0 / len(teachers),) * len(teachers)
      each = [distillation.t_axis(feature, x, how.similarity) for x in teachers]
      metrics["distillation"] = _added(
        [s * x for s, x in zip(shares, each, strict=True)]
      )
    return total + how.weight * metrics["distillation"]

  def _balanced(
    self,
    variables: Variables,
    felt: Callable[[Array], dict[str, Array]],
    shown: Array,
  ):
    """Losses, the scalar whose gradient is the balanced one, the new averages, the norms."""
    assert self.balance is not None
    fixed = jax.lax.stop_gradient(shown)
    losses, pull = jax.vjp(felt, fixed)
    zeros = jax.tree.map(jnp.zeros_like, losses)
    gradients = {
      name: pull({**zeros, name: jnp.ones_like(value)})[0]
      for name, value in losses.items()
    }
    sent, state, norms = balancer.balance(
      gradients, self._weights(), variables["task"]["balancer"], self.balance
    )
    return losses, balancer.sent_back(shown, sent), state, norms

  def _apply(
    self, variables: Variables, audio: Array, rng: PRNGKeyArray, train: bool
  ) -> tuple[Output, dict[str, Any]]:
    """The codec on a batch, and the new values of its mutable collections."""
    module = self.model.build()
    inputs = variables_of_model(variables)
    if not train:
      return module.apply(inputs, audio), {}
    mutable = [name for name in inputs if name != "params"]
    output, updates = module.apply(
      inputs, audio, train=True, rngs=_streams(rng), mutable=mutable
    )
    return output, dict(updates)


class _Critic:
  """The critics in one step; the codec's feature "condition" is told to those that know of one.

  kept:  their collection; the power iteration of a spectral norm moves once a step, where torch
         moves it at every look
  """

  def __init__(
    self, adversary: SoundAdversary, variables: Variables, condition: Array | None
  ):
    self.adversary = adversary
    self._condition = condition
    self._params = variables["params"]["discriminator"]
    self.kept = dict(variables.get("discriminator", {}))

  def judge(self, wave: Array) -> Verdicts:
    variables = {"params": self._params, **self.kept}
    return self._apply(variables, wave)

  def learn(self, wave: Array) -> Verdicts:
    """As `judge`; what they keep moves."""
    if not self.kept:
      return self.judge(wave)
    variables = {"params": self._params, **self.kept}
    found, new = self._apply(variables, wave, mutable=list(self.kept))
    self.kept = jax.lax.stop_gradient(dict(new))
    return found

  def tell(self, real: Verdicts, fake: Verdicts) -> Float[Array, ""]:
    """The critics' loss."""
    is_hinge = self.adversary.loss == "hinge"
    loss = (
      adversarial.margin_discriminator
      if is_hinge
      else adversarial.least_squares_discriminator
    )
    pairs = zip(real, fake, strict=True)
    return self._joined(real, [loss(r.logits, f.logits) for r, f in pairs])

  def fool(
    self, real: Verdicts, fake: Verdicts
  ) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The generator's adversarial loss, and its distance of feature maps."""
    is_hinge = self.adversary.loss == "hinge"
    loss = (
      adversarial.margin_generator if is_hinge else adversarial.least_squares_generator
    )
    fooling = self._joined(fake, [loss(verdict.logits) for verdict in fake])
    end = -1 if self.adversary.skips_logits else None
    reals, fakes = ([verdict.maps[:end] for verdict in side] for side in (real, fake))
    if self.adversary.features == "relative":
      return fooling, feature_matching.relative(reals, fakes)
    factor = self.adversary.feature_factor
    if self.adversary.over == "kinds":
      each = [
        feature_matching.absolute([r], [f], factor)
        for r, f in zip(reals, fakes, strict=True)
      ]
      return fooling, self._joined(fake, each)
    return fooling, feature_matching.absolute(reals, fakes, factor)

  def _joined(self, verdicts: Verdicts, losses: list[Array]) -> Float[Array, ""]:
    match self.adversary.over:
      case "sum":
        return _added(losses)
      case "mean":
        return _added(losses) / len(losses)
    kinds = [verdict.kind for verdict in verdicts]
    alike = {kind: kinds.count(kind) for kind in kinds}
    pairs = zip(kinds, losses, strict=True)
    return _added([loss / alike[kind] for kind, loss in pairs])

  def _apply(self, variables: Variables, wave: Array, **options: Any) -> Any:
    network = self.adversary.network
    return network.apply(variables, wave, self._condition, method=called, **options)


def _streams(rng: PRNGKeyArray) -> dict[str, PRNGKeyArray]:
  """Named streams of one key: each layer folds its own path in."""
  names = ("params", "bits", "codebook", "dropout", "quantizer", "noise")
  return dict.fromkeys(names, rng)


def _weighed(losses: Mapping[str, Array], weights: Mapping[str, float]) -> Array:
  return _added([weights[name] * value for name, value in losses.items()])


def _added(values: list[Array]) -> Array:
  return sum(values[1:], values[0])
