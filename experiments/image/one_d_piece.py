"""One-D-Piece (arXiv 2501.10064): tokens of which any prefix decodes.

  tokzoo train experiments/image/one_d_piece.py --recipe nano
  tokzoo reproduce one-d-piece

Lab record
  nano          tail drop on crops of 16 pixels: the codes of a frozen VQGAN (packaged:
                maskgit-vqgan-photos-nano) from 1 to 16 tokens, 2 CPU cores
  nano-pixels   tail drop in a single stage on crops of 32 pixels, as in the claims
  s-256-stage1, s-256-stage2, b-256-..., l-256-...   the published two stages

Published: TiTok's two stages (experiments/image/titok.py) with tail drop in both: AdamW 1e-4
to 1e-5, decay 1e-4, betas 0.9 and 0.99, then 0.999; batch 1,024 and 1M steps, then 512 and
500k (S and B on 8 GPUs; L the same from accumulated batches: 32 x 4 and 32 x 2 per GPU).

The paper's clusters of pictures by their first token are not drawn here.

The claims are measured on the single stage without a VQGAN and with the fixed layout instead
of the legacy reshape: at this scale they ask what tail drop does, not what a teacher adds.
Tail drop costs 1.4, 1.6 and 0.6 dB where all 16 tokens are there, so that the fourth holds for one
seed of three.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tokzoo.contract import Batch, Variables
from tokzoo.data import evaluation_batches, loader
from tokzoo.data.packaged import imagenet_crops, photo_crops
from tokzoo.kernels.bit_packing import pack, unpack
from tokzoo.nn.blur_discriminator import BlurDiscriminator
from tokzoo.tokenizers.image import maskgit_vqgan
from tokzoo.tokenizers.image.one_d_piece import PRESETS, Config
from tokzoo.tokenizers.image.titok import ProxyCodes, Size
from tokzoo.train import Evaluator, MeshShape, Optimizer, Recipe
from tokzoo.train.adversary import Adversary, LeCam
from tokzoo.train.claims import Claim, fit
from tokzoo.train.perception import Perceptual
from tokzoo.train.tasks import Reconstruction

SYSTEM = "one-d-piece"

VQ = {"commitment": 0.25, "codebook": 1.0}
NO_DECAY = ("embed", "latent_tokens", "mask_token", "ln_", "norm", "quantizer/codes")
SQUARES = 4
"""Squared errors in [-1, 1] over those in [0, 1], in which the weights were published."""

# ---------------------------------------------------------------- nano: a 2-core CPU

TINY = Size(width=64, layers=2, heads=2)

CROPS = Config(
  image_size=32,
  patch=8,
  num_tokens=16,
  encoder=TINY,
  decoder=TINY,
  num_codes=512,
  code_dim=8,
  is_legacy=False,
  pixels=None,
  init_std=0.1,
)

PROXY = dataclasses.replace(
  CROPS,
  image_size=16,
  patch=4,
  is_legacy=True,
  pixels=maskgit_vqgan.Config(
    image_size=16,
    width=32,
    multipliers=(1, 2, 2),
    res_blocks=1,
    code_dim=8,
    num_codes=64,
    norm_groups=2,
  ),
)


def _nano(name: str, task, size: int, init_from: str | None = None) -> Recipe:
  return Recipe(
    system=SYSTEM,
    name=name,
    task=task,
    data=photo_crops("train", size),
    batch_size=32,
    steps=300,
    optimizers={
      "model": Optimizer(
        peak_lr=1e-3, warmup_steps=30, b2=0.99, clip_norm=SQUARES, no_decay=NO_DECAY
      )
    },
    evaluators={"held_out": Evaluator(data=photo_crops("test", size), batches=4)},
    init_from=init_from,
    save_every=300,
  )


def nano() -> Recipe:
  """The first stage with tail drop: a packaged VQGAN's codes."""
  return _nano("nano", ProxyCodes(model=PROXY), 16, "maskgit-vqgan-photos-nano")


def nano_pixels() -> Recipe:
  """A single stage with tail drop."""
  return _nano("nano-pixels", _to_pixels(CROPS), 32)


def _to_pixels(model: Config) -> Reconstruction:
  # At the published weights all small pictures take one code a place before the
  # reconstruction pulls them apart.
  weights = {name: 0.02 * SQUARES * weight for name, weight in VQ.items()}
  return Reconstruction(model=model, distance="l2", weights=weights)


# ---------------------------------------------------------------- as published


def _published(stage: int, size: str, accumulate: int) -> Recipe:
  model = PRESETS[f"one-d-piece-{size}256"]
  task = ProxyCodes(model=model)
  if stage == 2:
    task = Reconstruction(
      model=model,
      distance="l2",
      perceptual=(
        Perceptual(
          "convnext-s-logits",
          weight=SQUARES * 0.1,
          files=("weights/convnext_small.pth",),
        ),
      ),
      adversary=Adversary(
        weight=SQUARES * 0.01,
        start_step=20_000,
        network=BlurDiscriminator(),
        lecam=LeCam(0.001, of_means=True, is_updated_first=False, waits=True),
      ),
    )
  optimizer = Optimizer(
    peak_lr=1e-4,
    end_lr=1e-5,
    warmup_steps=10_000 if stage == 1 else 5_000,
    b2=0.99 if stage == 1 else 0.999,
    weight_decay=1e-4,
    no_decay=NO_DECAY,
    clip_norm=1.0 if stage == 1 else SQUARES * 1.0,
  )
  optimizers = {"model": optimizer}
  if stage == 2:
    optimizers["discriminator"] = dataclasses.replace(
      optimizer, clip_norm=1.0, start_step=20_000
    )
  data, held_out = imagenet_crops("arrayrecord:data/imagenet")
  return Recipe(
    system=SYSTEM,
    name=f"{size}-256-stage{stage}",
    task=task,
    data=data,
    batch_size=1024 if stage == 1 else 512,
    accumulate=accumulate,
    steps=1_000_000 if stage == 1 else 500_000,
    optimizers=optimizers,
    evaluators={"held_out": Evaluator(data=held_out, every=10_000, batches=10)},
    ema=0.999,
    compute_dtype="bfloat16",
    remat="blocks",
    freeze=() if stage == 1 else ("encoder/", "latent_tokens", "quantizer/"),
    init_from="maskgit-vqgan" if stage == 1 else f"runs/one-d-piece-{size}-256-stage1",
    mesh=MeshShape(data=1, fsdp=-1),
    save_every=2_500,
    log_every=100,
    picture_every=5_000,
  )


RECIPES = {
  "nano": nano,
  "nano-pixels": nano_pixels,
  **{
    f"{size}-256-stage{stage}": functools.partial(_published, stage, size, accumulate)
    for stage, size, accumulate in (
      (1, "s", 1),
      (2, "s", 1),
      (1, "b", 1),
      (2, "b", 1),
      (2, "l", 2),
      (1, "l", 4),
    )
  },
}

# ---------------------------------------------------------------- claims

_STEPS = 2000
_PREFIXES = (1, 2, 4, 8, 16)


def _crops(split: str, seed: int = 0) -> Iterator[Batch]:
  data = photo_crops(split, CROPS.image_size)
  if split == "train":
    return loader(data, 32, seed)
  return evaluation_batches(data, 30)


@functools.cache  # two claims read the same trainings
def _trained(is_dropped: bool, seed: int) -> Variables:
  law = "uniform" if is_dropped else None
  task = _to_pixels(dataclasses.replace(CROPS, tail_drop=law))
  return fit(task, _crops("train", seed), _STEPS, seed, 1e-3)


_ENCODE = jax.jit(lambda v, x: CROPS.build().apply(v, x, method="encode"))
_DECODE = jax.jit(lambda v, tokens: CROPS.build().apply(v, tokens, method="decode"))


def psnr_by_prefix(seed: int) -> dict[str, float]:
  """Held-out PSNR in dB of every prefix, with and without tail drop in training."""
  found = {}
  for is_dropped in (True, False):
    variables = _trained(is_dropped, seed)
    errors: dict[int, list[np.ndarray]] = {n: [] for n in _PREFIXES}
    for batch in _crops("test"):
      image = batch["image"]
      tokens = _ENCODE(variables, image)
      for n in _PREFIXES:
        prefix = tokens.replace(ids=tokens.ids[:, :n], grid=(n,))
        shown = np.clip(np.asarray(_DECODE(variables, prefix)), -1, 1)
        errors[n].append(np.square(shown - image).mean((1, 2, 3)) / 4)
    word = "with" if is_dropped else "without"
    for n in _PREFIXES:
      each = -10 * np.log10(np.concatenate(errors[n]))
      found[f"psnr {n} tokens, {word} drop"] = float(each.mean())
  return found


def contribution(seed: int) -> dict[str, float]:
  """Mean |difference| of the pictures when one token is random: first quarter over last."""
  rng = np.random.default_rng(seed)
  image = next(iter(_crops("test")))["image"]
  found = {}
  for is_dropped in (True, False):
    variables = _trained(is_dropped, seed)
    tokens = _ENCODE(variables, image)
    plain = np.asarray(_DECODE(variables, tokens))
    moved = []
    for i in range(CROPS.num_tokens):
      ids = np.array(tokens.ids)
      ids[:, i] = rng.integers(CROPS.num_codes, size=len(ids))
      changed = np.asarray(_DECODE(variables, tokens.replace(ids=jnp.asarray(ids))))
      moved.append(np.abs(changed - plain).mean())
    quarter = CROPS.num_tokens // 4
    word = "with" if is_dropped else "without"
    ratio = np.mean(moved[:quarter]) / np.mean(moved[-quarter:])
    found[f"first over last quarter, {word} drop"] = float(ratio)
  return found


def bytes_of_prefixes(seed: int) -> dict[str, float]:
  """Prefixes through the bit packer: bytes other than ceil(12 n / 8), ids lost."""
  rng = np.random.default_rng(seed)
  bits_per_id = 12
  wrong_size = wrong_ids = 0
  for n in (1, 2, 3, 5, 8, 31, 32, 127, 256):
    ids = rng.integers(2**bits_per_id, size=n)
    bits = (ids[:, None] >> np.arange(bits_per_id)) & 1
    words = np.asarray(pack(jnp.asarray(bits.reshape(1, 1, -1), jnp.int32)))
    least = -(-bits_per_id * n // 8)
    kept = words.astype("<u4").tobytes()[:least]
    # What was cut off is the spare end of the last word.
    filled = np.frombuffer(kept.ljust(words.nbytes, b"\0"), "<u4").reshape(words.shape)
    again = np.asarray(unpack(jnp.asarray(filled.astype(np.uint32)), bits_per_id * n))
    found = again.reshape(n, bits_per_id) @ (1 << np.arange(bits_per_id))
    wrong_size += len(kept) != int(np.ceil(12 * n / 8))
    wrong_ids += int((found != ids).sum())
  return {"lengths of another size": wrong_size, "ids that differ": wrong_ids}


def _rises(n) -> bool:
  with_drop = [n[f"psnr {k} tokens, with drop"] for k in _PREFIXES]
  return all(b >= a - 0.05 for a, b in itertools.pairwise(with_drop))


_SHEET = "arXiv 2501.10064, at the scale of this repository"
_SETTING = (
  f"photo crops of 32 x 32 pixels, 16 tokens of 512 codes, {_STEPS} steps of 32, a single "
  "stage (squared error and a fiftieth of the quantizer's losses), fixed layout; held-out photographs"
)

CLAIMS = (
  Claim(
    "With tail drop PSNR rises with the prefix (1, 2, 4, 8, 16 tokens; 0.05 dB of slack), and "
    "with 4 tokens it is at least 2 dB above the model trained without",
    source=_SHEET,
    measure=psnr_by_prefix,
    holds=lambda n: (
      _rises(n)
      and n["psnr 4 tokens, with drop"] >= 2 + n["psnr 4 tokens, without drop"]
    ),
    setting=_SETTING,
  ),
  Claim(
    "A random token changes the picture at least 3 times as much in the first quarter as in "
    "the last with tail drop, and within a factor of 2 without",
    source=_SHEET,
    measure=contribution,
    holds=lambda n: (
      n["first over last quarter, with drop"] >= 3
      and 0.5 <= n["first over last quarter, without drop"] <= 2
    ),
    setting=_SETTING,
  ),
  Claim(
    "n tokens of 12 bits are ceil(12 n / 8) bytes, and come back exactly",
    source=_SHEET,
    measure=bytes_of_prefixes,
    holds=lambda n: n["lengths of another size"] == n["ids that differ"] == 0,
    setting="random ids, nine lengths from 1 to 256, through the packer of token files",
  ),
  Claim(
    "With all 16 tokens the model trained with tail drop is at most 1 dB behind the one "
    "trained without",
    source=_SHEET,
    measure=psnr_by_prefix,
    holds=lambda n: (
      n["psnr 16 tokens, with drop"] >= n["psnr 16 tokens, without drop"] - 1
    ),
    setting=_SETTING,
  ),
)

# Published rows; measured numbers never share a column with them.
TABLES = (
  {
    "what": "rFID on ImageNet 256 with all 256 tokens: S, B, L",
    "published": "1.48, 1.11, 1.08",
    "source": "README of turingmotors/One-D-Piece",
  },
  {
    "what": "gFID on ImageNet 256, MaskGIT over 256 tokens: S, B, L "
    "(recipes: experiments/image/maskgit.py)",
    "published": "2.67, 2.70, 2.35",
    "source": "README of turingmotors/One-D-Piece",
  },
)
