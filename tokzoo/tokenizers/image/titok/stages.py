"""TiTok's first training stage: predict the codes that MaskGIT's VQGAN gives the image.

Section 3.3 of arXiv 2406.07550 ("proxy codes"), and the first stage of One-D-Piece. The
second stage (`finetune_decoder`: pixels, perceptual and adversarial losses, with encoder and
codebook frozen) and the single stage of the pixel models are recipes of the shared
`Reconstruction` task: see experiments/image/titok.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.contract import Batch, Losses, Quantized, Variables
from tokzoo.metrics import PSNR, BitsPerPixel, CodebookUsage, Mean
from tokzoo.tokenizers.image.titok.model import Config, TiTok


@dataclasses.dataclass(frozen=True)
class ProxyCodes:
  """Trains a TiTok or One-D-Piece on the codes of a frozen VQGAN.

  Loss: cross-entropy of the decoder's logits, mean over places, + sum of weights * the
  quantizer's losses. Start the run from the VQGAN's weights (`init_from`): `adopt` puts its
  codebook and decoder where the tokenizer has its own, and its encoder, which no tokenizer
  needs afterwards, with a copy of the codebook in the collection `teacher`. They stay as they
  are, and give codes in float32 whatever the tokenizer computes in, as the source's do.
  """

  model: Config
  """Config of the tokenizer, with `pixels` and a codebook."""
  weights: dict[str, float] = dataclasses.field(
    default_factory=lambda: {"commitment": 0.25, "codebook": 1.0}
  )
  """Weight of each of the quantizer's losses."""

  @property
  def exact(self) -> tuple[str, ...]:
    return ("image",)  # for the teacher

  @property
  def players(self) -> Mapping[str, str]:
    return {"model": r"(?!pixels/)"}

  def init(self, rng: PRNGKeyArray, batch: Batch) -> Variables:
    params_rng, bits_rng = jax.random.split(rng)
    rngs = {"params": params_rng, "bits": bits_rng}
    variables = self.model.build().init(rngs, batch["image"], method=_with_teacher)
    return _apart(variables["params"])

  def adopt(self, initial: Variables) -> Variables:
    """Weights to start from: a VQGAN's go to their places, a tokenizer's stay in theirs."""
    params = initial["params"]
    return initial if "latent_tokens" in params else _apart({"pixels": params})

  def losses(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray, step: Int[Array, ""]
  ) -> Losses:
    logits, quantized, targets = self._predict(variables, batch["image"], rng)
    nll = _cross_entropy(logits, targets).mean()
    hit = jnp.mean(jnp.argmax(logits, axis=-1) == targets, dtype=jnp.float32)
    metrics = {"cross_entropy": nll, "proxy_accuracy": hit, **quantized.losses}
    total = nll + sum(weight * metrics[name] for name, weight in self.weights.items())
    return Losses({"model": total}, metrics)

  def evaluate(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Any]:
    image, valid = batch["image"], batch.get("valid")
    logits, quantized, targets = self._predict(variables, image)
    shown = self.pictures(variables, batch, rng)["original_over_reconstruction"]
    made = shown[:, image.shape[1] :]
    tokens = self.model.build().to_tokens(quantized.ids)
    height, width = image.shape[1:3]
    rate = BitsPerPixel.from_tokens(tokens, height, width, valid)
    return {
      "cross_entropy": Mean.from_batch(_cross_entropy(logits, targets), valid),
      "psnr": PSNR.from_batch(image, made, valid),
      "bits_per_pixel": rate,
      "codebook": CodebookUsage.from_ids(quantized.ids, self.model.num_codes, valid),
    }

  def pictures(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Float[Array, "B H W C"]]:
    image = batch["image"]
    module: Any = self.model.build()
    output = module.apply({"params": variables["params"]}, image)
    shown = jnp.clip(output.reconstruction, -1, 1)
    return {"original_over_reconstruction": jnp.concatenate([image, shown], 1)}

  def targets(
    self, variables: Variables, image: Float[Array, "B H W C"]
  ) -> Int[Array, "B P"]:
    """The teacher's codes of images in [-1, 1], float32."""
    assert self.model.pixels is not None
    vqgan: Any = self.model.pixels.build()
    ids = vqgan.apply({"params": variables["teacher"]}, image, method="quantize").ids
    return jax.lax.stop_gradient(ids)

  def _predict(
    self, variables: Variables, image: Array, rng: PRNGKeyArray | None = None
  ) -> tuple[Float[Array, "B P V"], Quantized, Int[Array, "B P"]]:
    """Logits in float32, the quantizer's part, and the teacher's codes; trains with a key."""

    rngs = None if rng is None else {"bits": rng}
    params = variables["params"]
    module: Any = self.model.build()
    logits, quantized = module.apply(
      {"params": params},
      image.astype(params["latent_tokens"].dtype),
      train=rng is not None,
      rngs=rngs,
      method="proxy_logits",
    )
    targets = self.targets(variables, image)
    rows = logits.reshape(*targets.shape, -1).astype(jnp.float32)
    return rows, quantized, targets


def _with_teacher(module: TiTok, image: Array) -> None:
  """Touches every parameter: those of the tokenizer, and those of the teacher's encoder."""
  module(image)
  module.pixels.quantize(image)


def _apart(params: Mapping[str, Any]) -> dict[str, Any]:
  """The encoder of `pixels`, with the codebook, as a collection of its own."""
  pixels = dict(params["pixels"])
  teacher = {"encoder": pixels.pop("encoder"), "quantizer": pixels["quantizer"]}
  return {"params": {**params, "pixels": pixels}, "teacher": teacher}


def _cross_entropy(
  logits: Float[Array, "B P V"], targets: Int[Array, "B P"]
) -> Float[Array, "B P"]:
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
