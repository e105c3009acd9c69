"""LlamaGen (arXiv 2406.06525): a VQGAN tokenizer and Llama-shaped generators on its tokens.

  tokzoo train experiments/image/llamagen.py --recipe nano
  tokzoo reproduce llamagen

Lab record
  nano             tiles of photographs, 16 x 16 pixels to 16 tokens of 256 codes, with the
                   whole objective but the perceptual term; 2 CPU cores
  nano-perceptual  the same with EfficientNet-Lite0 (extra `features`) as the perceptual term
  vq-8, vq-16      the published tokenizers; they need LPIPS weights (task.perceptual files)

Published: Adam(0.9, 0.95) at a constant 1e-4, 40 epochs of ImageNet at 256 pixels, batch 128,
random crops of 0.8 to 1 of the short side with flips, clipping at 1, bf16; l2 + LPIPS + 0.5 *
hinge from step 20,000 + codebook + 0.25 * commitment, the discriminator's own loss times 0.5
as well. Without a value of ours: nothing. Our random crop has one scale.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from tokzoo.contract import Batch, Variables
from tokzoo.data import DataConfig, evaluation_batches, loader
from tokzoo.nn.discriminator import PatchGAN
from tokzoo.tokenizers.image.llamagen import PRESETS, Config
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.adversary import Adversary
from tokzoo.train.claims import Claim, fit
from tokzoo.train.perception import Perceptual
from tokzoo.train.tasks import Reconstruction

SYSTEM = "llamagen"

# ---------------------------------------------------------------- tokenizer: a 2-core CPU

NANO = Config(
  image_size=16,
  width=16,
  multipliers=(1, 2, 2),
  blocks=1,
  latent_dim=32,
  groups=8,
  num_codes=256,
)


def photos(split: str, size: int) -> DataConfig:
  """Random crops of packaged photographs."""
  train = split == "train"
  return DataConfig(
    source="photos",
    split=split,
    crop="random",
    size=size,
    flip=train,
    repeat=10_000 if train else 300,
    shuffle=train,
    threads=1,
  )


def nano() -> Recipe:
  """Photo tokenizer against a small PatchGAN: held-out crops after about a minute."""
  return Recipe(
    system=SYSTEM,
    name="nano",
    task=Reconstruction(
      model=NANO,
      distance="l2",
      weights={"codebook": 1.0, "commitment": 0.25},
      adversary=Adversary(
        weight=0.05,
        start_step=200,
        network=PatchGAN(width=16, layers=2),
        discriminator_weight=0.5,
      ),
    ),
    data=photos("train", 16),
    batch_size=16,
    steps=400,
    optimizers={
      "model": Optimizer(peak_lr=2e-3, warmup_steps=20, b2=0.95, clip_norm=1.0),
      "discriminator": Optimizer(peak_lr=5e-4, b2=0.95, clip_norm=1.0, start_step=200),
    },
    evaluators={"held_out": Evaluator(data=photos("test", 16), batches=15)},
    save_every=200,
  )


def nano_perceptual() -> Recipe:
  """As nano, with the packaged network as the perceptual term: a second a step."""
  recipe = nano()
  return dataclasses.replace(
    recipe,
    name="nano-perceptual",
    task=dataclasses.replace(recipe.task, perceptual=(Perceptual(),)),
    steps=40,
    save_every=40,
  )


# ---------------------------------------------------------------- tokenizer: as published


def _vq(name: str) -> Recipe:
  data = DataConfig(
    source="tfds:imagenet2012",
    resize=288,
    crop="random",
    size=256,
    flip=True,
    threads=32,
    prefetch=8,
  )
  held_out = dataclasses.replace(
    data, split="validation", resize=256, crop="center", flip=False
  )
  rates = {"peak_lr": 1e-4, "schedule": "constant", "b2": 0.95, "clip_norm": 1.0}
  return Recipe(
    system=SYSTEM,
    name=name,
    task=Reconstruction(
      model=PRESETS[f"llamagen-{name}"],
      distance="l2",
      weights={"codebook": 1.0, "commitment": 0.25},
      perceptual=(Perceptual("lpips-vgg16"),),
      adversary=Adversary(
        weight=0.5, start_step=20_000, network=PatchGAN(), discriminator_weight=0.5
      ),
    ),
    data=data,
    batch_size=128,
    steps=400_360,  # 40 epochs of 1,281,167 pictures
    optimizers={
      "model": Optimizer(name="adam", **rates),
      "discriminator": Optimizer(name="adam", start_step=20_000, **rates),
    },
    evaluators={"held_out": Evaluator(data=held_out, every=10_000)},
    compute_dtype="bfloat16",
    remat="blocks",
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=5_000,
    log_every=100,
    picture_every=5_000,
  )


def vq_8() -> Recipe:
  """The tokenizer of 32 x 32 tokens for 256 pixels."""
  return _vq("vq-8")


def vq_16() -> Recipe:
  """The tokenizer of 16 x 16 tokens for 256 pixels."""
  return _vq("vq-16")


# ---------------------------------------------------------------- generators


RECIPES = {
  "nano": nano,
  "nano-perceptual": nano_perceptual,
  "vq-8": vq_8,
  "vq-16": vq_16,
}

# ---------------------------------------------------------------- claims

_STEPS = 1500
_SIDE = 32

CROPS = dataclasses.replace(
  NANO, image_size=_SIDE, multipliers=(1, 1, 2), num_codes=1024
)


def crops(split: str, seed: int = 0, batch: int = 16) -> Iterator[Batch]:
  """Crops of 32 x 32 pixels: an endless shuffled stream, or the held-out ones once."""
  if split == "train":
    return loader(photos(split, _SIDE), batch, seed)
  held_out = dataclasses.replace(photos(split, _SIDE), repeat=200)
  return evaluation_batches(held_out, batch)


def measured(
  model, variables: Variables, pictures: list[np.ndarray]
) -> dict[str, float]:
  """PSNR in dB of held-out pictures, and the part of the codes that their tokens use."""
  module = model.build()

  @jax.jit
  def run(variables: Variables, picture: np.ndarray):
    output = module.apply(variables, picture)
    error = jax.numpy.square(output.reconstruction.clip(-1, 1) - picture).mean()
    return error, output.tokens.ids

  found = [run(variables, picture) for picture in pictures]
  error = float(np.mean([error for error, _ in found]))
  ids = np.unique(np.concatenate([np.asarray(ids).ravel() for _, ids in found]))
  return {"psnr": 10 * np.log10(4 / error), "usage": len(ids) / model.num_codes}


def unit_codes(seed: int) -> dict[str, float]:
  """Usage and PSNR of 8-dimensional codes of unit norm, and of 256-dimensional plain ones."""
  held_out = [batch["image"] for batch in crops("test")]
  wide = dataclasses.replace(CROPS, code_dim=256, is_unit_norm=False)
  numbers = {}
  for name, model in (("D=8, unit norm", CROPS), ("D=256, plain", wide)):
    weights = {"codebook": 1.0, "commitment": 0.25}
    task = Reconstruction(model=model, distance="l2", weights=weights)
    variables = fit(task, crops("train", seed), _STEPS, seed, 1e-3)
    for what, value in measured(model, variables, held_out).items():
      numbers[f"{what} {name}"] = value
  return numbers


CLAIMS = (
  Claim(
    "Codes of 8 features and unit norm keep a codebook of 1,024 alive: at least twice the "
    "usage of 256-dimensional codes without the norm, at no lower PSNR",
    source="the sheet's bar; the ablation of arXiv 2406.06525",
    measure=unit_codes,
    holds=lambda n: (
      n["usage D=8, unit norm"] >= 2 * n["usage D=256, plain"]
      and n["psnr D=8, unit norm"] >= n["psnr D=256, plain"]
    ),
    setting=f"photo crops of 32 x 32 pixels, 64 tokens, {_STEPS:,} steps of 16, l2 and code "
    "losses alone; held-out photographs",
  ),
)

# Published rows; measured numbers never share a column with them.
TABLES = (
  {"what": "rFID at 256 pixels, VQ-16, 16 x 16 tokens", "published": "2.19"},
  {"what": "rFID at 256 pixels, VQ-16, 24 x 24 tokens", "published": "0.94"},
  {"what": "rFID at 256 pixels, VQ-16, 32 x 32 tokens", "published": "0.70"},
  {"what": "rFID at 256 pixels, VQ-8, 32 x 32 tokens", "published": "0.59"},
)
