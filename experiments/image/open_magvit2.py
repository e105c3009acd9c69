"""Open-MAGVIT2 (arXiv 2409.04410) and IBQ (arXiv 2412.02692): tokenizers and their Llamas.

  tokzoo train experiments/image/open_magvit2.py --recipe nano
  tokzoo reproduce open-magvit2

Lab record
  nano             LFQ: photographs, 16 x 16 pixels to 16 tokens of 10 bits, the whole
                   objective with EfficientNet-Lite0 (extra `features`); 2 CPU cores
  ibq-nano         IBQ of 256 codes on the same, in the same way
  nano-ar, nano-ibq-ar   the generators on 16 tokens of 64 codes of scikit-learn's digits
                   (llamagen-digits-nano); 6 bits are split 2 + 4
  lfq-*, ibq-*     the published tokenizers; they need LPIPS weights
  ar-*, ibq-ar-*   the published generators on tokens that were made beforehand

Published (configs/ of TencentARC/SEED-Voken @ b9a17ea): tokenizers Adam(0.5, 0.9) at 1e-4,
batch 256, divided by ten after 200 and 250 of 270 epochs (LFQ at 256 pixels), 250 and 300 of
350 (128 pixels) or of 330 (IBQ; 8,192 codes: 250 of 280), averaged at 0.999, fp16; pictures
are resized and cropped, never mirrored; pretrained ones 1.5M steps on centre crops. Generators
AdamW(0.9, 0.95), decay 0.05, batch 768, clipping at 1, fp16; the rate warms up from 0.005 of its
peak, stays there for 5 % of what is left and falls linearly.

Ours are bf16; IBQ-AR-XXL's weight decay stays at 0.05 where the source's rises to 0.08.
Pretraining's pictures (100M and 200M, LAION and others) are ImageNet's here. The schedule of IBQ's
pretraining is unverified: the released files name none (`sche_type` is empty), set a cosine's
warm-up, length and end, and divide the rate by ten at steps 50 and 100, which cannot be meant; ours
is that cosine. IBQ's discriminator steps before its generator looks at it, ours with it
(`tokzoo/train/adversary.py`). The video tokenizer (Open-MAGVIT2-Tokenizer-262144-Video, causal 3D
convolutions, UCF-101) is not here: its published row alone stands in the table.

Claim 1 stands at its third setting. From the published start, uniform in 1/4096 and below what one
step at a rate of 1e-3 moves a code, IBQ used 0.5 % of its codes (13 dB). From normal codes of
deviation 1, with a tenth of the squared losses, 36 % were in use after 1,000 steps of 16 (20 dB),
about as many as at the start: a token's entropy was 0.02 nats after 200 steps of a pilot, where
codes of deviation 0.1 leave it 0.36 and so a gradient to all codes. From those, with batches of
32, 92 to 93 % are in use after 600 steps (18.2 dB). The nearest code straight through, from the same
codes and with a tenth of its squared losses as well, uses 2.0 to 2.7 % (20.0 dB, so IBQ still pays
for its codes). The start does matter to it: from uniform codes with the full losses, as it was
measured before, it used 0.9 %; from normal ones 6.6 % with the full losses and 5.6 % with IBQ's own
sums (0.125 on codes, 0.2 on latents; one seed each), all far below half of IBQ's. Usage is also a
matter of how many tokens are looked at: on 300 crops of each held-out photograph, 3.5 tokens a code,
a pilot of 300 steps used 66 % of the codes, on 2,000 crops 86 %; hence the 2,000 (the authors' 50,000
pictures are 49 and more tokens a code).

Claim 2 was measured again with 2,000 steps, whose report is not kept: 20.8, 21.2 and 21.5 dB, 20.9,
20.9 and 21.6, 20.7, 21.5 and 21.8 by seed, so that it holds for 1 of 3. More bits do help, on the mean
by 0.4 dB a step, but one training differs from the next by as much as the bar.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np

from tokzoo.contract import Batch, Variables
from tokzoo.data import DataConfig, evaluation_batches, loader
from tokzoo.data.packaged import digits, imagenet_crops, photo_crops
from tokzoo.generators import llamagen as plain
from tokzoo.generators import open_magvit2 as generators
from tokzoo.nn.blur_discriminator import BlurDiscriminator
from tokzoo.nn.discriminator import PatchGAN
from tokzoo.tokenizers.image import llamagen
from tokzoo.tokenizers.image.open_magvit2 import IBQ_PRESETS, PRESETS, Config, IBQConfig
from tokzoo.tokens import Tokens
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.adversary import Adversary, LeCam
from tokzoo.train.claims import Claim, fit
from tokzoo.train.perception import Perceptual
from tokzoo.train.tasks import Generation, Reconstruction

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
  model: Config | IBQConfig,
  perceptual: Perceptual,
  critic: PatchGAN | BlurDiscriminator,
  lecam: float,
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


def _nano(name: str, model: Config | IBQConfig) -> Recipe:
  rates = {"warmup_steps": 5, "b1": 0.5, "b2": 0.9}
  return Recipe(
    system=SYSTEM,
    name=name,
    task=_objective(model, Perceptual(), PatchGAN(width=16, layers=2), 0.05),
    data=photo_crops("train", 16),
    batch_size=8,
    steps=60,
    optimizers={
      "model": Optimizer(name="adam", peak_lr=2e-3, **rates),
      "discriminator": Optimizer(name="adam", peak_lr=5e-4, **rates),
    },
    evaluators={
      "held_out": Evaluator(data=photo_crops("test", 16, views=300), batches=8)
    },
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


ADAM = Optimizer(name="adam", peak_lr=1e-4, b1=0.5, b2=0.9)
PATCHES = PatchGAN()
"""The critic of all recipes but one."""


def _by_epochs(
  name: str, preset: str, epochs: int, drops: tuple[int, ...], lecam: float = 0.05
) -> Recipe:
  """Training by epochs, with a tenth of the rate from each of `drops` on."""
  steps = tuple(_EPOCH * epoch for epoch in drops)
  optimizer = dataclasses.replace(ADAM, schedule="drops", drops=steps)
  return _tokenizer(name, preset, epochs * _EPOCH, optimizer, lecam=lecam)


def _pretraining(
  name: str, preset: str, optimizer: Optimizer, critic: Any = PATCHES
) -> Recipe:
  """1.5M steps, on what is in the middle of the pictures."""
  return _tokenizer(name, preset, 1_500_000, optimizer, critic, crop="center")


def _tokenizer(
  name: str,
  preset: str,
  steps: int,
  optimizer: Optimizer,
  critic: PatchGAN | BlurDiscriminator = PATCHES,
  lecam: float = 0.05,
  crop: Literal["random", "center"] = "random",
) -> Recipe:
  model = (PRESETS | IBQ_PRESETS)[preset]
  data, held_out = imagenet_crops(
    "tfds:imagenet2012", model.image_size, test="validation"
  )
  # The source resizes and crops, and never mirrors.
  data = dataclasses.replace(data, crop=crop, flip=False)
  perceptual = Perceptual("lpips-vgg16", files=LPIPS)
  return Recipe(
    system=SYSTEM,
    name=name,
    task=_objective(model, perceptual, critic, lecam),
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


COSINE = dataclasses.replace(ADAM, end_lr=1e-6, warmup_steps=5_000)
"""To a hundredth of the rate."""


def lfq_pretrain_16384() -> Recipe:
  """Open-MAGVIT2 of 14 bits, against the blurred discriminator (`use_blur`)."""
  preset, critic = "open-magvit2-pretrain-16384", BlurDiscriminator(128, 3, None, False)
  return _pretraining("lfq-pretrain-16384", preset, COSINE, critic)


def lfq_pretrain_262144() -> Recipe:
  """Open-MAGVIT2 of 18 bits: divided by ten at 800,000 and 1,000,000 steps."""
  drops = (800_000, 1_000_000)
  optimizer = dataclasses.replace(ADAM, schedule="drops", drops=drops)
  preset = "open-magvit2-pretrain-262144"
  return _pretraining("lfq-pretrain-262144", preset, optimizer)


def _ibq_pretraining(codes: int) -> Recipe:
  """IBQ on pretraining's pictures; the schedule is unverified."""
  return _pretraining(f"ibq-pretrain-{codes}", f"ibq-{codes}", COSINE)


BY_EPOCHS: dict[str, tuple[Any, ...]] = {
  "lfq-256": ("open-magvit2-256", 270, (200, 250)),
  "lfq-128": ("open-magvit2-128", 350, (250, 300), 0.01),
  "ibq-1024": ("ibq-1024", 330, (250, 300)),
  "ibq-8192": ("ibq-8192", 280, (250,)),
  "ibq-16384": ("ibq-16384", 330, (250, 300)),
  "ibq-262144": ("ibq-262144", 330, (250, 300)),
}
"""Preset, epochs, the epochs from which the rate is a tenth (again), and LeCam's weight."""


# ---------------------------------------------------------------- generators

SMALL = {
  "grid": 4,
  "width": 96,
  "layers": 2,
  "heads": 4,
  "num_classes": 10,
  "multiple_of": 32,
}
DIGITS = generators.FactorizedConfig(factors=(2, 4), intra_layers=1, **SMALL)
IBQ_DIGITS = generators.IBQConfig(vocab=64, **SMALL)


def _rates(peak: float, last: float, warmup_steps: int) -> Optimizer:
  """AdamW whose rate rises from 0.005 of its peak and falls to `last` of it."""
  return Optimizer(
    peak_lr=peak,
    start_lr=0.005 * peak,
    end_lr=last * peak,
    schedule="linear",
    hold=0.05,
    warmup_steps=warmup_steps,
    b2=0.95,
    weight_decay=0.05,
    clip_norm=1.0,
  )


def _nano_generator(name: str, model: generators.Config, sampling: dict) -> Recipe:
  return Recipe(
    system=SYSTEM,
    name=name,
    task=Generation(model=model),
    data=digits("train"),
    batch_size=128,
    steps=400,
    optimizers={"model": _rates(2e-3, 0.1, 20)},
    evaluators={"held_out": Evaluator(data=digits("test"))},
    save_every=200,
    tokenizer="llamagen-digits-nano",
    sampling=sampling,
  )


def nano_ar() -> Recipe:
  """Class-conditional digits, each token as 2 and 4 bits."""
  return _nano_generator("nano-ar", DIGITS, {"guidance": 1.9, "guidance_post": 2.0})


def nano_ibq_ar() -> Recipe:
  """Class-conditional digits by IBQ's generator."""
  sampling = {"guidance": 2.25, "temperature": 1.1}
  return _nano_generator("nano-ibq-ar", IBQ_DIGITS, sampling)


def _one(guidance: float, temperature: float) -> dict:
  """Settings of a sampler."""
  return {"guidance": guidance, "temperature": temperature}


def _two(guidance: float, guidance_post: float, temperature: float) -> dict:
  """Settings of a sampler of two parts."""
  post = {"guidance_post": guidance_post, "temperature_post": 1.0}
  return _one(guidance, temperature) | post


GENERATORS: dict[str, tuple[int, dict, dict]] = {
  "ar-b": (300, _two(1.9, 2.0, 1.0), {}),
  "ar-l": (300, _two(1.9, 1.9, 1.1), {}),
  "ar-xl": (350, _two(1.75, 1.85, 1.1), {"peak": 2.4e-4, "warmup": 7}),
  "ibq-ar-b": (300, _one(2.25, 1.1), {}),
  "ibq-ar-l": (350, _one(2.0, 1.0), {"warmup": 7}),
  "ibq-ar-xl": (400, _one(2.35, 1.15), {"warmup": 8, "last": 0.01}),
  "ibq-ar-xxl": (450, _one(2.85, 1.2), {"warmup": 9, "last": 0.01}),
}
"""Epochs, settings of the sampler, and what differs from B's schedule."""


def _generator(name: str) -> Recipe:
  # Tokens are made beforehand (`tokzoo tokenize-dataset`): those of Open-MAGVIT2 by the
  # tokenizer that its generators were trained with, open-magvit2-256-262144-raw.
  epochs, sampling, schedule = GENERATORS[name]
  epoch = 1_281_167 // 768
  presets = generators.FACTORIZED_PRESETS | generators.IBQ_PRESETS
  is_lfq = name not in presets
  model = presets[f"open-magvit2-{name}" if is_lfq else name]
  tokens = "imagenet-256-open-magvit2" if is_lfq else "imagenet-256-ibq-16384"
  return Recipe(
    system=SYSTEM,
    name=name,
    task=Generation(model=model),
    data=DataConfig(source=f"tokens:data/{tokens}", threads=16, prefetch=8),
    batch_size=768,
    steps=epochs * epoch,
    optimizers={"model": _published_rates(epoch, **schedule)},
    compute_dtype="bfloat16",
    remat="blocks",
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=5_000,
    keep=5,
    log_every=100,
    sampling=sampling,
  )


def _published_rates(
  epoch: int, *, peak: float = 3e-4, warmup: int = 6, last: float = 0.1
) -> Optimizer:
  """As `_rates`, warmed up for so many epochs. The source sets the decay of all its parameters
  anew at every step, so gains and biases decay as well."""
  return dataclasses.replace(_rates(peak, last, warmup * epoch), decay_axes=1)


RECIPES = {
  "nano": nano,
  "ibq-nano": ibq_nano,
  "nano-ar": nano_ar,
  "nano-ibq-ar": nano_ibq_ar,
  "lfq-pretrain-16384": lfq_pretrain_16384,
  "lfq-pretrain-262144": lfq_pretrain_262144,
  **{
    f"ibq-pretrain-{codes}": functools.partial(_ibq_pretraining, codes)
    for codes in (16384, 262144)
  },
  **{name: functools.partial(_by_epochs, name, *BY_EPOCHS[name]) for name in BY_EPOCHS},
  **{name: functools.partial(_generator, name) for name in GENERATORS},
}

# ---------------------------------------------------------------- claims

_STEPS = 1000
_BATCH = 16
_MANY_STEPS = 600
_MANY_BATCH = 32
_MANY_VIEWS = 2000
_AR_STEPS = 600
_AR_BATCH = 64

MANY = dataclasses.replace(IBQ_NANO, num_codes=4096, code_dim=64, codes_scale=0.1)
SMALL_IBQ_WEIGHTS = IBQ_WEIGHTS | {
  name: 0.1 * IBQ_WEIGHTS[name] for name in ("quantization", "commitment", "codebook")
}
"""Of small models: at the published weights hardly any code is in use."""
SMALL_VQ_WEIGHTS = {"codebook": 0.1, "commitment": 0.025}
"""Of the nearest code: a tenth of the published weights as well."""
_NETS = ("image_size", "width", "multipliers", "blocks", "latent_dim", "groups")
MANY_PLAIN = llamagen.Config(
  **{name: getattr(MANY, name) for name in (*_NETS, "num_codes", "code_dim")},
  is_unit_norm=False,
  codes_scale=MANY.codes_scale,
)
"""The nets and the first codes of `MANY` around the nearest code, straight through."""


def _crops(seed: int, batch: int = _BATCH) -> Iterator[Batch]:
  """An endless shuffled stream of crops of 16 x 16 pixels."""
  return loader(photo_crops("train", 16), batch, seed)


@functools.cache
def _held_out(views: int = 300) -> tuple[Any, ...]:
  """Batches of crops of held-out photographs, `views` of each."""
  found = evaluation_batches(photo_crops("test", 16, views=views), _BATCH)
  return tuple(batch["image"] for batch in found if batch["valid"].all())


@functools.cache
def _tokenizer_of_crops(model: Any, seed: int) -> Variables:
  """A tokenizer trained without perceptual term and adversary."""
  if isinstance(model, llamagen.Config):
    weights = SMALL_VQ_WEIGHTS
  else:
    weights = LFQ_WEIGHTS if isinstance(model, Config) else SMALL_IBQ_WEIGHTS
  task = Reconstruction(model=model, distance="l1", weights=weights)
  if model in (MANY, MANY_PLAIN):
    return fit(task, _crops(seed, _MANY_BATCH), _MANY_STEPS, seed, 1e-3)
  return fit(task, _crops(seed), _STEPS, seed, 1e-3)


def _measured(model: Any, seed: int, views: int = 300) -> dict[str, float]:
  """PSNR in dB of held-out crops, and the part of the codes that their tokens use."""
  module, variables = model.build(), _tokenizer_of_crops(model, seed)

  @jax.jit
  def run(picture: np.ndarray):
    output = module.apply(variables, picture)
    error = jax.numpy.square(output.reconstruction.clip(-1, 1) - picture).mean()
    return error, output.tokens.ids

  found = [run(picture) for picture in _held_out(views)]
  error = float(np.mean([error for error, _ in found]))
  ids = np.unique(np.concatenate([np.asarray(ids).ravel() for _, ids in found]))
  return {"psnr": 10 * np.log10(4 / error), "usage": len(ids) / model.num_codes}


def usage(seed: int) -> dict[str, float]:
  """Usage and PSNR of 4,096 codes of 64 features: IBQ, and nearest code straight through."""
  numbers = {}
  for name, model in (("IBQ", MANY), ("straight-through VQ", MANY_PLAIN)):
    for what, value in _measured(model, seed, _MANY_VIEWS).items():
      numbers[f"{what}: {name}"] = value
  return numbers


def bits(seed: int) -> dict[str, float]:
  """PSNR by bits of a token."""
  return {
    f"psnr: {bits} bits": _measured(dataclasses.replace(NANO, bits=bits), seed)["psnr"]
    for bits in (6, 10, 14)
  }


_SIZES = {**SMALL, "num_classes": 1, "dropout": 0.0}
FACTORS = generators.FactorizedConfig(factors=(4, 6), intra_layers=1, **_SIZES)
JOINT = plain.Config(vocab=2**10, **_SIZES)
"""The spatial transformer of `FACTORS` under one softmax."""


@functools.cache
def _tokens_of_crops(seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Ids of training crops and of held-out ones by the 10-bit tokenizer."""
  module, variables = NANO.build(), _tokenizer_of_crops(NANO, seed)
  encode = jax.jit(lambda x: module.apply(variables, x, method="encode").ids)
  crops = _crops(1000 + seed)
  train = [encode(next(crops)["image"]) for _ in range(500)]
  test = [encode(picture) for picture in _held_out()]
  return np.concatenate(train), np.concatenate(test)


def _nats(model: Any, seed: int) -> tuple[float, int]:
  """Held-out cross-entropy in nats a token, and the parameters of the heads."""
  train, test = _tokens_of_crops(seed)
  rng = np.random.default_rng(seed)

  def batches() -> Iterator[Batch]:
    while True:
      ids = train[rng.integers(len(train), size=_AR_BATCH)]
      yield {"ids": ids, "label": np.zeros(len(ids), np.int32)}

  variables = fit(Generation(model=model), batches(), _AR_STEPS, seed)
  module, labels = model.build(), np.zeros(len(test), np.int32)
  key = jax.random.key(0)  # no draw depends on it: nothing is dropped
  tokens = Tokens.from_ids(test, model.vocab)
  run = jax.jit(lambda v: module.apply(v, tokens, labels, key, method="loss")[0])
  heads = [variables["params"].get(name) for name in ("output", "head_0", "head_1")]
  return float(run(variables)), sum(leaf.size for leaf in jax.tree.leaves(heads))


def factors(seed: int) -> dict[str, float]:
  """Cross-entropy and parameters of a joint head and of a factorised one."""
  (joint, one), (both, two) = (_nats(model, seed) for model in (JOINT, FACTORS))
  return {
    "nats: joint head": joint,
    "nats: 4 + 6 bits": both,
    "head parameters: joint head": one,
    "head parameters: 4 + 6 bits": two,
  }


def _setting(steps: int, batch: int) -> str:
  return (
    f"photo crops of 16 x 16 pixels, 16 tokens, {steps:,} steps of {batch}, l1 and the "
    "quantizer's losses alone; held-out photographs"
  )


_CROPS = _setting(_STEPS, _BATCH)

CLAIMS = (
  Claim(
    "IBQ keeps 4,096 codes of 64 features alive: held-out usage of at least 0.8, and less than "
    "half of that for the nearest code straight through",
    source="arXiv 2412.02692, the sheet's bar",
    measure=usage,
    holds=lambda n: (
      n["usage: IBQ"] >= 0.8 and n["usage: straight-through VQ"] < n["usage: IBQ"] / 2
    ),
    setting=f"{_setting(_MANY_STEPS, _MANY_BATCH)}, {_MANY_VIEWS:,} crops of each; both "
    f"from normal codes of deviation {MANY.codes_scale}, with a tenth of their squared losses",
  ),
  Claim(
    "With LFQ reconstruction improves with bits at equal token count: 6, 10 and 14 bits, each "
    "by at least 0.3 dB",
    source="arXiv 2409.04410, the sheet's bar",
    measure=bits,
    holds=lambda n: (
      n["psnr: 10 bits"] >= n["psnr: 6 bits"] + 0.3
      and n["psnr: 14 bits"] >= n["psnr: 10 bits"] + 0.3
    ),
    setting=_CROPS,
  ),
  Claim(
    "A head of 4 + 6 bits models 1,024 codes within 2 % of the joint head's cross-entropy, "
    "with less than 10 % of its parameters (its transformer within a token not counted)",
    source="arXiv 2409.04410, the sheet's bar",
    measure=factors,
    holds=lambda n: (
      n["nats: 4 + 6 bits"] <= 1.02 * n["nats: joint head"]
      and n["head parameters: 4 + 6 bits"] < 0.1 * n["head parameters: joint head"]
    ),
    setting=f"tokens of the 10-bit tokenizer of the second claim; 2 layers of width 96, "
    f"{_AR_STEPS} steps of {_AR_BATCH}; held-out photographs",
  ),
)

# Published rows; measured numbers never share a column with them.
TABLES = tuple(
  {"what": what, "published": published, "source": "TencentARC/SEED-Voken, docs/"}
  for what, published in (
    ("rFID, ImageNet, Open-MAGVIT2, 256 pixels, 16 x 16 tokens", "1.17"),
    ("rFID, ImageNet, Open-MAGVIT2, 128 pixels, 16 x 16 tokens", "1.18"),
    ("rFID, ImageNet, Open-MAGVIT2 128 at 256 pixels, 32 x 32 tokens", "0.34"),
    ("rFID, COCO / ImageNet, Open-MAGVIT2 pretrained, 16,384 codes", "7.93 / 2.55"),
    ("rFID, COCO / ImageNet, Open-MAGVIT2 pretrained, 262,144 codes", "6.76 / 1.67"),
    (
      "rFID, COCO / ImageNet, original sizes, Open-MAGVIT2 pretrained, 16,384 codes",
      "6.65 / 1.39",
    ),
    (
      "rFID, COCO / ImageNet, original sizes, Open-MAGVIT2 pretrained, 262,144 codes",
      "5.10 / 0.78",
    ),
    (
      "rFVD, UCF-101, Open-MAGVIT2's video tokenizer (not here), 5 x 16 x 16 tokens",
      "16",
    ),
    ("rFID, ImageNet, IBQ, 1,024 codes", "2.24"),
    ("rFID, ImageNet, IBQ, 8,192 codes", "1.87"),
    ("rFID, ImageNet, IBQ, 16,384 codes", "1.37"),
    ("rFID, ImageNet, IBQ, 262,144 codes", "1.00"),
    ("rFID, COCO / ImageNet, IBQ pretrained, 16,384 codes", "7.67 / 2.06"),
    ("rFID, COCO / ImageNet, IBQ pretrained, 262,144 codes", "6.79 / 1.53"),
    ("FID / IS, ImageNet 256, Open-MAGVIT2-AR-B (343M)", "3.08 / 258.26"),
    ("FID / IS, ImageNet 256, Open-MAGVIT2-AR-L (804M)", "2.51 / 271.70"),
    ("FID / IS, ImageNet 256, Open-MAGVIT2-AR-XL (1.5B)", "2.33 / 271.77"),
    ("FID / IS, ImageNet 256, IBQ-AR-B (342M)", "2.88 / 254.73"),
    ("FID / IS, ImageNet 256, IBQ-AR-L (649M)", "2.45 / 267.48"),
    ("FID / IS, ImageNet 256, IBQ-AR-XL (1.1B)", "2.14 / 278.99"),
    ("FID / IS, ImageNet 256, IBQ-AR-XXL (2.1B)", "2.05 / 286.73"),
  )
)
