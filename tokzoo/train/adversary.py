"""The second player of a reconstruction loss: a discriminator and what it is played by.

Its parameters are `params/discriminator`; its running statistics and the averages of LeCam
are a collection of their own, `discriminator`.
"""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.errors import TokzooError
from tokzoo.losses import adversarial
from tokzoo.nn.discriminator import Discriminator


@dataclasses.dataclass(frozen=True)
class LeCam:
  """LeCam regularisation of the discriminator (arXiv 2104.03310)."""

  weight: float = 0.05
  """Of the regulariser."""
  decay: float = 0.999
  """Of the running means of the logits, which start at 0."""
  of_means: bool = False
  """Take it of the batch's mean logits (TiTok), not of each logit."""
  is_updated_first: bool = True
  """Update the running means before they are used (Open-MAGVIT2), not after (TiTok)."""
  waits: bool = False
  """Leave the running means at 0 until the adversary starts (TiTok)."""


@dataclasses.dataclass(frozen=True)
class Adversary:
  """A discriminator against the reconstructions."""

  weight: float = 0.1
  """Of the generator's adversarial loss."""
  start_step: int = 0
  """First step at which either side sees the other; the discriminator's optimizer has a
  `start_step` of its own."""
  network: Annotated[Any, tyro.conf.Fixed] = dataclasses.field(
    default_factory=Discriminator
  )
  """A Linen module, images to logits (`nn/discriminator.py`, `nn/blur_discriminator.py`)."""
  generator: Literal["hinge", "non_saturating", "non_saturating_mean"] = "hinge"
  """The generator's loss; `mean`: of the mean logit of each picture (Open-MAGVIT2)."""
  discriminator: Literal["hinge", "non_saturating"] = "hinge"
  """The discriminator's loss."""
  discriminator_weight: float = 1.0
  """Of the discriminator's own loss (0.5 in LlamaGen)."""
  lecam: LeCam | None = None
  """Regulariser of the discriminator; None: none."""
  gradient_penalty: float = 0.0
  """Of R1 (arXiv 1801.04406): the mean over the originals of the squared norm of the gradient
  of a picture's logits by its pixels, in the discriminator's loss; 0: none."""
  adaptive: str | None = None
  """Path of the decoder's last kernel ("decoder/conv_out/kernel"): `weight` is multiplied
  by the ratio of the norms of its gradients under the other losses and under this one
  (taming-transformers); None: it is not."""


def start(
  adversary: Adversary, rng: PRNGKeyArray, image: Float[Array, "B H W C"]
) -> tuple[Any, dict[str, Any]]:
  """The discriminator's parameters, and its collection (empty where it keeps nothing)."""
  params = dict(adversary.network.init(rng, image))
  state: dict[str, Any] = {k: v for k, v in params.items() if k != "params"}
  if adversary.lecam is not None:
    zero = jnp.zeros((), jnp.float32)
    state["lecam"] = {"real": zero, "fake": zero}
  return params["params"], state


@dataclasses.dataclass(frozen=True)
class Verdicts:
  """What a discriminator says of one batch.

  fooling:  the generator's loss, unweighted
  telling:  the discriminator's loss, weighted within
  state:    its new collection
  metrics:  to log
  """

  fooling: Float[Array, ""]
  telling: Float[Array, ""]
  state: dict[str, Any]
  metrics: dict[str, Float[Array, ""]]


def play(
  adversary: Adversary,
  params: Any,
  state: dict[str, Any],
  image: Float[Array, "B H W C"],
  reconstruction: Float[Array, "B H W C"],
) -> Verdicts:
  """Both sides' losses. Gradients of either pass to the reconstruction and to `params`; the
  trainer takes of each player its own.

  Both are of the same parameters, as in Open-MAGVIT2, whose discriminator reads the pictures of
  the generator before its step; IBQ's steps first, and its generator looks at the new one.

  Args:
    adversary: the settings.
    params: of the discriminator.
    state: its collection.
    image: originals, in the dtype of the computation.
    reconstruction: what the tokenizer made of them.

  Raises:
    TokzooError: a gradient penalty of a discriminator that keeps running statistics.
  """
  kept = {name: value for name, value in state.items() if name != "lecam"}

  def judge(shown: Array) -> Array:
    nonlocal kept
    variables = {"params": params, **kept}
    shown = shown.astype(image.dtype)
    if not kept:
      return jnp.asarray(adversary.network.apply(variables, shown))
    logits, updated = adversary.network.apply(variables, shown, mutable=list(kept))
    kept = jax.lax.stop_gradient(dict(updated))
    return jnp.asarray(logits)

  # Running statistics see the generator's look first, then the discriminator's two.
  fooling = fool(adversary, judge(reconstruction))
  real = judge(image)
  fake = judge(jax.lax.stop_gradient(reconstruction))
  if adversary.discriminator == "hinge":
    telling = adversarial.hinge_discriminator(real, fake)
  else:
    telling = adversarial.non_saturating_discriminator(real, fake)
  metrics = {"adversarial": fooling, "discriminator": telling}
  new = {**kept}
  if adversary.lecam is not None:
    metrics["lecam"], new["lecam"] = _regularise(
      adversary.lecam, state["lecam"], real, fake
    )
    telling = telling + adversary.lecam.weight * metrics["lecam"]
  if adversary.gradient_penalty:
    if kept:
      raise TokzooError(
        f"the gradient penalty is of each picture alone, but {type(adversary.network).__name__} "
        "normalises by the batch: choose a discriminator without running statistics."
      )
    metrics["gradient_penalty"] = adversarial.gradient_penalty(judge, image)
    telling = telling + adversary.gradient_penalty * metrics["gradient_penalty"]
  return Verdicts(fooling, adversary.discriminator_weight * telling, new, metrics)


def fool(adversary: Adversary, logits: Array) -> Float[Array, ""]:
  """The generator's loss, of the logits of its pictures."""
  match adversary.generator:
    case "hinge":
      return adversarial.hinge_generator(logits)
    case "non_saturating":
      return adversarial.non_saturating_generator(logits)
    case "non_saturating_mean":
      each = logits.astype(jnp.float32).reshape(logits.shape[0], -1).mean(1)
      return adversarial.non_saturating_generator(each)


def frozen(adversary: Adversary, params: Any, state: dict[str, Any]):
  """The generator's loss as a function of pictures alone, for `adaptive`: nothing is kept."""
  variables = {"params": params, **{k: v for k, v in state.items() if k != "lecam"}}
  mutable = [name for name in variables if name != "params"]

  def loss(shown: Float[Array, "B H W C"]) -> Float[Array, ""]:
    logits, _ = adversary.network.apply(variables, shown, mutable=mutable)
    return fool(adversary, jnp.asarray(logits))

  return loss


def started(adversary: Adversary, step: Int[Array, ""]) -> Float[Array, ""]:
  """1 from the adversary's first step on, 0 before."""
  return (step >= adversary.start_step).astype(jnp.float32)


def after_step(
  adversary: Adversary,
  step: Int[Array, ""],
  new: dict[str, Any],
  old: dict[str, Any],
) -> dict[str, Any]:
  """The discriminator's collection after a step: LeCam's running means may wait."""
  if adversary.lecam is None or not adversary.lecam.waits:
    return new
  is_on = step >= adversary.start_step
  waiting = {
    name: jnp.where(is_on, mean, old["lecam"][name])
    for name, mean in new["lecam"].items()
  }
  return {**new, "lecam": waiting}


def _regularise(
  lecam: LeCam, averages: dict[str, Array], real: Array, fake: Array
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """The regulariser, and the running means after this batch."""
  real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
  if lecam.of_means:
    real, fake = real.mean(), fake.mean()
  seen = {"real": real.mean(), "fake": fake.mean()}
  after = {
    name: lecam.decay * averages[name]
    + (1 - lecam.decay) * jax.lax.stop_gradient(seen[name])
    for name in averages
  }
  used = after if lecam.is_updated_first else averages
  return adversarial.lecam(real, fake, used["real"], used["fake"]), after
