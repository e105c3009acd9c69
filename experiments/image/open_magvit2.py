"""Open-MAGVIT2 (arXiv 2409.04410) and IBQ (arXiv 2412.02692): tokenizers and their Llamas.

  tokzoo train experiments/image/open_magvit2.py --recipe nano
  tokzoo reproduce open-magvit2

Lab record
  nano             LFQ: photographs, 16 x 16 pixels to 16 tokens of 10 bits, the whole
                   objective with EfficientNet-Lite0 (extra `features`); 2 CPU cores
  ibq-nano         IBQ of 256 codes on the same, in the same way
  nano-ar, nano-ibq-ar   the generators on 16 tokens of 64 codes of scikit-learn's digits
                   (llamagen-digits-nano); 6 bits are split 2 + 4
  lfq-256, lfq-128, lfq-pretrain-*, ibq-*   the published tokenizers; they need LPIPS weights
  ar-*, ibq-ar-*   the published generators on tokens that were made beforehand

Published (configs/ of TencentARC/SEED-Voken @ b9a17ea): tokenizers Adam(0.5, 0.9) at 1e-4,
batch 256, divided by ten after 200 and 250 of 270 epochs (LFQ at 256 pixels), 250 and 300 of
350 (128 pixels) or of 330 (IBQ; 8,192 codes: 250 of 280), averaged at 0.999, fp16; pretrained
ones 1.5M steps. Generators AdamW(0.9, 0.95), decay 0.05, batch 768, clipping at 1, fp16; the
rate warms up from 0.005 of its peak, stays there for 5 % of what is left and falls linearly.

Ours are bf16; IBQ-AR-XXL's weight decay stays at 0.05 where the source's rises to 0.08.
Pretraining's pictures (100M and 200M, LAION and others) are ImageNet's here.
"""

import dataclasses

from tokzoo.data import DataConfig
from tokzoo.nn.discriminator import PatchGAN
from tokzoo.tokenizers.image.open_magvit2 import (
  IBQ_PRESETS,
  PRESETS,
  Config,
  IBQConfig,
)
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.adversary import Adversary, LeCam
from tokzoo.train.claims import Claim
from tokzoo.train.perception import Perceptual
from tokzoo.train.tasks import Reconstruction

SYSTEM = "open-magvit2"

LFQ_WEIGHTS = {"sample_entropy": 0.1, "batch_entropy": -0.1, "commitment": 0.25}
"""Published weights of the losses of LFQ."""
IBQ_WEIGHTS = {
  "quantization": 1.0,
  "commitment": 1.0,
  "codebook": 0.25,
  "sample_entropy": 0.05,
  "batch_entropy": -0.05,
}
"""Published weights of the losses of IBQ."""
LPIPS = ("weights/vgg16.pth", "weights/lpips-vgg.pth")


def _objective(
  model: Config | IBQConfig, perceptual: Perceptual, critic: PatchGAN, lecam: float
) -> Reconstruction:
  """l1 + perceptual + 0.1 adversarial + the quantizer's losses."""
  return Reconstruction(
    model=model,
    distance="l1",
    weights=LFQ_WEIGHTS if isinstance(model, Config) else IBQ_WEIGHTS,
    perceptual=(perceptual,),
    adversary=Adversary(
      weight=0.1,
      network=critic,
      generator="non_saturating_mean",
      lecam=LeCam(weight=lecam),
    ),
  )


# ---------------------------------------------------------------- tokenizers: a 2-core CPU

NANO = Config(
  image_size=16, width=16, multipliers=(1, 2, 2), blocks=1, bits=10, groups=8
)
IBQ_NANO = IBQConfig(
  image_size=16,
  width=16,
  multipliers=(1, 2, 2),
  blocks=1,
  attention=(2,),
  latent_dim=32,
  groups=8,
  num_codes=256,
  code_dim=32,
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


def _nano(name: str, model: Config | IBQConfig) -> Recipe:
  rates = {"warmup_steps": 5, "b1": 0.5, "b2": 0.9}
  return Recipe(
    system=SYSTEM,
    name=name,
    task=_objective(model, Perceptual(), PatchGAN(width=16, layers=2), 0.05),
    data=photos("train", 16),
    batch_size=8,
    steps=60,
    optimizers={
      "model": Optimizer(name="adam", peak_lr=2e-3, **rates),
      "discriminator": Optimizer(name="adam", peak_lr=5e-4, **rates),
    },
    evaluators={"held_out": Evaluator(data=photos("test", 16), batches=8)},
    save_every=60,
  )


def nano() -> Recipe:
  """Open-MAGVIT2 of 10 bits a token."""
  return _nano("nano", NANO)


def ibq_nano() -> Recipe:
  """IBQ of 256 codes."""
  return _nano("ibq-nano", IBQ_NANO)


# ---------------------------------------------------------------- tokenizers: as published

_EPOCH = 5004
"""Steps: 1,281,167 pictures in batches of 256."""


def _tokenizer(
  name: str, preset: str, epochs: int, drops: tuple[int, ...], lecam: float = 0.05
) -> Recipe:
  rates = {
    "peak_lr": 1e-4,
    "schedule": "drops",
    "drops": tuple(_EPOCH * epoch for epoch in drops),
    "b1": 0.5,
    "b2": 0.9,
  }
  return _published_tokenizer(name, preset, epochs * _EPOCH, rates, 3, lecam)


def _published_tokenizer(
  name: str, preset: str, steps: int, rates: dict, layers: int, lecam: float
) -> Recipe:
  model = (PRESETS | IBQ_PRESETS)[preset]
  data = DataConfig(
    source="tfds:imagenet2012",
    resize=model.image_size,
    crop="random",
    size=model.image_size,
    flip=True,
    threads=32,
    prefetch=8,
  )
  held_out = dataclasses.replace(data, split="validation", crop="center", flip=False)
  optimizer = Optimizer(name="adam", **rates)
  perceptual = Perceptual("lpips-vgg16", files=LPIPS)
  return Recipe(
    system=SYSTEM,
    name=name,
    task=_objective(model, perceptual, PatchGAN(layers=layers), lecam),
    data=data,
    batch_size=256,
    steps=steps,
    optimizers={"model": optimizer, "discriminator": optimizer},
    evaluators={"held_out": Evaluator(data=held_out, every=10_000)},
    ema=0.999,
    compute_dtype="bfloat16",
    remat="blocks",
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=5_000,
    log_every=100,
    picture_every=5_000,
  )


def lfq_256() -> Recipe:
  """Open-MAGVIT2 at 256 pixels."""
  return _tokenizer("lfq-256", "open-magvit2-256", 270, (200, 250))


def lfq_128() -> Recipe:
  """Open-MAGVIT2 at 128 pixels."""
  return _tokenizer("lfq-128", "open-magvit2-128", 350, (250, 300), lecam=0.01)


def lfq_pretrain_16384() -> Recipe:
  """Open-MAGVIT2 of 14 bits: cosine to a hundredth, a PatchGAN of four layers."""
  rates = {"peak_lr": 1e-4, "end_lr": 1e-6, "warmup_steps": 5_000, "b1": 0.5, "b2": 0.9}
  name = "open-magvit2-pretrain-16384"
  return _published_tokenizer("lfq-pretrain-16384", name, 1_500_000, rates, 4, 0.05)


def lfq_pretrain_262144() -> Recipe:
  """Open-MAGVIT2 of 18 bits: divided by ten at 800,000 and 1,000,000 steps."""
  drops = (800_000, 1_000_000)
  rates = {
    "peak_lr": 1e-4,
    "schedule": "drops",
    "drops": drops,
    "b1": 0.5,
    "b2": 0.9,
  }
  name = "open-magvit2-pretrain-262144"
  return _published_tokenizer("lfq-pretrain-262144", name, 1_500_000, rates, 3, 0.05)


def ibq_1024() -> Recipe:
  """IBQ of 1,024 codes."""
  return _tokenizer("ibq-1024", "ibq-1024", 330, (250, 300))


def ibq_8192() -> Recipe:
  """IBQ of 8,192 codes."""
  return _tokenizer("ibq-8192", "ibq-8192", 280, (250,))


def ibq_16384() -> Recipe:
  """IBQ of 16,384 codes."""
  return _tokenizer("ibq-16384", "ibq-16384", 330, (250, 300))


def ibq_262144() -> Recipe:
  """IBQ of 262,144 codes."""
  return _tokenizer("ibq-262144", "ibq-262144", 330, (250, 300))


RECIPES = {
  "nano": nano,
  "ibq-nano": ibq_nano,
  "lfq-256": lfq_256,
  "lfq-128": lfq_128,
  "lfq-pretrain-16384": lfq_pretrain_16384,
  "lfq-pretrain-262144": lfq_pretrain_262144,
  "ibq-1024": ibq_1024,
  "ibq-8192": ibq_8192,
  "ibq-16384": ibq_16384,
  "ibq-262144": ibq_262144,
}

CLAIMS: tuple[Claim, ...] = ()

# Published rows; measured numbers never share a column with them.
TABLES = (
  *(
    {
      "what": f"{name}, ImageNet validation: rFID",
      "published": rfid,
      "source": "TencentARC/SEED-Voken, docs/",
    }
    for name, rfid in (
      ("Open-MAGVIT2, 256 pixels, 16 x 16 tokens", "1.17"),
      ("Open-MAGVIT2, 128 pixels, 16 x 16 tokens", "1.18"),
      ("Open-MAGVIT2 128, 32 x 32 tokens", "0.34"),
      ("Open-MAGVIT2 pretrained, 16,384 codes", "2.55"),
      ("Open-MAGVIT2 pretrained, 262,144 codes", "1.67"),
      ("IBQ, 1,024 codes", "2.24"),
      ("IBQ, 8,192 codes", "1.87"),
      ("IBQ, 16,384 codes", "1.37"),
      ("IBQ, 262,144 codes", "1.00"),
    )
  ),
  *(
    {
      "what": f"{name}, ImageNet 256: FID / IS",
      "published": values,
      "source": "TencentARC/SEED-Voken, docs/",
    }
    for name, values in (
      ("Open-MAGVIT2-AR-B (343M)", "3.08 / 258.26"),
      ("Open-MAGVIT2-AR-L (804M)", "2.51 / 271.70"),
      ("Open-MAGVIT2-AR-XL (1.5B)", "2.33 / 271.77"),
      ("IBQ-AR-B (342M)", "2.88 / 254.73"),
      ("IBQ-AR-L (649M)", "2.45 / 267.48"),
      ("IBQ-AR-XL (1.1B)", "2.14 / 278.99"),
      ("IBQ-AR-XXL (2.1B)", "2.05 / 286.73"),
    )
  ),
)
