"""MaskGIT (arXiv 2202.04200) and TiTok's masked generators (arXiv 2406.07550).

  tokzoo train experiments/image/maskgit.py --recipe nano
  tokzoo reproduce maskgit

Lab record
  nano            MaskGIT on 16 tokens of 64 codes of scikit-learn's digits, 2 CPU cores
  nano-imagebert, nano-uvit   TiTok's generators on the same tokens, with guidance
  nano-tokenizer  the LlamaGen VQGAN that makes these tokens (packaged: llamagen-digits-nano)
  maskgit-imagenet-256, -512   the published MaskGIT: Adam 1e-4, betas 0.9 and 0.96, decay
                  0.045, 5,000 steps of warm-up, batch 256, 2M steps
  titok-*         the published generators of TiTok: 2e-4 to 1e-5, betas 0.9 and 0.96, decay
                  0.03, batch 2,048, 500k steps

What was not published and is chosen here: the shape of MaskGIT's learning rate after warm-up
(constant), and the warm-up of TiTok's generators (10,000 steps, as its tokenizers').
"""

from tokzoo.data import DataConfig
from tokzoo.generators.maskgit import ImageBertConfig, MaskGITConfig, UViTConfig
from tokzoo.generators.maskgit.imagebert import PRESETS as IMAGEBERT
from tokzoo.generators.maskgit.original import PRESETS as ORIGINAL
from tokzoo.generators.maskgit.uvit import PRESETS as UVIT
from tokzoo.tokenizers.image import llamagen
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.tasks import Generation, Reconstruction

SYSTEM = "maskgit"

# ---------------------------------------------------------------- nano: a 2-core CPU

TOKENIZER = llamagen.Config(
  image_size=8,
  channels=1,
  width=16,
  multipliers=(1, 2),
  blocks=1,
  latent_dim=32,
  groups=4,
  num_codes=64,
)
"""8 x 8 pixels to 4 x 4 tokens of 6 bits."""

SMALL = {
  "grid": (4, 4),
  "vocab": TOKENIZER.num_codes,
  "width": 96,
  "layers": 2,
  "heads": 4,
  "mlp_width": 192,
  "num_classes": 10,
  "dropout": 0.0,
}


def _digits(split: str) -> DataConfig:
  return DataConfig(
    source="digits", split=split, channels=1, size=8, crop="none", threads=1
  )


def nano_tokenizer() -> Recipe:
  """The tokenizer of the nano generators: digits to 96 bits."""
  return Recipe(
    system="llamagen",
    name="nano-tokenizer",
    task=Reconstruction(
      model=TOKENIZER,
      distance="l2",
      weights={"codebook": 1.0, "commitment": 0.25},
    ),
    data=_digits("train"),
    batch_size=64,
    steps=1500,
    optimizers={
      "model": Optimizer(peak_lr=2e-3, warmup_steps=50, b2=0.99, clip_norm=1.0)
    },
    evaluators={"held_out": Evaluator(data=_digits("test"))},
    save_every=500,
  )


def _nano(name: str, model, sampling: dict) -> Recipe:
  # Few steps: 1,437 digits are soon known by heart.
  return Recipe(
    system=SYSTEM,
    name=name,
    task=Generation(model=model),
    data=_digits("train"),
    batch_size=128,
    steps=400,
    optimizers={
      "model": Optimizer(peak_lr=2e-3, warmup_steps=50, b2=0.96, clip_norm=1.0)
    },
    evaluators={"held_out": Evaluator(data=_digits("test"))},
    ema=0.98,
    save_every=200,
    tokenizer="llamagen-digits-nano",
    sampling=sampling,
  )


def nano() -> Recipe:
  """Class-conditional MaskGIT of digits."""
  sampling = {"steps": 8, "choice_temperature": 4.5}
  return _nano("nano", MaskGITConfig(**SMALL), sampling)


def nano_imagebert() -> Recipe:
  """The same with TiTok's ImageBert."""
  sampling = {"steps": 8, "guidance": 1.0, "temperature": 4.5}
  return _nano("nano-imagebert", ImageBertConfig(**SMALL), sampling)


def nano_uvit() -> Recipe:
  """The same with TiTok's UViT."""
  sampling = {"steps": 8, "guidance": 1.0, "temperature": 4.5}
  return _nano("nano-uvit", UViTConfig(**SMALL), sampling)


# ---------------------------------------------------------------- as published


def _published(name: str, model, tokens: str, **settings) -> Recipe:
  # Tokens are made beforehand (`tokzoo tokenize-dataset`).
  return Recipe(
    system=SYSTEM,
    name=name,
    task=Generation(model=model),
    data=DataConfig(source=f"tokens:data/{tokens}", threads=16, prefetch=8),
    compute_dtype="bfloat16",
    remat="blocks",
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=5_000,
    keep=5,
    log_every=100,
    **settings,
  )


def _maskgit(name: str, tokens: str) -> Recipe:
  return _published(
    name,
    ORIGINAL[name],
    tokens,
    batch_size=256,
    steps=2_000_000,
    optimizers={
      "model": Optimizer(
        peak_lr=1e-4,
        schedule="constant",
        warmup_steps=5_000,
        b2=0.96,
        weight_decay=0.045,
      )
    },
    sampling={"steps": 8, "choice_temperature": 4.5},
  )


def maskgit_imagenet_256() -> Recipe:
  """ImageNet at 256 pixels, 16 x 16 tokens."""
  return _maskgit("maskgit-imagenet-256", "imagenet-256-maskgit-vqgan")


def maskgit_imagenet_512() -> Recipe:
  """ImageNet at 512 pixels, 32 x 32 tokens."""
  return _maskgit("maskgit-imagenet-512", "imagenet-512-maskgit-vqgan")


def _titok(name: str, model, tokens: str, sampling: dict) -> Recipe:
  return _published(
    name,
    model,
    tokens,
    batch_size=2048,
    steps=500_000,
    optimizers={
      "model": Optimizer(
        peak_lr=2e-4,
        end_lr=1e-5,
        warmup_steps=10_000,
        b2=0.96,
        weight_decay=0.03,
        clip_norm=1.0,
      )
    },
    sampling=sampling,
  )


def titok_l32_imagebert() -> Recipe:
  """TiTok-L-32's generator."""
  sampling = {
    "steps": 8,
    "temperature": 9.5,
    "guidance": 4.5,
    "guidance_decay": "linear",
  }
  name = "titok-l32-imagebert"
  return _titok(name, IMAGEBERT[name], "imagenet-titok-l32", sampling)


def titok_b64_imagebert() -> Recipe:
  """TiTok-B-64's generator."""
  sampling = {
    "steps": 8,
    "temperature": 11.0,
    "guidance": 3.0,
    "guidance_decay": "linear",
  }
  name = "titok-b64-imagebert"
  return _titok(name, IMAGEBERT[name], "imagenet-titok-b64", sampling)


def titok_s128_uvit() -> Recipe:
  """TiTok-S-128's generator."""
  sampling = {
    "steps": 64,
    "temperature": 2.8,
    "guidance": 6.9,
    "guidance_decay": "power-cosine",
    "guidance_power": 3.0,
  }
  name = "titok-s128-uvit"
  return _titok(name, UVIT[name], "imagenet-titok-s128", sampling)


RECIPES = {
  "nano": nano,
  "nano-imagebert": nano_imagebert,
  "nano-uvit": nano_uvit,
  "nano-tokenizer": nano_tokenizer,
  "titok-l32-imagebert": titok_l32_imagebert,
  "titok-b64-imagebert": titok_b64_imagebert,
  "maskgit-imagenet-256": maskgit_imagenet_256,
  "maskgit-imagenet-512": maskgit_imagenet_512,
  "titok-s128-uvit": titok_s128_uvit,
}
