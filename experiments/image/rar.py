"""RAR (arXiv 2411.00776): autoregressive on random orders, annealed to raster.

  tokzoo train experiments/image/rar.py --recipe nano
  tokzoo reproduce rar

Lab record
  nano               16 tokens of 64 codes of scikit-learn's digits, the order annealed from
                     random to raster over the run, 2 CPU cores
  rar-b, -l, -xl, -xxl   as published, on the tokens of MaskGIT's VQGAN (ten crops): AdamW
                     4e-4 to 1e-5, betas 0.9 and 0.96, decay 0.03, 62,500 steps of warm-up,
                     batch 2,048, 250k steps (400 epochs), clipping at 1, bf16, no averaging;
                     random orders until step 125,000, raster from step 187,500
"""

from tokzoo.data import DataConfig
from tokzoo.generators.rar import PRESETS, Config
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.tasks import Generation

SYSTEM = "rar"

# ---------------------------------------------------------------- nano: a 2-core CPU

_STEPS = 400

SMALL = Config(
  grid=(4, 4),
  vocab=64,
  width=96,
  layers=2,
  heads=4,
  mlp_width=192,
  num_classes=10,
  spare_positions=2,
  spare_conditions=2,
  dropout=0.0,
  anneal=(_STEPS // 2, _STEPS * 3 // 4),
)


def _digits(split: str) -> DataConfig:
  return DataConfig(
    source="digits", split=split, channels=1, size=8, crop="none", threads=1
  )


def nano() -> Recipe:
  """Class-conditional RAR of digits."""
  return Recipe(
    system=SYSTEM,
    name="nano",
    task=Generation(model=SMALL),
    data=_digits("train"),
    batch_size=128,
    steps=_STEPS,
    optimizers={
      "model": Optimizer(peak_lr=2e-3, warmup_steps=50, b2=0.96, clip_norm=1.0)
    },
    evaluators={"held_out": Evaluator(data=_digits("test"))},
    ema=0.98,
    save_every=200,
    tokenizer="llamagen-digits-nano",
    sampling={"guidance": 2.0, "guidance_power": 1.0, "temperature": 1.0},
  )


# ---------------------------------------------------------------- as published


def _published(name: str, guidance: float, power: float, temperature: float) -> Recipe:
  # Tokens are made beforehand (`tokzoo tokenize-dataset`), of ten crops a picture.
  return Recipe(
    system=SYSTEM,
    name=name,
    task=Generation(model=PRESETS[name]),
    data=DataConfig(
      source="tokens:data/imagenet-256-maskgit-vqgan", threads=16, prefetch=8
    ),
    batch_size=2048,
    steps=250_000,
    optimizers={
      "model": Optimizer(
        peak_lr=4e-4,
        end_lr=1e-5,
        warmup_steps=62_500,
        b2=0.96,
        weight_decay=0.03,
        clip_norm=1.0,
      )
    },
    compute_dtype="bfloat16",
    remat="blocks",
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_500,
    keep=5,
    log_every=100,
    sampling={
      "guidance": guidance,
      "guidance_power": power,
      "temperature": temperature,
    },
  )


def rar_b() -> Recipe:
  """RAR-B."""
  return _published("rar-b", 16.0, 2.75, 1.0)


def rar_l() -> Recipe:
  """RAR-L."""
  return _published("rar-l", 15.5, 2.5, 1.02)


def rar_xl() -> Recipe:
  """RAR-XL."""
  return _published("rar-xl", 6.9, 1.5, 1.02)


def rar_xxl() -> Recipe:
  """RAR-XXL."""
  return _published("rar-xxl", 8.0, 1.2, 1.02)


RECIPES = {
  "nano": nano,
  "rar-b": rar_b,
  "rar-l": rar_l,
  "rar-xl": rar_xl,
  "rar-xxl": rar_xxl,
}
