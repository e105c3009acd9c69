"""`tokzoo evaluate`: a tokenizer or a generator on a data set, in numbers.

Pictures are compared as files hold them, rounded to 8 bits. Every number carries what it was
measured with: model, data, split, how many pictures, protocol, seed, device, code version.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from tokzoo.cli.coding import as_tokenizer
from tokzoo.cli.console import emit, facts, note, parse, to_uint8
from tokzoo.data import DataConfig, evaluation_batches, guess_source
from tokzoo.data.transforms import to_float
from tokzoo.errors import TokzooError
from tokzoo.hub import PretrainedGenerator, PretrainedTokenizer, load
from tokzoo.metrics import PSNR, SSIM, BitsPerPixel, Moments, frechet_distance
from tokzoo.metrics.efficientnet import PACKAGE, load_efficientnet_lite0
from tokzoo.metrics.features import FeatureNetwork
from tokzoo.metrics.images import SSIM_WINDOW
from tokzoo.metrics.inception import load_inception
from tokzoo.tokens import Tokens
from tokzoo.train import evaluate as evaluate_task
from tokzoo.train.tasks import Generation, usage
from tokzoo.version import code_version

_BATCH = 64
_FEATURE_BATCH = 16
"""Pictures at a time through a feature network, which sees them enlarged."""


def run_evaluate(arguments: Sequence[str]) -> None:
  parse(evaluate, "evaluate", arguments)


def evaluate(
  model: Annotated[str, tyro.conf.Positional],
  /,
  data: str = "photos",
  split: str = "test",
  num: int | None = None,
  seed: int = 0,
  inception: Path | None = None,
  preset: str | None = None,
  json: bool = False,
) -> None:
  """Measures a model on a data set.

  A tokenizer: PSNR, SSIM (pictures of 11 pixels or more), bits per pixel, use of its codes.
  A generator: its loss on the data's tokens, use of the codes by its samples (one for each
  picture, of the same class), and their Frechet distance to the data where a feature network
  is at hand: FID with --inception, FD-EfficientNet-Lite0 with the extra `features`.

  Args:
    model: checkpoint name, run directory, file or repository.
    data: a data set as in recipes (digits, photos, folder:PATH, ...), or a path alone.
    split: of the data set; a folder without parts is all train.
    num: so many pictures from the start of the split; all by default.
    seed: of a generator's samples.
    inception: the published Inception weights, pt_inception-2015-12-05-6726825d.pth.
    preset: the published config of a file in its authors' layout.
    json: print JSON instead of a table.
  """
  if num is not None and num < 1:
    raise TokzooError(f"--num {num} came: at least 1 picture is needed.")
  loaded = load(model, preset=preset)
  is_generator = isinstance(loaded, PretrainedGenerator)
  tokenizer = loaded.tokenizer if is_generator else as_tokenizer(loaded, model)
  pictures = Pictures(guess_source(data), split, num, tokenizer)
  network = find_network(inception)
  if is_generator:
    metrics = measure_generator(loaded, pictures, seed, network)
  else:
    metrics = measure_tokenizer(loaded, pictures, network)
  told = {
    "model": loaded.card.name,
    "data": pictures.data.source,
    "split": split,
    "pictures": pictures.count,
    "protocol": pictures.protocol,
    "features": f"{network.name}, {network.protocol}" if network else None,
    "seed": seed,
    "device": jax.devices()[0].device_kind,
    "code_version": code_version(),
  }
  rows = {**told, **metrics}
  emit(
    {**told, "metrics": metrics},
    json,
    lambda console: console.print(facts(model, rows)),
  )


class Pictures:
  """The pictures of a split as a tokenizer takes them: whole where it tiles, else cropped.

  data:      how they are read
  protocol:  the same in words
  count:     how many have been read so far
  """

  def __init__(
    self, source: str, split: str, num: int | None, tokenizer: PretrainedTokenizer
  ):
    config = tokenizer.config
    self.count = 0
    self._num = num
    if tokenizer.card.tile:
      self.data = DataConfig(source, split, channels=config.channels)
      self.protocol = f"whole pictures in tiles of {config.image_size} pixels, 8 bits"
      self._batch_size = 1  # of any size
      return
    side = config.image_size
    self.data = DataConfig(
      source, split, channels=config.channels, resize=side, crop="center", size=side
    )
    self.protocol = f"shorter side to {side} pixels (bicubic), centre crop, 8 bits"
    self._batch_size = _BATCH

  def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
    """Batches without rows that only fill: `image` and, where there are classes, `label`."""
    self.count = 0
    batches = evaluation_batches(self.data, self._batch_size)
    try:
      for batch in batches:
        left = None if self._num is None else self._num - self.count
        rows = np.flatnonzero(batch["valid"])[:left]
        if not len(rows):
          return
        self.count += len(rows)
        yield {name: array[rows] for name, array in batch.items() if name != "valid"}
    finally:
      batches.close()


def measure_tokenizer(
  tokenizer: PretrainedTokenizer, pictures: Pictures, network: FeatureNetwork | None
) -> dict[str, float]:
  """PSNR, SSIM, rate and use of the codes; with a network, the distance of the
  reconstructions to the pictures.

  Raises:
    TokzooError: data that cannot be read.
  """
  total: dict[str, Any] = {}
  for batch in pictures:
    image = batch["image"]
    tokens = tokenizer.encode(image)
    made = tokenizer.decode(tokens, (image.shape[1], image.shape[2]))
    shown = to_float(to_uint8(made))
    pair = jnp.asarray(image), jnp.asarray(shown)
    states: dict[str, Any] = {
      "psnr": PSNR.from_batch(*pair),
      "bits_per_pixel": _rate(tokens, image),
      **usage(tokens),
    }
    if min(image.shape[1:3]) >= SSIM_WINDOW:
      states["ssim"] = SSIM.from_batch(*pair)
    if network is not None:
      states["real"] = moments_of(network, image)
      states["made"] = moments_of(network, shown)
    total = _merge(total, states)
  return _computed(total, network, "r")


def measure_generator(
  generator: PretrainedGenerator,
  pictures: Pictures,
  seed: int,
  network: FeatureNetwork | None,
) -> dict[str, float]:
  """Loss on the data's tokens (nats per bit), use of the codes by samples, and the distance
  of the samples to the pictures.

  Raises:
    TokzooError: data that cannot be read, or has not what the generator is conditioned on.
  """
  task = Generation(model=generator.config)
  rows: list[dict[str, np.ndarray]] = []
  total: dict[str, Any] = {}
  for index, batch in enumerate(pictures):
    real = generator.tokenizer.encode(batch["image"])
    rows.append({**batch, real.kind: np.asarray(real.array)})
    rows[-1].pop("image")
    condition = task.model.condition(rows[-1])
    tokens = generator.sample(condition, seed=_seed(seed, index))
    states: dict[str, Any] = dict(usage(tokens))
    if network is not None:
      shown = to_float(to_uint8(generator.tokenizer.decode(tokens)))
      states["real"] = moments_of(network, batch["image"])
      states["made"] = moments_of(network, shown)
    total = _merge(total, states)
  filled = (_fill(batch, _BATCH) for batch in rows)
  held_out = evaluate_task(task, generator.variables, filled, _BATCH)
  if network is None:
    note(
      "no Frechet distance: pass --inception FILE for FID, or install tokzoo[features] for "
      "FD-EfficientNet-Lite0."
    )
  return held_out | _computed(total, network, "")


def find_network(inception: Path | None) -> FeatureNetwork | None:
  """Inception if its file is named, else EfficientNet-Lite0 if it is installed, else None.

  Raises:
    TokzooError: a file that is not there or holds another network, or torch is missing.
  """
  if inception is not None:
    return load_inception(inception)
  wanted = (PACKAGE.replace("-", "_"), "torch")
  if all(importlib.util.find_spec(name) for name in wanted):
    return load_efficientnet_lite0()
  return None


def _rate(tokens: Tokens, image: np.ndarray) -> BitsPerPixel:
  """Bits of all tokens, those of tiles that reach over the edge too, over pixels shown."""
  return BitsPerPixel(
    jnp.float32(tokens.total_bits), jnp.float32(np.prod(image.shape[:3]))
  )


def moments_of(network: FeatureNetwork, images: np.ndarray) -> Moments:
  """Moments of the features, a few pictures at a time; grey ones are repeated to RGB."""
  if images.shape[-1] == 1:
    images = np.repeat(images, 3, axis=-1)
  parts = [
    np.asarray(network(jnp.asarray(images[start : start + _FEATURE_BATCH])).features)
    for start in range(0, len(images), _FEATURE_BATCH)
  ]
  return Moments.from_batch(np.concatenate(parts))


def _merge(total: dict[str, Any], states: dict[str, Any]) -> dict[str, Any]:
  """States over all batches; one that only some batches have counts those."""
  merged = {
    name: total[name].merge(state) if name in total else state
    for name, state in states.items()
  }
  return total | merged


def _computed(
  total: dict[str, Any], network: FeatureNetwork | None, prefix: str
) -> dict[str, float]:
  """Numbers by name; the distance bears its network's."""
  real, made = total.pop("real", None), total.pop("made", None)
  numbers: dict[str, float] = {}
  for name, state in total.items():
    value = state.compute()
    parts = value.items() if isinstance(value, dict) else [("", value)]
    numbers |= {f"{name}/{part}".rstrip("/"): float(number) for part, number in parts}
  if network is not None:
    numbers[f"{prefix}{network.distance}"] = frechet_distance(real, made)
  return numbers


def _seed(seed: int, index: int) -> int:
  """A seed of its own for each batch, unrelated to those of neighbouring seeds."""
  return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _fill(batch: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
  """The batch with `valid`, filled up with copies of its last row."""
  count = len(next(iter(batch.values())))
  rows = np.minimum(np.arange(size), count - 1)
  filled = {name: array[rows] for name, array in batch.items()}
  return {**filled, "valid": np.arange(size) < count}
