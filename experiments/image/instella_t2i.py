"""Instella-T2I (arXiv 2506.21022): binary 1D image tokens and their two generators.

  tokzoo train experiments/image/instella_t2i.py --recipe nano
  tokzoo reproduce instella-t2i

Lab record
  nano            tiles of photographs, 8 x 8 pixels to 62 bits (1 bit per pixel), 2 CPU cores
  nano-digits     scikit-learn's 8 x 8 digits to 8 tokens of 8 bits
  nano-ar         autoregressive generator of the digits' tokens, class-conditional
  nano-diffusion  the same with binary diffusion
  photos, digits-ar, ...   what the checkpoints in checkpoints/ were trained with
  bae-512, bae-1024, ar-t2i, diffusion-t2i   the published configurations

What was published: network, weights and generator training (AdamW 1e-4, 1,000 steps of linear
warm-up, no weight decay, clipping at 1, bf16, up to 2M steps, global batch 4,096). What was
not, and is chosen here: the tokenizer's objective and optimizer (the paper names smooth L1,
perceptual, adversarial, code and REPA terms without weights). The perceptual term is left out
until LPIPS weights are at hand: the recipes say so by not having it.
"""

import dataclasses

from tokzoo.data import DataConfig
from tokzoo.generators.instella_t2i import ARConfig, DiffusionConfig
from tokzoo.tokenizers.image.instella_t2i import PRESETS, Config
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.tasks import Adversary, Generation, Reconstruction

SYSTEM = "instella-t2i"

# ---------------------------------------------------------------- nano: a 2-core CPU

# One token of 62 bits for 8 x 8 pixels: at most 1 bit per pixel, the filled-up tiles at the
# edge of a photograph counted.
PHOTOS = Config(
  image_size=8,
  patch=8,
  num_tokens=1,
  bits=62,
  width=128,
  layers=1,
  head_dim=32,
  down_after=(),
  decoder_width=256,
  decoder_layers=1,
  decoder_head_dim=32,
  up_after=(),
  rope_dims=(8, 12, 12),
  span=None,
)

DIGITS = Config(
  image_size=8,
  channels=1,
  patch=4,
  num_tokens=8,
  bits=8,
  width=64,
  layers=1,
  head_dim=32,
  down_after=(),
  decoder_width=64,
  decoder_layers=1,
  decoder_head_dim=32,
  up_after=(),
  rope_dims=(8, 12, 12),
  span=None,
)


def _photos(split: str) -> DataConfig:
  # Crops of 32 pixels are cut to 16 tiles: one picture read feeds 16 examples.
  train = split == "train"
  return DataConfig(
    source="photos",
    split=split,
    crop="random",
    size=32,
    flip=train,
    repeat=10_000 if train else 300,
    shuffle=train,
    threads=1,
  )


def _digits(split: str) -> DataConfig:
  return DataConfig(
    source="digits", split=split, channels=1, size=8, crop="none", threads=1
  )


def nano() -> Recipe:
  """Photo tokenizer: held-out crops after about a minute on 2 cores."""
  return Recipe(
    system=SYSTEM,
    name="nano",
    task=Reconstruction(model=PHOTOS, distance="l2", tile=True),
    data=_photos("train"),
    batch_size=16,
    steps=600,
    optimizers={
      "model": Optimizer(peak_lr=2e-3, warmup_steps=50, b2=0.99, clip_norm=1.0)
    },
    evaluators={"held_out": Evaluator(data=_photos("test"))},
    save_every=300,
  )


def nano_digits() -> Recipe:
  """Digits tokenizer: 64 bits per digit."""
  return Recipe(
    system=SYSTEM,
    name="nano-digits",
    task=Reconstruction(model=DIGITS, distance="l2"),
    data=_digits("train"),
    batch_size=64,
    steps=2000,
    optimizers={
      "model": Optimizer(peak_lr=3e-3, warmup_steps=50, b2=0.99, clip_norm=1.0)
    },
    evaluators={"held_out": Evaluator(data=_digits("test"))},
    save_every=1000,
  )


def _nano_generator(name: str, model, sampling: dict) -> Recipe:
  return Recipe(
    system=SYSTEM,
    name=name,
    task=Generation(model=model),
    data=_digits("train"),
    batch_size=128,
    steps=600,
    optimizers={
      "model": Optimizer(peak_lr=2e-3, warmup_steps=50, b2=0.99, clip_norm=1.0)
    },
    evaluators={"held_out": Evaluator(data=_digits("test"))},
    ema=0.98,
    save_every=300,
    tokenizer="instella-digits-nano",
    sampling=sampling,
  )


_SMALL = {
  "num_tokens": DIGITS.num_tokens,
  "bits": DIGITS.bits,
  "width": 96,
  "layers": 2,
  "head_dim": 32,
  "condition_width": 32,
  "num_classes": 10,
}


def nano_ar() -> Recipe:
  """Class-conditional autoregressive generator of digits."""
  sampling = {"guidance": 1.0, "temperature": 1.0}
  return _nano_generator("nano-ar", ARConfig(**_SMALL), sampling)


def nano_diffusion() -> Recipe:
  """Class-conditional binary diffusion of digits."""
  sampling = {"guidance": 1.0, "temperature": 1.0, "steps": 20}
  return _nano_generator("nano-diffusion", DiffusionConfig(**_SMALL), sampling)


# ---------------------------------------------------------------- as published


def _bae(name: str, size: int) -> Recipe:
  data = DataConfig(
    source="arrayrecord:data/laion-coco",
    resize=size,
    filter="lanczos",
    crop="random",
    size=size,
    flip=True,
    threads=32,
    prefetch=8,
  )
  held_out = dataclasses.replace(data, split="test", crop="center", flip=False)
  return Recipe(
    system=SYSTEM,
    name=name,
    task=Reconstruction(
      model=PRESETS[f"instella-{name}"],
      distance="smooth_l1",
      weights={"code": 0.01},
      adversary=Adversary(weight=0.1, start_step=100_000),
    ),
    data=data,
    batch_size=1024,
    steps=500_000,
    optimizers={
      "model": Optimizer(peak_lr=1e-4, warmup_steps=5_000, b2=0.95, clip_norm=1.0),
      "discriminator": Optimizer(
        peak_lr=1e-4, warmup_steps=5_000, b1=0.5, b2=0.9, start_step=100_000
      ),
    },
    evaluators={"held_out": Evaluator(data=held_out, every=10_000, batches=10)},
    ema=0.999,
    compute_dtype="bfloat16",
    remat="blocks",
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_500,
    log_every=100,
    picture_every=5_000,
  )


def bae_512() -> Recipe:
  """The tokenizer at 512 pixels: first stage."""
  return _bae("bae-512", 512)


def bae_1024() -> Recipe:
  """The tokenizer at 1,024 pixels: the multi-resolution stage, from bae-512's weights."""
  recipe = _bae("bae-1024", 1024)
  return dataclasses.replace(
    recipe, batch_size=512, steps=100_000, init_from="runs/instella-t2i-bae-512"
  )


def _t2i(name: str, model, sampling: dict) -> Recipe:
  # Tokens and text features are made beforehand (`tokzoo encode`): bits of the published
  # tokenizer and the hidden states of AMD-OLMo-1B, one prompt in ten the empty string.
  return Recipe(
    system=SYSTEM,
    name=name,
    task=Generation(model=model),
    data=DataConfig(source="tokens:data/laion-coco-instella", threads=32, prefetch=8),
    batch_size=4096,
    steps=2_000_000,
    optimizers={
      "model": Optimizer(
        peak_lr=1e-4, schedule="constant", warmup_steps=1_000, clip_norm=1.0
      )
    },
    compute_dtype="bfloat16",
    remat="blocks",
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_500,
    keep=10,
    log_every=100,
    sampling=sampling,
  )


def diffusion_t2i() -> Recipe:
  """Text to image by binary diffusion."""
  sampling = {
    "steps": 50,
    "guidance": 9.0,
    "temperature": 0.8,
    "rho": 1.0,
    "protocol": 1,
  }
  return _t2i("diffusion-t2i", DiffusionConfig(), sampling)


def ar_t2i() -> Recipe:
  """Text to image, token by token."""
  return _t2i("ar-t2i", ARConfig(), {"guidance": 9.0, "temperature": 0.5})


RECIPES = {
  "nano": nano,
  "nano-digits": nano_digits,
  "nano-ar": nano_ar,
  "nano-diffusion": nano_diffusion,
  "bae-512": bae_512,
  "bae-1024": bae_1024,
  "ar-t2i": ar_t2i,
  "diffusion-t2i": diffusion_t2i,
}
