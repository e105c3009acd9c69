"""MaskGIT's VQGAN (arXiv 2202.04200): the tokenizer that TiTok, RAR and One-D-Piece build on.

  tokzoo train experiments/image/maskgit_vqgan.py --recipe nano
  tokzoo reproduce maskgit-vqgan

Lab record
  nano           crops of 16 pixels to 4 x 4 tokens of 64 codes, 2 CPU cores
  imagenet-256   the published configuration

Published: network, weights, and the training's settings, though not its trainer
(google-research/maskgit @ 1db2359, `configs/{vqgan_config,base_config}.py`,
`nets/discriminator.py`, `libml/losses.py`). `imagenet-256` takes from them: Adam at a constant 1e-4
after 2,000 steps of warm-up, betas 0 and 0.99, for both players from the first step on, a million
steps of 256 in float32; quantizer 0.25 commitment, 1.0 codebook, 0.1 of the softmax's entropies at
temperature 0.01 by squared distances; perceptual 0.1; adversarial 0.1, non-saturating, against
StyleGAN's discriminator with blurs and R1 of 10; averages of the weights at 0.999.

Not known, for want of the trainer, and chosen here: the distance and its weight (1 times the
squared error in [-1, 1], four times that in [0, 1]; losses l1 and l2 are there), the network of
the perceptual loss ("pretrained image model"; LPIPS), how pictures are cropped, and in which
range the discriminator sees them (R1 is meant for [0, 1]). Otherwise: the codes start from a
normal distribution of the published width, not a uniform one; entropies are of the whole batch,
not of each device's. Left out: FID during the run. The 512-pixel tokenizer has no settings of
its own.

Claim 2 was measured again, twice: at the port's weights of the quantizer's losses the latents
shrank to a quarter of the codes and the error stayed at that of the mean colour (0.063 against
0.061); at a fiftieth 90 % of the codes are in use and the error is 0.034 after 600 steps of 8,
where 0.030 is asked for (one seed had 0.035 after 300). At a rate of 3e-3 it did not train
(0.31). After 3,000 steps of 16 it is 0.013 (seeds 0 and 1; 40 s each on an H200 that trained
another model beside it). Claim 3 cannot hold, however long the training: group norms see the
whole picture, and ids of a half are those in the whole only as far as the two agree in mean and
variance.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from tokzoo.contract import Batch, Variables
from tokzoo.data import evaluation_batches, loader
from tokzoo.data.packaged import imagenet_crops, photo_crops
from tokzoo.nn.discriminator import Discriminator
from tokzoo.nn.style_discriminator import StyleDiscriminator
from tokzoo.quantizers.kmeans import first_means, kmeans
from tokzoo.tokenizers.image.maskgit_vqgan import Config
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.adversary import Adversary
from tokzoo.train.claims import Claim, fit, kept_rows
from tokzoo.train.perception import Perceptual
from tokzoo.train.tasks import Reconstruction

SYSTEM = "maskgit-vqgan"

VQ = {"commitment": 1.0, "codebook": 0.25}
"""Weights of the quantizer's losses of the small models: those of the PyTorch port's own loss,
where the 0.25 is on the codebook. MaskGIT's training has it on the commitment (`PUBLISHED_VQ`)."""

PUBLISHED_VQ = {
  "commitment": 0.25,
  "codebook": 1.0,
  "sample_entropy": 0.1,
  "batch_entropy": -0.1,
}
"""Weights of the quantizer's losses of MaskGIT's training."""

# ---------------------------------------------------------------- nano: a 2-core CPU

SMALL = Config(
  image_size=16,
  width=32,
  multipliers=(1, 2, 2),
  res_blocks=1,
  code_dim=8,
  num_codes=64,
  norm_groups=2,
)


def nano() -> Recipe:
  """Photo crops of 16 pixels, with an adversary from the 200th step on."""
  optimizer = Optimizer(peak_lr=1e-3, warmup_steps=30, b2=0.99, clip_norm=1.0)
  return Recipe(
    system=SYSTEM,
    name="nano",
    task=Reconstruction(
      model=SMALL,
      distance="l2",
      weights=VQ,
      adversary=Adversary(weight=0.01, start_step=200, network=Discriminator(16, 1)),
    ),
    data=photo_crops("train", 16),
    batch_size=16,
    steps=300,
    optimizers={
      "model": optimizer,
      "discriminator": dataclasses.replace(optimizer, start_step=200),
    },
    evaluators={"held_out": Evaluator(data=photo_crops("test", 16), batches=10)},
    save_every=300,
  )


# ---------------------------------------------------------------- as published


def imagenet_256() -> Recipe:
  """256 pixels, 1,024 codes."""
  data, held_out = imagenet_crops("arrayrecord:data/imagenet")
  optimizer = Optimizer(
    name="adam",
    peak_lr=1e-4,
    schedule="constant",
    warmup_steps=2_000,
    b1=0.0,
    b2=0.99,
  )
  return Recipe(
    system=SYSTEM,
    name="imagenet-256",
    task=Reconstruction(
      model=Config(codes_scale=1 / 32, entropy_temperature=0.01),
      distance="l2",
      weights=PUBLISHED_VQ,
      perceptual=(
        Perceptual(
          "lpips-vgg16",
          weight=0.1,
          files=("weights/vgg16.pth", "weights/lpips-vgg.pth"),
        ),
      ),
      adversary=Adversary(
        weight=0.1,
        network=StyleDiscriminator(),
        generator="non_saturating",
        discriminator="non_saturating",
        # 10 for pictures in [0, 1], where slopes are twice and their squares four times ours.
        gradient_penalty=40.0,
      ),
    ),
    data=data,
    batch_size=256,
    steps=1_000_000,
    optimizers={"model": optimizer, "discriminator": optimizer},
    evaluators={"held_out": Evaluator(data=held_out, every=10_000, batches=10)},
    ema=0.999,
    remat="blocks",
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_500,
    log_every=100,
    picture_every=5_000,
  )


RECIPES = {"nano": nano, "imagenet-256": imagenet_256}

# ---------------------------------------------------------------- claims

_STEPS = 600
_BATCH = 8
_LONG = 3000
_WIDE = 16
_POOL = 16_384
_SIDE = 32
SMALL_VQ = {name: 0.02 * weight for name, weight in VQ.items()}
"""Of small models: at the port's weights latents shrink to a few codes before the
reconstruction pulls them apart."""

CROPS = dataclasses.replace(SMALL, image_size=_SIDE, multipliers=(1, 2))


@dataclasses.dataclass(frozen=True)
class FromData(Reconstruction):
  """Starts the codebook from the k-means of the first batch's latents."""

  def init(self, rng: PRNGKeyArray, batch: Batch) -> Variables:
    variables = super().init(rng, batch)
    module = self.model.build()
    latents = module.apply(
      variables, batch["image"], method=lambda m, x: m.encoder((x + 1) / 2)
    )
    flat = latents.reshape(-1, self.model.code_dim)
    codes, _ = kmeans(flat, first_means(flat, self.model.num_codes, rng), 10)
    return {"params": {**variables["params"], "quantizer": {"codes": codes}}}


def _held_out(size: int) -> Iterator[Batch]:
  return evaluation_batches(photo_crops("test", size), 30)


@functools.cache  # two claims read the same training
def _trained(seed: int) -> Variables:
  task = FromData(model=CROPS, distance="l2", weights=SMALL_VQ)
  return fit(
    task, loader(photo_crops("train", _SIDE), _BATCH, seed), _STEPS, seed, 1e-3
  )


def _trained_long(seed: int) -> Variables:
  task = FromData(model=CROPS, distance="l2", weights=SMALL_VQ)
  crops = kept_rows(photo_crops("train", _SIDE), _POOL, _WIDE, seed)
  return fit(task, crops, _LONG, seed, 1e-3)


def round_trip(seed: int) -> dict[str, float]:
  """Differing bits between decoding ids and decoding the quantized latents."""
  module, variables = CROPS.build(), _trained(seed)

  def run(module, x):
    tokens = module.encode(x)
    rows, columns = tokens.grid
    codes = module.quantize(x).values.reshape(len(x), rows, columns, -1)
    return module.decode(tokens), module.codes_to_image(codes)

  differ = 0
  for batch in _held_out(_SIDE):
    by_ids, by_codes = module.apply(variables, jnp.asarray(batch["image"]), method=run)
    differ += int(jnp.sum(by_ids != by_codes))
  return {"pixels that differ": differ}


def against_mean_colour(seed: int) -> dict[str, float]:
  """Held-out error, that of each picture's mean colour, and the share of codes in use."""
  module, variables = CROPS.build(), _trained_long(seed)
  run = jax.jit(module.apply)
  errors, plain, seen = [], [], []
  for batch in _held_out(_SIDE):
    x = batch["image"]
    output = run(variables, x)
    errors.append(np.square(np.asarray(output.reconstruction) - x).mean())
    plain.append(np.square(x - x.mean((1, 2), keepdims=True)).mean())
    seen.append(np.asarray(output.tokens.ids).ravel())
  used = len(np.unique(np.concatenate(seen))) / CROPS.num_codes
  return {
    "mse": float(np.mean(errors)),
    "mse of the mean colour": float(np.mean(plain)),
    "codes used": used,
  }


def halves_of_a_wide_picture(seed: int) -> dict[str, float]:
  """Share of ids that a half of a picture has alone as in the whole, far from the cut."""
  module, variables = CROPS.build(), _trained(seed)

  @jax.jit
  def encode(variables, x):
    return module.apply(variables, x, method=lambda m, x: m.encode(x).ids)

  side, far = 64, 16  # pixels; the receptive field reaches less than 16 pixels
  factor = CROPS.factor
  same, norms = [], []
  for batch in _held_out(2 * side):
    wide = batch["image"][:, :side]
    whole = np.asarray(encode(variables, wide)).reshape(len(wide), side // factor, -1)
    left = np.asarray(encode(variables, wide[:, :, :side]))
    left = left.reshape(len(wide), side // factor, -1)
    inside = (side - far) // factor
    same.append((whole[:, :, :inside] == left[:, :, :inside]).mean())
    # A picture beside its mirror image: group norms see the statistics of the half.
    mirrored = np.concatenate([wide[:, :, :side], wide[:, :, side - 1 :: -1]], 2)
    both = np.asarray(encode(variables, mirrored)).reshape(whole.shape)
    norms.append((both[:, :, :inside] == left[:, :, :inside]).mean())
  return {
    "same ids": float(np.mean(same)),
    "same ids beside its mirror image": float(np.mean(norms)),
  }


_SHEET = "arXiv 2202.04200, at the scale of this repository"
_NETWORK = f"photo crops of {_SIDE} x {_SIDE} pixels, 16 x 16 tokens of 64 codes"
_OBJECTIVE = (
  "squared error and a fiftieth of the quantizer's losses, k-means start, 2 groups per "
  "norm; held-out photographs"
)
_SETTING = f"{_NETWORK}, {_STEPS} steps of {_BATCH}, {_OBJECTIVE}"

CLAIMS = (
  Claim(
    "Decoding ids equals decoding the quantized latents, bit for bit",
    source=_SHEET,
    measure=round_trip,
    holds=lambda n: n["pixels that differ"] == 0,
    setting=_SETTING,
  ),
  Claim(
    "A small copy reconstructs with at most half the error of the mean colour, and uses more "
    "than half of its codes",
    source=_SHEET,
    measure=against_mean_colour,
    holds=lambda n: (
      n["mse"] <= 0.5 * n["mse of the mean colour"] and n["codes used"] > 0.5
    ),
    setting=f"{_POOL:,} {_NETWORK}, {_LONG:,} steps of {_WIDE}, {_OBJECTIVE}",
  ),
  Claim(
    "Fully convolutional: far from the cut, a half of a picture has the ids that it has in the "
    "whole (group norms, which see the whole picture, work against it)",
    source=_SHEET,
    measure=halves_of_a_wide_picture,
    holds=lambda n: n["same ids"] == 1.0,
    setting=f"{_SETTING}; 64 x 128 pixels against 64 x 64, 16 pixels from the cut",
  ),
)

# Published rows; measured numbers never share a column with them.
TABLES = (
  {
    "what": "tokens for a picture of 256 x 256 pixels",
    "published": "256 of 1,024 codes",
    "source": "arXiv 2202.04200",
  },
  {
    "what": "rFID, ImageNet 256 and 512",
    "published": "2.28 and 1.97 (released weights)",
    "source": "google-research/maskgit, README",
  },
)
