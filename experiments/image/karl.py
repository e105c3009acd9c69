"""KARL (arXiv 2507.07995) and ALIT (arXiv 2411.02393): as many tokens as an image needs.

  tokzoo train experiments/image/karl.py --recipe nano
  tokzoo reproduce karl

Lab record
  nano         KARL on crops of 16 pixels without a base: both passes, L1, perceptual
               (EfficientNet-Lite0), two critics in turns, quantizer, halting; 2 CPU cores
  nano-stage1  the codes of a frozen VQGAN (packaged: maskgit-vqgan-photos-nano)
  nano-alit    ALIT on the same codes: four rollouts of 4 tokens
  nano-alit-stage2   ALIT from pixels, the rollouts in turns
  karl-small-vqgan-stage1, -stage2, karl-small-vae-..., alit-small-..., alit-base-...
               as published

Small models start from larger weights than published and weigh the quantizer's losses by a
fiftieth: otherwise they take one code a place and draw the mean picture (L1 0.25).

The claims stand at their second setting; the objective is as it was. At the first, 2,000 steps of
16 crops of photographs and 512 codes, none held: 14 to 16 of 16 tokens stayed active whatever the
error, which is what the halting losses come to when the error says nothing about T (one of 3
seeds drew the mean picture, and the single pass was 14 to 19 % behind the search). On photographs
it can say little: their error falls as about T^-1/4, from 4 tokens to 16 by 30 %, and the bins
of the wished error are 15 to 50 % wide. So the data are now what the sheet names, random shapes,
with continuous tokens (published too), whose error falls to a fraction. Principal components of
such images as tokens, halted by the same losses with errors foreseen to 12 %, would meet all bars
(distances of 0.9, 1.0 and 0.9 to T of 4, 8 and 12). Codes of a codebook collapsed on shapes in a
grid: 2 of 512 in use after 300 steps.

As measured (10,000 steps of 32, 2 CPU cores): the mean count falls from 16 tokens to 1.2 over the
bins, and follows the size as PNG (rank correlations of 0.82 to 0.86); for one of 3 seeds it rises
by 0.18 between the errors 0.01 and 0.02, which no count of tokens reaches (0.1 is allowed). The
error of 4 tokens leaves 7 to 9 active, that of 8 leaves 12 to 15 and that of 12 leaves 14: the
objective weighs an active token of a short T more than a halted one, so an unsure count is too
high, most where T is small. The same network trained on prefixes alone for as many steps draws
better (L1 0.029 against 0.036 with 13 tokens), so the search stays ahead, at worst by 32 to 53 %.
After 6,000 steps all of this was further off (correlations of 0.78 to 0.81, 9 to 11 active for
4), but for the count, which rose by 0.11. Longer training and a wider network are next.

Published (scripts and code): AdamW, betas 0.9 and 0.95, decay 0.05 on matrices and tables,
lr 1e-4 * batch / 256 (ALIT's stage 1: 1.5e-4), 20 epochs of warm-up, half a cosine to 0,
clipping at 3, EMA 0.9999; KARL 200 epochs at 512 and 400 at 144, ALIT 200 at 256 and 200 at
96; crops of 0.8 to 1 of the picture, flips. In stage 2 no adversary for 21 epochs, weight 0.2
for 80 more, then 0.8; the critics' decay is 0.01. Steps here are epochs of ImageNet-1k, though
most released weights are of ImageNet-100. Our random crop has one scale; the decay is the
trainer's, on everything with two axes or more; our EMA goes on where the source begins it anew
every epoch. The source names more pairs of encoder and decoder sizes, of which no weights were
released: a `Config` makes each. MAGE's VQGAN and MAR's KL-VAE
are not on a hub: the recipes on a VQGAN start from MaskGIT's, which has its shape, those on a
KL-VAE from a file of yours (`init_from`), converted under a KARL preset.
"""

import dataclasses
import functools
import io
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from PIL import Image

from tokzoo.contract import Batch, Losses, Variables
from tokzoo.data.packaged import imagenet_crops, photo_crops
from tokzoo.losses.reconstruction import l1
from tokzoo.nn.discriminator import PatchGAN
from tokzoo.nn.prefix import prefix_mask
from tokzoo.tokenizers.image import maskgit_vqgan
from tokzoo.tokenizers.image.karl import (
  ALIT_PRESETS,
  ERRORS,
  KARL,
  PRESETS,
  ALITConfig,
  ALITDistillation,
  ALITFinetuning,
  Config,
  Critics,
  Distillation,
  Finetuning,
  Size,
)
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.claims import Claim, fit
from tokzoo.train.perception import Perceptual

SYSTEM = "karl"

# ---------------------------------------------------------------- nano: a 2-core CPU

TINY = Size(width=64, layers=2, heads=2)

CROPS = Config(
  image_size=16,
  patch=4,
  num_tokens=16,
  max_tokens=24,
  positions=8,
  encoder=TINY,
  decoder=TINY,
  halting_width=64,
  num_codes=512,
  code_dim=8,
  base=None,
  init_std=0.1,
)
"""KARL without a base, small."""
SMALL_VQ = {"commitment": 0.02 * 0.25, "codebook": 0.02}
"""Of small models: at the published weights all pictures take one code a place before the
reconstruction pulls them apart."""
LENGTHS = tuple(range(1, 24))
"""To 1.4 times the budget, as published."""

TEACHER = maskgit_vqgan.Config(
  image_size=16,
  width=32,
  multipliers=(1, 2, 2),
  res_blocks=1,
  code_dim=8,
  num_codes=64,
  norm_groups=2,
)
"""The sizes of maskgit-vqgan-photos-nano."""

ROLLOUTS = ALITConfig(
  image_size=16,
  patch=4,
  num_tokens=16,
  tokens_per_rollout=4,
  encoder=TINY,
  decoder=TINY,
  num_codes=512,
  code_dim=8,
  base=TEACHER,
  init_std=0.1,
)
"""ALIT on a small VQGAN."""


def _critics(count: int, each: int, weights: tuple[tuple[int, float], ...]) -> Critics:
  network = PatchGAN(width=16, layers=1)
  return Critics(network, count, each, weights, cycle=3)


def _nano(name: str, task, batch: int, steps: int, **more) -> Recipe:
  model = Optimizer(peak_lr=2e-3, warmup_steps=steps // 10, b2=0.95, clip_norm=3.0)
  optimizers = {"model": model}
  if "discriminator" in task.players:
    optimizers["discriminator"] = dataclasses.replace(model, peak_lr=5e-4)
  size = task.model.image_size
  return Recipe(
    system=SYSTEM,
    name=name,
    task=task,
    data=photo_crops("train", size),
    batch_size=batch,
    steps=steps,
    optimizers=optimizers,
    evaluators={"held_out": Evaluator(data=photo_crops("test", size), batches=4)},
    save_every=steps,
    **more,
  )


def nano() -> Recipe:
  """Stage 2 with its whole objective, on photo crops."""
  task = Finetuning(
    model=CROPS,
    lengths=LENGTHS,
    weights=SMALL_VQ,
    perceptual=(Perceptual("efficientnet-lite0", weight=0.1),),
    critics=_critics(2, 8, ((0, 0.0), (20, 0.2), (40, 0.8))),
  )
  return _nano("nano", task, 4, 60)


def nano_stage1() -> Recipe:
  """Stage 1: the codes of a packaged VQGAN."""
  model = dataclasses.replace(CROPS, base=TEACHER)
  task = Distillation(model=model, lengths=LENGTHS)
  return _nano("nano-stage1", task, 16, 200, init_from="maskgit-vqgan-photos-nano")


def nano_alit() -> Recipe:
  """ALIT's stage 1 on the same codes."""
  task = ALITDistillation(model=ROLLOUTS)
  return _nano("nano-alit", task, 16, 200, init_from="maskgit-vqgan-photos-nano")


def nano_alit_stage2() -> Recipe:
  """ALIT's stage 2, on what nano-alit left."""
  task = ALITFinetuning(
    model=ROLLOUTS,
    perceptual=(Perceptual("efficientnet-lite0", weight=0.1),),
    critics=_critics(4, 4, ((0, 0.0), (20, 0.2), (40, 0.8))),
  )
  return _nano("nano-alit-stage2", task, 4, 60, init_from="runs/karl-nano-alit")


# ---------------------------------------------------------------- as published

PICTURES = 1_281_167
LPIPS = ("weights/vgg16.pth", "weights/lpips-vgg.pth")


def _published(preset: str, stage: int) -> Recipe:
  """200 or 400 epochs of ImageNet."""
  is_karl = preset in PRESETS
  model: Any = PRESETS[preset] if is_karl else ALIT_PRESETS[preset]
  batch = {(True, 1): 512, (True, 2): 144, (False, 1): 256, (False, 2): 96}[
    is_karl, stage
  ]
  epochs = 400 if (is_karl, stage) == (True, 2) else 200
  epoch = PICTURES // batch
  if stage == 1:
    task = (Distillation if is_karl else ALITDistillation)(model=model)
  else:
    task = (Finetuning if is_karl else ALITFinetuning)(
      model=model,
      perceptual=(Perceptual("lpips-vgg16", files=LPIPS),),
      critics=Critics(weights=((0, 0.0), (21 * epoch, 0.2), (101 * epoch, 0.8))),
    )
  optimizer = Optimizer(
    peak_lr=(1e-4 if is_karl or stage == 2 else 1.5e-4) * batch / 256,
    warmup_steps=20 * epoch,
    b2=0.95,
    weight_decay=0.05,
    clip_norm=3.0,
  )
  # The critics have PyTorch's decay, on gains and biases too.
  critics = dataclasses.replace(optimizer, weight_decay=0.01, decay_axes=1)
  data, held_out = imagenet_crops("arrayrecord:data/imagenet", resize=288)
  name = f"{preset}-stage{stage}"
  has_vqgan = isinstance(model.base, maskgit_vqgan.Config)
  first = "maskgit-vqgan" if has_vqgan else "weights/kl-vae.safetensors"
  return Recipe(
    system=SYSTEM,
    name=name,
    task=task,
    data=data,
    batch_size=batch,
    steps=epochs * epoch,
    optimizers={
      player: critics if player == "discriminator" else optimizer
      for player in task.players
    },
    evaluators={"held_out": Evaluator(data=held_out, every=10_000, batches=10)},
    ema=0.9999,
    compute_dtype="bfloat16",
    remat="blocks",
    init_from=first if stage == 1 else f"runs/karl-{preset}-stage1",
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_500,
    log_every=100,
    picture_every=5_000,
  )


_RELEASED = (
  "alit-small-vqgan",
  "alit-small-vqgan-continuous",
  "alit-small-vae",
  "alit-small-vae-continuous",
  "alit-base-vqgan",
  "alit-semilarge-vqgan",
  "karl-small-vae-continuous",
  "karl-small-vae",
  "karl-small-vqgan-continuous",
  "karl-small-vqgan",
)

RECIPES = {
  "nano": nano,
  "nano-stage1": nano_stage1,
  "nano-alit": nano_alit,
  "nano-alit-stage2": nano_alit_stage2,
  **{
    f"{preset}-stage{stage}": functools.partial(_published, preset, stage)
    for preset in _RELEASED
    for stage in (1, 2)
  },
}

# ---------------------------------------------------------------- claims

_STEPS = 10_000
_BATCH = 32
_RATE = 1.5e-3
_KEPT = (4, 8, 12)

SHAPES = dataclasses.replace(
  CROPS, image_size=32, channels=1, patch=8, quantizer="none", code_dim=4
)
"""KARL of the claims: without a base, continuous tokens."""


@functools.partial(jax.jit, static_argnums=1)
def shapes(key: PRNGKeyArray, count: int) -> tuple[Array, Array]:
  """Images of random shapes, and how many shapes each has: the claims' data, as the sheet has it.

  2 to 16 black or white discs and rectangles lie on a ground of one of the two; each hides what
  it lies on. Their edges are soft (a logistic of 1.2 pixels), so that a few tokens more
  always show: with photographs the error falls by a quarter from 4 tokens to 16, less than one
  bin of the wished error.

  Args:
    key: of the draws.
    count: how many images.

  Returns:
    float32[B, 32, 32, 1] in [-1, 1], and int32[B].
  """
  side, most = SHAPES.image_size, 16
  keys = jax.random.split(key, 6)
  numbers = jax.random.randint(keys[0], (count,), 2, most + 1)
  centre = jax.random.uniform(keys[1], (count, most, 2), maxval=side)
  half = jax.random.uniform(keys[2], (count, most, 2), minval=side / 8, maxval=side / 4)
  grey = jax.random.rademacher(keys[3], (count, most, 1), jnp.float32)
  ground = jax.random.rademacher(keys[4], (count, 1, 1, 1), jnp.float32)
  is_disc = jax.random.bernoulli(keys[5], 0.5, (count, most))[..., None, None]
  away = jnp.abs(jnp.arange(side) + 0.5 - centre[..., None])  # [B, N, 2, S]
  y, x = away[:, :, 0, :, None], away[:, :, 1, None, :]
  height, width = half[:, :, 0, None, None], half[:, :, 1, None, None]
  inside = jnp.minimum(height - y, width - x)
  radius = jnp.sqrt((y / height) ** 2 + (x / width) ** 2)
  inside = jnp.where(is_disc, (1 - radius) * jnp.minimum(height, width), inside)
  is_there = (jnp.arange(most) < numbers[:, None])[..., None, None]
  cover = jnp.where(is_there, jax.nn.sigmoid(inside / 1.2), 0.0)
  # What of each shape is left by those above it, and of the ground by all.
  left = jnp.cumprod((1 - cover)[:, ::-1], axis=1)[:, ::-1]
  above = jnp.concatenate([left[:, 1:], jnp.ones_like(left[:, :1])], axis=1)
  image = jnp.einsum("bnyx,bnc->byxc", cover * above, grey, precision="highest")
  return image + left[:, 0, :, :, None] * ground, numbers


@jax.jit
def _fresh(seed: Array, step: Array) -> Array:
  """The images of a step, float32[B, 32, 32, 1]."""
  return shapes(jax.random.fold_in(jax.random.key(1 + seed), step), _BATCH)[0]


def _fit(task: Finetuning, seed: int) -> Variables:
  batches = ({"image": _fresh(np.int32(seed), np.int32(i))} for i in itertools.count())
  return fit(task, batches, _STEPS, seed, _RATE)


@functools.cache  # all claims read the same trainings
def _trained(seed: int) -> Variables:
  return _fit(Finetuning(model=SHAPES, lengths=LENGTHS, critics=None), seed)


@dataclasses.dataclass(frozen=True)
class TailDrop(Finetuning):
  """The first pass alone, for an error that cannot be had: prefixes, no halting."""

  def losses(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray, step: Array
  ) -> Losses:
    image = batch["image"]
    length, wished = self.draw(variables, rng, len(image))

    def run(module: KARL):
      glance, least = module.base.look(image), jnp.full_like(wished, min(ERRORS))
      found, _ = self.estimate(module, image, glance, least, length)
      return l1(module.image(found), image) / 2

    loss = self.apply(variables, method=run)
    return Losses({"model": loss}, {"l1": loss})


@functools.cache
def _trained_tail_drop(seed: int) -> Variables:
  lengths = tuple(range(1, SHAPES.num_tokens + 1))
  return _fit(TailDrop(model=SHAPES, lengths=lengths, critics=None), seed)


@jax.jit
def _tell(variables, image, error):
  """Active tokens, and L1 of pixels in [0, 1], of each image at the error wished for it."""
  module: Any = SHAPES.build()
  error = jnp.broadcast_to(error, (len(image),))
  output = module.apply({"params": variables["params"]}, image, False, error)
  apart = jnp.abs(output.reconstruction - image).mean((1, 2, 3)) / 2
  return output.tokens.mask.sum(1), apart


@jax.jit
def _reach(variables, image, length):
  """L1 of each image with so many tokens, all active, for an error that cannot be had."""
  module = SHAPES.build()

  def run(module):
    error, budget = jnp.float32(min(ERRORS)), SHAPES.num_tokens
    kept = prefix_mask(length, budget)
    found = module.run(image, module.base.look(image), error, budget, kept, False)
    return jnp.abs(module.image(found) - image).mean((1, 2, 3)) / 2

  return module.apply({"params": variables["params"]}, method=run)


@functools.cache
def _held_out() -> tuple[Array, Array]:
  return shapes(jax.random.key(0), 1000)


def _png_bytes(image: np.ndarray) -> int:
  """How many bytes the picture has as PNG: a measure of its complexity that no network made."""
  file = io.BytesIO()
  pixels = np.round((image[..., 0] + 1) * 127.5).astype(np.uint8)
  Image.fromarray(pixels).save(file, format="png")
  return file.tell()


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
  """Rank correlation, ties at their mean rank; 0 where either does not vary."""

  def ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]

  rx, ry = ranks(np.asarray(x)), ranks(np.asarray(y))
  if rx.std() == 0 or ry.std() == 0:
    return 0.0
  return float(np.corrcoef(rx, ry)[0, 1])


def count_follows_complexity(seed: int) -> dict[str, float]:
  """Active tokens against the size as PNG and the error with few tokens, and by error."""
  variables, (image, numbers) = _trained(seed), _held_out()
  hard = np.asarray(_reach(variables, image, 4))
  png = np.asarray([_png_bytes(each) for each in np.asarray(image)])
  told = {e: np.asarray(_tell(variables, image, jnp.float32(e))[0]) for e in ERRORS}
  means = {error: float(counts.mean()) for error, counts in told.items()}
  # Where the counts vary most: an error that some images have at once and others never.
  middle = max(ERRORS, key=lambda error: told[error].std())
  found = {f"tokens at error {error}": mean for error, mean in means.items()}
  return found | {
    "error of most spread": middle,
    "spearman with PNG bytes": _spearman(told[middle], png),
    "spearman with the number of shapes": _spearman(told[middle], np.asarray(numbers)),
    "spearman with the error of 4 tokens": _spearman(told[middle], hard),
  }


def one_pass_and_search(seed: int) -> dict[str, float]:
  """L1 of the single pass, and of the search for the best prefix at the same mean count."""
  variables = _trained(seed)
  tail_drop = _trained_tail_drop(seed)
  image, lengths = _held_out()[0], np.arange(1, SHAPES.num_tokens + 1)
  errors = np.stack([np.asarray(_reach(tail_drop, image, int(n))) for n in lengths])
  curve = []
  for bar in np.linspace(errors.min(), errors.max(), 200):
    is_enough = errors <= bar
    best = np.where(is_enough.any(0), is_enough.argmax(0), errors.argmin(0))
    at = errors[best, np.arange(len(image))]
    curve.append((lengths[best].mean(), at.mean()))
  counts, apart = np.asarray(sorted(curve)).T
  found, ratios = {}, []
  for error in (0.04, 0.06, 0.09):
    active, own = (np.asarray(x) for x in _tell(variables, image, jnp.float32(error)))
    searched = float(np.interp(active.mean(), counts, apart))
    found[f"tokens, error {error}"] = float(active.mean())
    found[f"l1 of one pass, error {error}"] = float(own.mean())
    found[f"l1 of the search, error {error}"] = searched
    ratios.append(own.mean() / searched)
  return found | {"largest ratio": float(max(ratios))}


def halting_finds_the_budget(seed: int) -> dict[str, float]:
  """|active - T| on average, for the error that each image has with T tokens."""
  variables, image = _trained(seed), _held_out()[0]
  found = {}
  for length in _KEPT:
    error = _reach(variables, image, length)
    active = np.asarray(_tell(variables, image, error)[0])
    found[f"distance to {length}"] = float(np.abs(active - length).mean())
    found[f"active for {length}"] = float(active.mean())
  return found


def _falls(n) -> bool:
  means = [n[f"tokens at error {error}"] for error in ERRORS]
  steps = all(b <= a + 0.1 for a, b in itertools.pairwise(means))
  return steps and means[-1] < means[0] - 1


_SHEET = "arXiv 2507.07995, at the scale of this repository"
_SETTING = (
  "images of 2 to 16 random shapes, 32 x 32 grey pixels, a budget of "
  f"{SHAPES.num_tokens} continuous tokens of {SHAPES.code_dim} features, no base, "
  f"{TINY.layers} and {TINY.layers} blocks of width {TINY.width}, {_STEPS:,} steps of "
  f"{_BATCH}, both passes with L1 and the halting's losses (no perceptual network, no critics); "
  "1,000 other images"
)

CLAIMS = (
  Claim(
    "The single pass picks more tokens for harder images: the rank correlation of active "
    "tokens with the image's size as PNG is at least 0.5, and the mean count falls as the "
    "wished error grows",
    source=_SHEET,
    measure=count_follows_complexity,
    holds=lambda n: n["spearman with PNG bytes"] >= 0.5 and _falls(n),
    setting=f"{_SETTING}; at the error where the counts spread most",
  ),
  Claim(
    "At the same mean number of tokens the L1 of the single pass is within 10 % of the search "
    "for the best prefix over a tail-drop model of equal size, at three wished errors",
    source=_SHEET,
    measure=one_pass_and_search,
    holds=lambda n: n["largest ratio"] <= 1.1,
    setting=f"{_SETTING}; the same network trained on prefixes alone, L1, as many steps",
  ),
  Claim(
    "Halting learns the budget: for the error that an image has with T tokens, T or nearly as "
    "many stay active, |active - T| <= T / 3 on average, for T of 4, 8 and 12",
    source=_SHEET,
    measure=halting_finds_the_budget,
    holds=lambda n: all(3 * n[f"distance to {length}"] <= length for length in _KEPT),
    setting=_SETTING,
  ),
)

# The paper compares by figures, which give no rows.
TABLES = ()
