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

None of the claims holds at this size (2,000 steps of 16 crops). 14 to 16 of 16 tokens stay active
whatever error is wished for, which is what the halting losses come to when the error says nothing
about T; and one of 3 seeds still drew the mean picture. With 15 tokens the single pass is 14 to
19 % behind the search over prefixes.

Published (scripts and code): AdamW, betas 0.9 and 0.95, decay 0.05 on matrices and tables,
lr 1e-4 * batch / 256 (ALIT's stage 1: 1.5e-4), 20 epochs of warm-up, half a cosine to 0,
clipping at 3, EMA 0.9999; KARL 200 epochs at 512 and 400 at 144, ALIT 200 at 256 and 200 at
96; crops of 0.8 to 1 of the picture, flips. In stage 2 no adversary for 21 epochs, weight 0.2
for 80 more, then 0.8. Steps here are epochs of ImageNet-1k. Our random crop has one scale;
the decay is the trainer's, on everything with two axes or more. MAGE's VQGAN and MAR's KL-VAE
are not on a hub: the recipes on a VQGAN start from MaskGIT's, which has its shape, those on a
KL-VAE from a file of yours (`init_from`), converted under a KARL preset.
"""

import dataclasses
import functools
import io
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from tokzoo.contract import Batch, Variables
from tokzoo.data import evaluation_batches, loader
from tokzoo.data.packaged import imagenet_crops, photo_crops
from tokzoo.nn.discriminator import PatchGAN
from tokzoo.tokenizers.image import maskgit_vqgan, one_d_piece, titok
from tokzoo.tokenizers.image.karl import (
  ALIT_PRESETS,
  ERRORS,
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
from tokzoo.train.tasks import Reconstruction

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
    optimizers=dict.fromkeys(task.players, optimizer),
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

_STEPS = 2000
_BATCH = 16
_RATE = 1e-3
_KEPT = (4, 8, 12)


def _crops(split: str, seed: int = 0) -> Iterator[Batch]:
  data = photo_crops(split, CROPS.image_size)
  if split == "train":
    return loader(data, _BATCH, seed)
  return evaluation_batches(data, 100)


@functools.cache  # all claims read the same trainings
def _trained(seed: int) -> Variables:
  task = Finetuning(model=CROPS, lengths=LENGTHS, critics=None, weights=SMALL_VQ)
  return fit(task, _crops("train", seed), _STEPS, seed, _RATE)


_TAIL_DROP = one_d_piece.Config(
  image_size=CROPS.image_size,
  patch=CROPS.patch,
  num_tokens=CROPS.num_tokens,
  encoder=titok.Size(TINY.width, TINY.layers, TINY.heads),
  decoder=titok.Size(TINY.width, TINY.layers, TINY.heads),
  num_codes=CROPS.num_codes,
  code_dim=CROPS.code_dim,
  is_legacy=False,
  pixels=None,
  init_std=CROPS.init_std,
)
"""A tail-drop model of the same transformers, tokens and codes."""


@functools.cache
def _trained_tail_drop(seed: int) -> Variables:
  # The same terms, with pixels twice as far apart.
  weights = {name: 2 * weight for name, weight in SMALL_VQ.items()}
  task = Reconstruction(model=_TAIL_DROP, distance="l1", weights=weights)
  return fit(task, _crops("train", seed), _STEPS, seed, _RATE)


@jax.jit
def _tell(variables, image, error):
  """Active tokens, and L1 of pixels in [0, 1], of each image at a wished error."""
  module: Any = CROPS.build()
  output = module.apply({"params": variables["params"]}, image, False, error)
  apart = jnp.abs(output.reconstruction - image).mean((1, 2, 3)) / 2
  return output.tokens.mask.sum(1), apart


@functools.partial(jax.jit, static_argnums=2)
def _reach(variables, image, length: int):
  """L1 of each image with so many tokens, all active, for an error that cannot be had."""
  module = CROPS.build()

  def run(module):
    error = jnp.float32(min(ERRORS))
    found = module.run(image, module.base.look(image), error, length, is_halting=False)
    return jnp.abs(module.image(found) - image).mean((1, 2, 3)) / 2

  return module.apply({"params": variables["params"]}, method=run)


@functools.cache
def _held_out() -> np.ndarray:
  return np.concatenate([np.asarray(batch["image"]) for batch in _crops("test")])


def _png_bytes(image: np.ndarray) -> int:
  """How many bytes the picture has as PNG: a measure of its complexity that no network made."""
  file = io.BytesIO()
  pixels = np.round((image + 1) * 127.5).astype(np.uint8)
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
  variables, image = _trained(seed), _held_out()
  hard = np.asarray(_reach(variables, image, 4))
  png = np.asarray([_png_bytes(each) for each in image])
  told = {e: np.asarray(_tell(variables, image, jnp.float32(e))[0]) for e in ERRORS}
  means = {error: float(counts.mean()) for error, counts in told.items()}
  # Where the counts vary most: an error that some images have at once and others never.
  middle = max(ERRORS, key=lambda error: told[error].std())
  found = {f"tokens at error {error}": mean for error, mean in means.items()}
  return found | {
    "error of most spread": middle,
    "spearman with PNG bytes": _spearman(told[middle], png),
    "spearman with the error of 4 tokens": _spearman(told[middle], hard),
  }


def one_pass_and_search(seed: int) -> dict[str, float]:
  """L1 of the single pass, and of the search for the best prefix at the same mean count."""
  variables, tail_drop, image = _trained(seed), _trained_tail_drop(seed), _held_out()
  module = _TAIL_DROP.build()

  @jax.jit
  def of_prefix(variables, image, length):
    def run(module):
      values = module.quantize(image).values
      kept = jnp.arange(_TAIL_DROP.num_tokens) < length
      return module.codes_to_image(values, kept)[0]

    made = module.apply({"params": variables["params"]}, method=run)
    return jnp.abs(made - image).mean((1, 2, 3)) / 2

  lengths = np.arange(1, _TAIL_DROP.num_tokens + 1)
  errors = np.stack([np.asarray(of_prefix(tail_drop, image, n)) for n in lengths])
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
  variables, image = _trained(seed), _held_out()
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
  f"photo crops of {CROPS.image_size} x {CROPS.image_size} pixels, a budget of "
  f"{CROPS.num_tokens} tokens of {CROPS.num_codes} codes, no base, {_STEPS} steps of {_BATCH}, "
  "both passes with L1, a fiftieth of the quantizer's losses and the halting's (no perceptual "
  "network, no critics); held-out photographs"
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
    setting=f"{_SETTING}; One-D-Piece with the same transformers, L1, as many steps",
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
