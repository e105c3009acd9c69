"""Metrics against other people's implementations, and the rules of merging."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tokzoo.errors import TokzooError
from tokzoo.metrics import (
  PSNR,
  SSIM,
  BitEntropy,
  BitsPerPixel,
  CodebookUsage,
  FrechetDistance,
  InceptionScore,
  Mean,
  Metric,
  Moments,
  PrecisionRecall,
  frechet_distance,
)
from tokzoo.metrics.probing import probed
from tokzoo.tokens import Tokens

ROWS = 12


def pictures(seed=0, count=ROWS, size=24):
  rng = np.random.default_rng(seed)
  images = rng.uniform(-1, 1, (count, size, size + 3, 3)).astype(np.float32)
  noise = rng.normal(size=images.shape) * rng.uniform(0.01, 0.5, (count, 1, 1, 1))
  return images, np.clip(images + noise, -1, 1).astype(np.float32)


def features(seed=0, count=ROWS, size=5):
  rng = np.random.default_rng(seed)
  mix = rng.normal(size=(size, size))
  return (rng.normal(size=(count, size)) @ mix + rng.normal(size=size)).astype("f4")


RNG = np.random.default_rng(5)
IDS = RNG.integers(0, 9, (ROWS, 6))
BITS = RNG.random((ROWS, 4, 7)) < np.linspace(0, 0.9, 7)
CASES = {
  "mean": (Mean.from_batch, (features(),)),
  "psnr": (PSNR.from_batch, pictures()),
  "ssim": (SSIM.from_batch, pictures()),
  "usage": (lambda ids, valid: CodebookUsage.from_ids(ids, 11, valid), (IDS,)),
  "bits": (BitEntropy.from_bits, (BITS.astype(np.float32),)),
  "rate": (
    lambda mask, valid: BitsPerPixel.from_tokens(
      Tokens(packed=jnp.zeros((*mask.shape, 1), jnp.uint32), bits=20, mask=mask),
      24,
      32,
      valid,
    ),
    (RNG.random((ROWS, 6)) < 0.7,),
  ),
  "frechet": (FrechetDistance.from_batch, (features(1), features(2))),
  "inception_score": (
    lambda logits, valid: InceptionScore.from_batch(logits, valid, splits=3),
    (features(3),),
  ),
  "precision_recall": (PrecisionRecall.from_batch, (features(1), features(2))),
}
each = pytest.mark.parametrize("name", CASES)


def as_dict(value):
  return value if isinstance(value, dict) else {"": value}


def whole(name):
  build, arrays = CASES[name]
  return as_dict(build(*map(jnp.asarray, arrays), None).compute())


@each
@settings(max_examples=5, deadline=None)
@given(cuts=st.sets(st.integers(1, ROWS - 1), max_size=3), nest=st.booleans())
def test_merged_batches_equal_one_batch(name, cuts, nest):
  """In any grouping; a row that is not valid counts nowhere, whatever it holds."""
  build, arrays = CASES[name]
  build = jax.jit(build)
  states = []
  edges = [0, *sorted(cuts), ROWS]
  for start, stop in itertools.pairwise(edges):
    # Always 12 rows: the rest of a batch is filled with what must not count.
    valid = np.arange(ROWS) < stop - start
    batch = []
    for array in arrays:
      junk = np.nan if array.dtype == np.float32 else array[0]
      filled = np.full_like(array, junk) if np.isscalar(junk) else array.copy()
      filled[: stop - start] = array[start:stop]
      batch.append(jnp.asarray(filled))
    states.append(build(*batch, jnp.asarray(valid)))
  if nest:
    states.reverse()
    total = states[0]
    for state in states[1:]:
      total = state.merge(total)
  else:
    total = states[0]
    for state in states[1:]:
      total = total.merge(state)
  assert isinstance(total, Metric)
  assert as_dict(total.compute()) == pytest.approx(whole(name), rel=1e-5, abs=1e-6)


@each
def test_nothing_measured_is_said(name):
  build, arrays = CASES[name]
  state = build(*map(jnp.asarray, arrays), jnp.zeros(ROWS, bool))
  with pytest.raises(TokzooError):
    state.compute()


def test_mean():
  values = jnp.asarray([[1.0, 3.0], [5.0, 7.0], [100.0, 100.0]])
  state = Mean.from_batch(values, jnp.asarray([True, True, False]))
  assert state.compute() == 4.0


def test_psnr_equals_scikit_image():
  images, others = pictures()
  result = PSNR.from_batch(jnp.asarray(images), jnp.asarray(others)).compute()
  each_db = [
    peak_signal_noise_ratio(*pair, data_range=2) for pair in zip(images, others)
  ]
  assert result["mean_db"] == pytest.approx(np.mean(each_db), abs=1e-4)
  pooled = peak_signal_noise_ratio(images, others, data_range=2)
  assert result["pooled_db"] == pytest.approx(pooled, abs=1e-4)
  assert result["pooled_db"] < result["mean_db"]
  same = PSNR.from_batch(jnp.asarray(images), jnp.asarray(images)).compute()
  assert same == {"mean_db": float("inf"), "pooled_db": float("inf")}


@pytest.mark.parametrize("picture", ["astronaut", "coffee", "noise"])
def test_ssim_equals_scikit_image(picture):
  if picture == "noise":
    images, others = pictures(count=3, size=40)
  else:
    image = getattr(data, picture)()[100:260, 80:250].astype(np.float32) / 127.5 - 1
    noise = 0.1 * np.random.default_rng(0).normal(size=image.shape).astype(np.float32)
    images = np.stack([image, image])
    others = np.stack([np.clip(image + noise, -1, 1), np.roll(image, 1, axis=0)])
  ours = SSIM.from_batch(jnp.asarray(images), jnp.asarray(others)).compute()
  theirs = [
    structural_similarity(
      x,
      y,
      gaussian_weights=True,
      sigma=1.5,
      use_sample_covariance=False,
      data_range=2,
      channel_axis=-1,
    )
    for x, y in zip(images.astype(np.float64), others.astype(np.float64))
  ]
  assert ours == pytest.approx(np.mean(theirs), abs=1e-4)


def test_pictures_that_cannot_be_compared_are_refused():
  with pytest.raises(TokzooError, match="one shape"):
    PSNR.from_batch(jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 16, 1)))
  with pytest.raises(TokzooError, match="11 pixels"):
    SSIM.from_batch(jnp.zeros((1, 8, 16, 3)), jnp.zeros((1, 8, 16, 3)))


def test_codebook_usage():
  ids = jnp.asarray([[0, 0, 1, 1], [3, -1, -1, -1]])
  result = CodebookUsage.from_ids(ids, 8).compute()
  shares = np.array([2, 2, 1]) / 5
  entropy = -(shares * np.log(shares)).sum()
  assert result == pytest.approx(
    {
      "usage": 3 / 8,
      "dead_codes": 5,
      "perplexity": np.exp(entropy),
      "entropy": entropy / np.log(8),
    }
  )
  counts = jnp.asarray([2, 2, 0, 1, 0, 0, 0, 0])
  assert CodebookUsage.from_counts(counts).compute() == result
  uniform = CodebookUsage.from_counts(jnp.full(16, 5)).compute()
  assert uniform["perplexity"] == pytest.approx(16) and uniform["entropy"] == 1


def test_bit_entropy():
  bits = np.zeros((2, 200, 4), bool)
  bits[:, ::2, 1] = True  # half
  bits[:, ::4, 2] = True  # a quarter
  bits[0, 0, 3] = True  # 1 in 400: entropy, but not in use
  entropies = [-p * np.log2(p) - (1 - p) * np.log2(1 - p) for p in (0.25, 1 / 400)]
  expected = {"mean": (0 + 1 + sum(entropies)) / 4, "in_use": 0.5}
  assert BitEntropy.from_bits(jnp.asarray(bits)).compute() == pytest.approx(expected)
  on, tokens = jnp.asarray([0.0, 200, 100, 1]), jnp.float32(400)
  assert BitEntropy.from_counts(on, tokens).compute() == pytest.approx(expected)


def test_bits_per_pixel():
  tokens = Tokens.from_ids(jnp.zeros((2, 16), jnp.int32), 256)
  assert BitsPerPixel.from_tokens(tokens, 8, 8).compute() == 16 * 8 / 64
  half = tokens.replace(mask=jnp.arange(16)[None, :] < jnp.asarray([[16], [8]]))
  assert BitsPerPixel.from_tokens(half, 8, 8).compute() == 12 * 8 / 64
  first = BitsPerPixel.from_tokens(half, 8, 8, jnp.asarray([True, False]))
  assert first.compute() == 16 * 8 / 64


def published_frechet(x, y):
  """The formula as FID code has it: the general matrix root of the product."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  shift = x.mean(0) - y.mean(0)
  cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
  root = sqrtm(cov_x @ cov_y).real
  return shift @ shift + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(root)


@pytest.mark.parametrize("size", [3, 64])
def test_frechet_distance_equals_the_published_formula(size):
  x, y = features(1, 300, size), features(2, 500, size)
  whole_sets = frechet_distance(Moments.from_batch(x), Moments.from_batch(y))
  assert whole_sets == pytest.approx(published_frechet(x, y), rel=1e-6)
  parts = [Moments.from_batch(part) for part in np.split(y, [7, 100, 101])]
  merged = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
  distance = frechet_distance(Moments.from_batch(x), merged)
  assert distance == pytest.approx(whole_sets, rel=1e-10)
  in_jit = jax.jit(Moments.from_batch)
  distance = frechet_distance(in_jit(jnp.asarray(x)), in_jit(jnp.asarray(y)))
  assert distance == pytest.approx(whole_sets, rel=1e-5)


def test_frechet_distance_of_fewer_pictures_than_features():
  x = features(1, 10, 40)
  moments = Moments.from_batch(x)
  assert frechet_distance(moments, moments) == pytest.approx(
    0, abs=1e-5 * np.trace(moments.covariance())
  )
  moved = Moments.from_batch(x + 1)
  assert frechet_distance(moments, moved) == pytest.approx(40, rel=1e-4)


def test_inception_score_equals_the_definition():
  logits = features(4, 60, 7)
  p = np.exp(logits.astype(np.float64))
  p /= p.sum(-1, keepdims=True)
  scores = []
  for split in range(4):
    part = p[split::4]
    kl = (part * (np.log(part) - np.log(part.mean(0)))).sum(-1)
    scores.append(np.exp(kl.mean()))
  result = InceptionScore.from_batch(jnp.asarray(logits), splits=4).compute()
  assert result == pytest.approx({"mean": np.mean(scores), "std": np.std(scores)}, 1e-5)
  with pytest.raises(TokzooError, match="10 splits"):
    InceptionScore.from_batch(jnp.asarray(logits[:9])).compute()


def test_precision_and_recall_equal_the_definition():
  real, generated = features(1, 40, 3), 0.7 * features(1, 30, 3) + 0.4
  generated = np.concatenate([generated, features(9, 10, 3) + 20])

  def share(points, manifold):
    pair = np.linalg.norm(manifold[:, None] - manifold[None], axis=-1)
    radii = np.sort(pair, axis=1)[:, 3]
    distance = np.linalg.norm(points[:, None] - manifold[None], axis=-1)
    return (distance <= radii).any(1).mean()

  result = PrecisionRecall.from_batch(jnp.asarray(real), jnp.asarray(generated))
  assert result.compute() == {
    "precision": share(generated, real),
    "recall": share(real, generated),
  }
  assert result.compute()["precision"] <= 0.75


def test_a_probe_tells_what_the_codes_together_say_and_no_more():
  draw = np.random.default_rng(0)
  ids = draw.integers(4, size=(40, 30, 3))
  # Of the first two codebooks both are needed, the third knows nothing.
  labels = (ids[..., 0] >= 2) * 2 + (ids[..., 1] >= 2)
  assert (probed(ids[..., :2], labels, 30) == 1).all()
  half = probed(ids[..., :1], labels, 30)
  assert half.shape == (10,) and 0.4 < half.mean() < 0.6
  assert probed(ids[..., 2:], labels, 30).mean() < 0.35
