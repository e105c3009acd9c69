"""What FlexTok is trained with: the flow's error, and alignment with a frozen network.

Stage 1 of arXiv 2502.13967. The velocity of the latents at a random time, tokens dropped,
mean squared error; and REPA (Yu et al., arXiv 2410.06940): patches behind one block of the
decoder go through an MLP and are held against the features of DINOv2-L by cosine similarity.
Block, weight and width of the MLP are REPA's own, as FlexTok's repository does not say.

The MLP is `params/projector`, which belongs to the training, not to the model; the frozen
network is the collection `teacher`, given and not initialised; the autoencoder is never
trained. Without the file of DINOv2, EfficientNet-Lite0 (packaged, extra `features`) can stand
in: the mechanism is the same, its numbers are not the paper's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tokzoo.contract import Batch, Losses, Variables
from tokzoo.errors import TokzooError
from tokzoo.losses import dinov2
from tokzoo.metrics import PSNR, BitsPerPixel, CodebookUsage, Mean, efficientnet
from tokzoo.nn.layers import rows_dot_general
from tokzoo.tokenizers.image.flextok.model import Config, FlexTok
from tokzoo.weights import read_state

_STAGE = 4
"""Of EfficientNet-Lite0: the last with a cell for 16 x 16 pixels."""


@dataclasses.dataclass(frozen=True)
class Alignment:
  """REPA: a frozen network, and where the decoder is held against it."""

  network: Literal["dinov2-l14", "efficientnet-lite0"] = "dinov2-l14"
  """Whose features."""
  weight: float = 0.5
  """Of 1 - cosine similarity in the loss."""
  block: int = 8
  """Behind which of the decoder's blocks, counted from 1."""
  hidden: int = 2048
  """Features between the three layers of the projecting MLP."""
  files: tuple[str, ...] = ()
  """dinov2_vitl14_pretrain.pth (or *.safetensors); efficientnet-lite0 has its own."""

  def shapes(self) -> Any:
    """Shapes and dtypes of the network's variables."""
    image = jnp.zeros((1, 32, 32, 3))
    module = dinov2.DINOv2()
    if self.network == "efficientnet-lite0":
      module = efficientnet.EfficientNetLite0()
    return jax.eval_shape(module.init, jax.random.key(0), image)

  def load(self) -> Any:
    """The network's variables, from the files.

    Raises:
      TokzooError: no file is named, it cannot be read, or it is of another network.
    """
    if self.network == "efficientnet-lite0":
      return efficientnet.load_efficientnet_lite0().variables
    if not self.files:
      raise TokzooError(
        "DINOv2 has no weights here: name the file dinov2_vitl14_pretrain.pth "
        "(alignment.files), or take efficientnet-lite0, which is packaged."
      )
    state = {}
    for file in self.files:
      state |= read_state(file)
    return dinov2.WEIGHTS.to_ours(state, self.shapes())

  def features(
    self, variables: Any, image: Float[Array, "B H W C"], side: int
  ) -> Float[Array, "B P F"]:
    """The network's view of pictures in [-1, 1], grey or coloured, on side x side cells."""
    if image.shape[-1] == 1:
      image = jnp.repeat(image, 3, axis=-1)
    image = image.astype(jnp.float32)
    module: Any
    if self.network == "efficientnet-lite0":
      module = efficientnet.EfficientNetLite0(size=16 * side)
      rows = module.apply(variables, image, method="maps")[_STAGE]
    else:
      module = dinov2.DINOv2()
      rows = module.apply(variables, image, side)
    return rows.reshape(len(rows), side**2, -1)

  @property
  def width(self) -> int:
    """Features of a cell."""
    return 112 if self.network == "efficientnet-lite0" else 1024


class Projector(nn.Module):
  """W3 silu(W2 silu(W1 x))."""

  hidden: int
  features: int

  @nn.compact
  def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P F"]:
    for i, width in enumerate((self.hidden, self.hidden, self.features)):
      x = nn.Dense(width, dot_general=rows_dot_general, name=f"layer_{i}")(
        nn.silu(x) if i else x
      )
    return x


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
  """Trains a FlexTok. Loss: error of the velocity + weight * (1 - cosine similarity)."""

  model: Config
  """Config of the tokenizer."""
  alignment: Alignment | None = Alignment()
  """The frozen network beside the decoder; None: the flow alone."""

  def __post_init__(self):
    layers = self.model.decoder.layers
    if self.alignment is not None and not 1 <= self.alignment.block <= layers:
      raise TokzooError(
        f"alignment behind block {self.alignment.block} was asked for, but the decoder has "
        f"{layers} blocks: choose one of them."
      )

  @property
  def players(self) -> Mapping[str, str]:
    return {"model": r"(?!vae/)"}

  def init(self, rng: PRNGKeyArray, batch: Batch) -> Variables:
    model_rng, bits_rng, projector_rng = jax.random.split(rng, 3)
    rngs = {"params": model_rng, "bits": bits_rng}
    variables = dict(self.model.build().init(rngs, batch["image"]))
    if self.alignment is None:
      return variables
    a = self.alignment
    patches = jnp.zeros((1, self.model.side**2, self.model.decoder.width))
    projector = Projector(a.hidden, a.width).init(projector_rng, patches)["params"]
    variables["params"] = {**variables["params"], "projector": projector}
    # NaN, which no loss survives, until `given` is read.
    variables["teacher"] = jax.tree.map(
      lambda s: jnp.full(s.shape, jnp.nan, s.dtype), a.shapes()
    )
    return variables

  def given(self) -> Variables:
    """Variables that are read, not initialised: the frozen network's.

    Raises:
      TokzooError: its file is missing or of another network.
    """
    return {} if self.alignment is None else {"teacher": self.alignment.load()}

  def adopt(self, initial: Variables) -> Variables:
    """Weights to start from: an autoencoder's go to their place, a FlexTok's stay."""
    params = initial["params"]
    return {"params": {"vae": params}} if "quant_conv" in params else initial

  def losses(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray, step: Int[Array, ""]
  ) -> Losses:
    image = batch["image"]
    module: Any = self.model.build()
    output = module.apply(_model(variables), image, train=True, rngs={"bits": rng})
    metrics = {"flow": output.losses["flow"]}
    if self.alignment is None:
      return Losses({"model": metrics["flow"]}, metrics)
    a = self.alignment
    wanted = a.features(variables["teacher"], image, self.model.side)
    projector: Any = Projector(a.hidden, a.width)
    params = {"params": variables["params"]["projector"]}
    found = projector.apply(params, output.features[f"block_{a.block - 1}"])
    metrics["repa"] = 1 - _cosine(found, jax.lax.stop_gradient(wanted)).mean()
    return Losses({"model": metrics["flow"] + a.weight * metrics["repa"]}, metrics)

  def evaluate(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Any]:
    """The flow's error and PSNR with all tokens; PSNR of drawn pictures is no measure of how
    good they look."""
    image, valid = batch["image"], batch.get("valid")
    module: Any = self.model.build()

    def run(m: FlexTok):
      output = m(image)
      latents = m.latents(image)
      codes = m.quantizer(m.encoder(latents.astype(image.dtype))).values
      return output, m.flow(latents, codes.astype(image.dtype), rng).errors

    output, errors = module.apply(_model(variables), method=run)
    shown = jnp.clip(output.reconstruction, -1, 1)
    height, width = image.shape[1:3]
    rate = BitsPerPixel.from_tokens(output.tokens, height, width, valid)
    vocab = output.tokens.vocab
    return {
      "flow": Mean.from_batch(errors, valid),
      "psnr": PSNR.from_batch(image, shown, valid),
      "bits_per_pixel": rate,
      "codebook": CodebookUsage.from_ids(output.tokens.ids, vocab, valid),
    }

  def pictures(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Float[Array, "B H W C"]]:
    """Originals over pictures drawn from 1, a quarter of and all tokens."""
    image = batch["image"]
    module: Any = self.model.build()
    most = self.model.num_tokens

    def run(m: FlexTok):
      lengths = sorted({1, max(1, most // 4), most})
      return [m.decode(m.encode(image, num_tokens=k)) for k in lengths]

    rows = module.apply(_model(variables), method=run)
    shown = [jnp.clip(row, -1, 1).astype(image.dtype) for row in rows]
    return {"original_over_fewer_to_all_tokens": jnp.concatenate([image, *shown], 1)}


def _model(variables: Variables) -> dict[str, Any]:
  """The variables that the module knows."""
  params = {k: v for k, v in variables["params"].items() if k != "projector"}
  return {"params": params, "buffers": variables["buffers"]}


def _cosine(x: Float[Array, "B P F"], y: Float[Array, "B P F"]) -> Float[Array, "B P"]:
  x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
  return (x * y).sum(-1) / jnp.maximum(norms, 1e-8)
