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
perceptual, adversarial, code and REPA terms without weights): smooth L1 and LPIPS 1, adversarial
0.1, code 0.01, a constant temperature of 0.1. Left out: REPA, whose teacher's features no image
source brings; the mixed resolutions of the tokenizer's last stage; the second stage of the
generators, LAION-COCO 3:1 with synthetic pictures.

Claims 1 to 3 stand against a codebook that is kept alive (62 to 74 % of its 1,024 codes are in
use). Until its reset went by a tenth of the mean count, the threshold was twice the mean: 22 to 37 %
were in use, and the first claim held for three of three seeds. Now the first holds for two, the other is
2 % behind, and the second for two, the other 11 % behind. Binary tokens of 10 bits, trained with no
loss of entropy, use 6 to 8 % of their combinations, so that the third holds for none.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tokzoo.contract import Batch, Variables
from tokzoo.data import DataConfig, evaluation_batches, loader
from tokzoo.data.packaged import digits, photo_crops
from tokzoo.generators.instella_t2i import ARConfig, DiffusionConfig
from tokzoo.generators.instella_t2i.diffusion import add_noise
from tokzoo.quantizers import Ema, PeriodicReset, VectorQuantizer
from tokzoo.tokenizers.image.instella_t2i import PRESETS, Config, InstellaBAE
from tokzoo.tokens import Tokens
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.adversary import Adversary
from tokzoo.train.claims import Claim, fit
from tokzoo.train.perception import Perceptual
from tokzoo.train.tasks import Generation, Reconstruction

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
  # Crops of 16 pixels are cut to 4 tiles: one picture read feeds 4 examples.
  return photo_crops(split, 16 if split == "train" else 32, views=300)


def nano() -> Recipe:
  """Photo tokenizer: held-out crops after about a minute on 2 cores."""
  return Recipe(
    system=SYSTEM,
    name="nano",
    task=Reconstruction(model=PHOTOS, distance="l2", tile=True),
    data=_photos("train"),
    batch_size=64,
    steps=600,
    optimizers={
      "model": Optimizer(peak_lr=2e-3, warmup_steps=50, b2=0.99, clip_norm=1.0)
    },
    evaluators={"held_out": Evaluator(data=_photos("test"), batches=15)},
    save_every=300,
  )


def nano_digits() -> Recipe:
  """Digits tokenizer: 64 bits per digit."""
  return Recipe(
    system=SYSTEM,
    name="nano-digits",
    task=Reconstruction(model=DIGITS, distance="l2"),
    data=digits("train"),
    batch_size=64,
    steps=2000,
    optimizers={
      "model": Optimizer(peak_lr=3e-3, warmup_steps=50, b2=0.99, clip_norm=1.0)
    },
    evaluators={"held_out": Evaluator(data=digits("test"))},
    save_every=1000,
  )


def _nano_generator(name: str, model, sampling: dict) -> Recipe:
  # Few steps: 1,437 digits are soon known by heart, and the held-out loss rises again.
  return Recipe(
    system=SYSTEM,
    name=name,
    task=Generation(model=model),
    data=digits("train"),
    batch_size=128,
    steps=400,
    optimizers={
      "model": Optimizer(peak_lr=2e-3, warmup_steps=50, b2=0.99, clip_norm=1.0)
    },
    evaluators={"held_out": Evaluator(data=digits("test"))},
    ema=0.98,
    save_every=200,
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


LPIPS = ("weights/vgg16.pth", "weights/lpips-vgg.pth")


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
      perceptual=(Perceptual("lpips-vgg16", files=LPIPS),),
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
    accumulate=2,  # fits 32 GPUs of 80 GB
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_500,
    log_every=100,
    picture_every=5_000,
  )


def bae_512() -> Recipe:
  """The tokenizer at 512 pixels: first stage."""
  return _bae("bae-512", 512)


def bae_1024() -> Recipe:
  """The tokenizer at 1,024 pixels, from bae-512's weights. The authors' last stage has pictures
  of several resolutions."""
  recipe = _bae("bae-1024", 1024)
  # The discriminator comes trained with the other weights, and goes on from the first step.
  discriminator = dataclasses.replace(recipe.optimizers["discriminator"], start_step=0)
  return dataclasses.replace(
    recipe,
    task=dataclasses.replace(recipe.task, adversary=Adversary(weight=0.1)),
    optimizers={**recipe.optimizers, "discriminator": discriminator},
    batch_size=512,
    accumulate=8,
    steps=100_000,
    init_from="runs/instella-t2i-bae-512",
  )


def _t2i(name: str, model, sampling: dict) -> Recipe:
  # Tokens are made beforehand (`tokzoo tokenize-dataset`), bits of the published tokenizer. The
  # hidden states of AMD-OLMo-1B are added to their records by whoever runs it: `features` and
  # `text_mask`, see tokzoo/data/sources/tokens.py, one prompt in ten the empty one.
  return Recipe(
    system=SYSTEM,
    name=name,
    task=Generation(model=model),
    data=DataConfig(source="tokens:data/laion-coco-instella", threads=32, prefetch=8),
    batch_size=4096,
    steps=2_000_000,
    optimizers={
      "model": Optimizer(
        peak_lr=1e-4,
        start_lr=1e-7,
        schedule="constant",
        warmup_steps=1_000,
        clip_norm=1.0,
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

# ---------------------------------------------------------------- claims

_STEPS = 1000
_SIDE = 32
_HELD_OUT = 1000
"""Crops of each of three photographs: 24,000 tokens, enough to meet each of 1,024 codes."""

CROPS = Config(
  image_size=_SIDE,
  patch=8,
  num_tokens=8,
  bits=16,
  width=96,
  layers=2,
  head_dim=32,
  down_after=(),
  decoder_width=96,
  decoder_layers=2,
  decoder_head_dim=32,
  up_after=(),
  rope_dims=(8, 12, 12),
  span=None,
)


@dataclasses.dataclass(frozen=True)
class OneHotConfig(Config):
  """The same tokenizer with one code of a learnt codebook per token."""

  codes: int = 1024

  def build(self) -> "OneHotBAE":
    return OneHotBAE(self)


class OneHotBAE(InstellaBAE):
  """Baseline of the first claim: vector quantization with every remedy at hand."""

  config: OneHotConfig

  def make_quantizer(self):
    # Moving averages and dead-code reset: a codebook that does not collapse. 256 tokens a
    # step give a code a quarter of one on average, so that the threshold is relative to it.
    update = Ema(decay=0.95, reset=PeriodicReset())
    return VectorQuantizer(self.config.codes, self.config.width, update=update)

  def to_tokens(self, ids):
    return Tokens.from_ids(ids, self.config.codes)


def _crops(split: str, size: int, seed: int = 0, batch: int = 32) -> Iterator[Batch]:
  data = dataclasses.replace(_photos(split), size=size)
  if split == "train":
    return loader(data, batch, seed)
  return evaluation_batches(dataclasses.replace(data, repeat=_HELD_OUT), batch)


def _error(model: Config, variables: Variables, batches: list[Batch]) -> float:
  """Mean squared error of reconstructions, images in [-1, 1]."""
  module = model.build()

  @jax.jit
  def run(variables, x):
    return jnp.square(module.apply(variables, x).reconstruction - x).mean((1, 2, 3))

  each = [np.asarray(run(variables, b["image"]))[b["valid"]] for b in batches]
  return float(np.concatenate(each).mean())


@functools.cache  # three claims read the same measurement
def binary_against_one_hot(seed: int) -> dict[str, float]:
  """Held-out error of binary and one-hot tokens at equal token count and equal bits."""
  held_out = list(_crops("test", _SIDE))
  plain = {f.name: getattr(CROPS, f.name) for f in dataclasses.fields(Config)}
  found = {}
  for name, model, weights in (
    ("binary, 16 bits", CROPS, {}),
    ("binary, 10 bits", dataclasses.replace(CROPS, bits=10), {}),
    ("one-hot, 1,024 codes", OneHotConfig(**plain), {"commitment": 0.25}),
  ):
    task = Reconstruction(model=model, distance="l2", weights=weights)
    variables = fit(task, _crops("train", _SIDE, seed), _STEPS, seed)
    found[f"mse {name}"] = _error(model, variables, held_out)
    if model is not CROPS:  # both of the others have 1,024 codes
      encode = jax.jit(
        lambda v, x, m=model: m.build().apply(v, x, method="encode").array
      )
      codes = np.concatenate(
        [
          np.asarray(encode(variables, b["image"]))[b["valid"]].ravel()
          for b in held_out
        ]
      )
      found[f"codes used {name}"] = len(np.unique(codes)) / 1024
  return found


def diffusion_learns(seed: int) -> dict[str, float]:
  """Cross-entropy at t = 1/2 against marginals; distance of samples to held-out codes."""
  tokenizer = DIGITS.build()
  task = Reconstruction(model=DIGITS, distance="l2")
  codes_of = fit(task, loader(digits("train"), 64, seed), 1500, seed, 3e-3)
  encode = jax.jit(lambda v, x: tokenizer.apply(v, x, method="encode").packed)

  def tokens_of(split: str) -> tuple[np.ndarray, np.ndarray]:
    packed, labels = [], []
    for batch in evaluation_batches(digits(split), 64):
      packed.append(np.asarray(encode(codes_of, batch["image"]))[batch["valid"]])
      labels.append(batch["label"][batch["valid"]])
    return np.concatenate(packed), np.concatenate(labels)

  packed, labels = tokens_of("train")
  test_packed, test_labels = tokens_of("test")

  def batches() -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    while True:
      rows = rng.integers(len(packed), size=128)
      yield {"packed": packed[rows], "label": labels[rows]}

  model = DiffusionConfig(**_SMALL)
  module = model.build()
  variables = fit(Generation(model=model), batches(), _STEPS, seed)

  def bits_of(packed: np.ndarray) -> np.ndarray:
    tokens = Tokens(packed=jnp.asarray(packed), bits=DIGITS.bits)
    return np.asarray(tokens.unpacked(), np.float32)

  bits, train_bits = bits_of(test_packed), bits_of(packed)
  noise_rng, sample_rng = jax.random.split(jax.random.key(100 + seed))
  half = jnp.full(len(bits), 0.5)
  x_t = add_noise(jnp.asarray(bits), half, jax.random.uniform(noise_rng, bits.shape))
  logits = jax.jit(lambda v, x, y: module.apply(v, x, half, y, method="bit_logits"))(
    variables, x_t, test_labels
  )
  signs = 2 * bits - 1
  on = np.clip(train_bits.mean(0), 1e-3, 1 - 1e-3)
  marginal = -(bits * np.log(on) + (1 - bits) * np.log(1 - on)).mean()
  # The best that can be said of a bit from its own noisy value alone.
  seen = np.asarray(x_t) * 0.5 + 0.25
  posterior = on * seen / (on * seen + (1 - on) * (1 - seen))
  alone = -(bits * np.log(posterior) + (1 - bits) * np.log(1 - posterior)).mean()
  drawn = jax.jit(
    lambda v, rng, y: (
      module.apply(v, rng, y, steps=20, guidance=0, method="sample").packed
    )
  )(variables, sample_rng, test_labels)
  rng = np.random.default_rng(seed)
  independent = (rng.random(bits.shape) < on).astype(np.float32)
  return {
    "cross-entropy at t=1/2 (nats)": float(jnp.mean(jax.nn.softplus(-signs * logits))),
    "marginals (nats)": float(marginal),
    "own noisy bit (nats)": float(alone),
    "sliced Wasserstein, samples": _sliced(bits_of(np.asarray(drawn)), bits, rng),
    "sliced Wasserstein, marginals": _sliced(independent, bits, rng),
    "sliced Wasserstein, training codes": _sliced(train_bits[: len(bits)], bits, rng),
  }


def _sliced(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> float:
  """Sliced Wasserstein-1 distance of two sets of codes of one size, 512 directions."""
  directions = rng.standard_normal((x[0].size, 512))
  directions /= np.linalg.norm(directions, axis=0)
  a, b = (np.sort(z.reshape(len(z), -1) @ directions, axis=0) for z in (x, y))
  return float(np.abs(a - b).mean())


def stretched_positions(seed: int) -> dict[str, float]:
  """Held-out error at 1.5 times the resolution, with and without stretched positions."""
  large = _SIDE * 3 // 2
  trained = dataclasses.replace(CROPS, span=_SIDE)

  def shrunk(batches: Iterator[Batch]) -> Iterator[Batch]:
    shape = (_SIDE, _SIDE, 3)
    resize = jax.jit(jax.vmap(lambda x: jax.image.resize(x, shape, "bicubic")))
    for batch in batches:
      small = np.clip(np.asarray(resize(batch["image"])), -1, 1)
      yield {**batch, "image": small}

  task = Reconstruction(model=trained, distance="l2")
  variables = fit(task, shrunk(_crops("train", large, seed)), _STEPS, seed)
  held_out = list(_crops("test", large))
  return {
    "mse at 32 pixels": _error(trained, variables, list(shrunk(iter(held_out)))),
    "mse at 48 pixels, stretched": _error(trained, variables, held_out),
    "mse at 48 pixels, integers": _error(
      dataclasses.replace(trained, span=None), variables, held_out
    ),
  }


_SHEET = "arXiv 2506.21022, at the scale of this repository"
_AGAINST = (
  f"photo crops of 32 x 32 pixels, 8 tokens, {_STEPS:,} steps of 32; held-out photographs, "
  f"{_HELD_OUT:,} crops of each; one-hot with moving averages and dead-code reset below a tenth "
  "of the mean count"
)

CLAIMS = (
  Claim(
    "At equal token count binary tokens (16 bits) reconstruct better than one-hot tokens "
    "(1,024 codes)",
    source=_SHEET,
    measure=binary_against_one_hot,
    holds=lambda n: n["mse binary, 16 bits"] < n["mse one-hot, 1,024 codes"],
    setting=_AGAINST,
  ),
  Claim(
    "At equal bits (10 a token) binary tokens come within 10 % of one-hot tokens, or better",
    source=_SHEET,
    measure=binary_against_one_hot,
    holds=lambda n: n["mse binary, 10 bits"] <= 1.1 * n["mse one-hot, 1,024 codes"],
    setting=_AGAINST,
  ),
  Claim(
    "Binary tokens of 10 bits use at least 99 % of their 1,024 codes",
    source=_SHEET,
    measure=binary_against_one_hot,
    holds=lambda n: n["codes used binary, 10 bits"] >= 0.99,
    setting=_AGAINST,
  ),
  Claim(
    "Binary diffusion learns the codes: cross-entropy at t = 1/2 at least 10 % below that of "
    "the marginals, and samples nearer to held-out codes than independent marginals are",
    source=_SHEET,
    measure=diffusion_learns,
    holds=lambda n: (
      n["cross-entropy at t=1/2 (nats)"] <= 0.9 * n["marginals (nats)"]
      and n["sliced Wasserstein, samples"] < n["sliced Wasserstein, marginals"]
    ),
    setting=f"digits of 8 x 8 pixels, 8 tokens of 8 bits, {_STEPS:,} steps of 128; 20 "
    "sampling steps without guidance",
  ),
  Claim(
    "With positions stretched to the trained span, the error at 1.5 times the resolution is "
    "at most that with integer positions (same weights)",
    source=_SHEET,
    measure=stretched_positions,
    holds=lambda n: n["mse at 48 pixels, stretched"] <= n["mse at 48 pixels, integers"],
    setting=f"photo crops of 48 pixels shrunk to 32 in training, {_STEPS:,} steps of 32; "
    f"held-out crops of 48 pixels, {_HELD_OUT:,} of each of three photographs",
  ),
)

# Published rows; measured numbers never share a column with them. The paper's tables of
# GenEval, CLIP, ImageReward and rFID need its data: none is repeated here from memory.
TABLES = (
  {
    "what": "tokens for a picture of 1,024 x 1,024 pixels",
    "published": "128, against 4,096 of a standard VQ-VAE",
    "source": "arXiv 2506.21022, abstract",
  },
)
