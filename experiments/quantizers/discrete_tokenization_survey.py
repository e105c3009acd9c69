"""The claims about codebook collapse and about residual, product and additive quantization.

  tokzoo reproduce discrete-tokenization-survey

Li et al., "Discrete Tokenization for Multimodal LLMs: A Comprehensive Survey" (arXiv
2507.22920), gathers the quantizers of `tokzoo.quantizers`; what it says of them is measured
here on 4 x 4 patches of scikit-learn's digits (16 pixels, 4 patches a digit), with an
autoencoder of two layers each way. Every quantizer has 512 codes, 9 bits for 16 pixels.

Lab record
  What decides is how the codebook moves, not the search. Weights of the losses are those
  that the papers publish: 0.25 for the commitment (LFQ's is unverified), 0.1 for the
  entropies. Diversity and entropy of VQ take an inverse temperature of 10, entropies of LFQ
  and BSQ of 1 (BSQ's own): at 100, the default of published code, the softmax is all but hard
  and hardly passes a gradient. Of the second claim's remedies the learnt, orthogonal codes
  alone do not use more; they are not among the eight that the survey's pilot lists. OPQ and PQ
  take 30 rounds of Lloyd's, the residual and additive quantizers 10. Codes begin near zero, as in
  vector_quantize_pytorch; from N(0, 1), larger than the latents, the rotation trick shrinks
  the latents and ends at 12 dB instead of 17.6.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from tokzoo.data import DataConfig, open_source
from tokzoo.quantizers import (
  AdditiveBeam,
  Affine,
  Diversity,
  Ema,
  Entropy,
  FiniteScalar,
  IndexBackpropagation,
  KMeans,
  LookupFree,
  Orthogonal,
  PeriodicReset,
  Product,
  Projected,
  ResetBelow,
  Residual,
  Rotated,
  SimVQ,
  VectorQuantizer,
)
from tokzoo.quantizers.additive import (
  decode,
  encode_greedily,
  fit_additive,
  fit_residual,
)
from tokzoo.quantizers.kmeans import first_means, kmeans
from tokzoo.quantizers.opq import fit_opq
from tokzoo.train.claims import Claim

SYSTEM = "discrete-tokenization-survey"

RECIPES = {}
"""A quantizer is trained inside a tokenizer; the recipes are those of the tokenizers."""

_STEPS, _BATCH, _LR, _WIDTH, _DIM = 1500, 64, 1e-3, 128, 16
_CODES = 512

# ---------------------------------------------------------------- one autoencoder


class PatchAutoencoder(nn.Module):
  """Patches of 16 pixels through a quantizer and back."""

  quantizer: Any

  def setup(self):
    dim = self.quantizer.dim
    self.encoder = nn.Sequential([nn.Dense(_WIDTH), nn.gelu, nn.Dense(dim)])
    self.decoder = nn.Sequential([nn.Dense(_WIDTH), nn.gelu, nn.Dense(16)])

  def __call__(self, patches: Float[Array, "B L D"], train: bool = False):
    quantized = self.quantizer(self.encoder(patches), train=train)
    return self.decoder(quantized.values), quantized

  def decode_ids(self, ids: Array) -> Float[Array, "B L D"]:
    return self.decoder(self.quantizer.ids_to_codes(ids))


@functools.cache
def patches(split: str) -> np.ndarray:
  """float32[N, 4, 16], the four 4 x 4 patches of each digit of a split, pixels in [0, 1]."""
  source = open_source(DataConfig("digits", split))
  digits = np.stack([source[i]["image"] for i in range(len(source))])[..., 0] / 255
  tiles = digits.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4)
  return tiles.reshape(-1, 4, 16).astype(np.float32)


def fit(
  quantizer: Any, weights: Mapping[str, float], seed: int, lr: float = _LR
) -> tuple[PatchAutoencoder, Any]:
  """Trains the autoencoder: mean squared error plus weighted losses, Adam."""
  model = PatchAutoencoder(quantizer)
  data = jnp.asarray(patches("train"))
  init_key, loop_key = jax.random.split(jax.random.key(seed))
  variables = model.init(
    {"params": init_key, "codebook": init_key}, data[:_BATCH], train=True
  )
  optimizer = optax.adam(optax.cosine_decay_schedule(lr, _STEPS))

  def step(carry, index):
    params, rest, state = carry
    pick_key, own_key = jax.random.split(jax.random.fold_in(loop_key, index))
    batch = data[jax.random.randint(pick_key, (_BATCH,), 0, len(data))]

    def loss(params):
      (decoded, quantized), updates = model.apply(
        {"params": params, **rest},
        batch,
        train=True,
        mutable=["codebook"],
        rngs={"codebook": own_key, "quantizer": own_key},
      )
      total = jnp.mean((decoded - batch) ** 2)
      for name, weight in weights.items():
        total = total + weight * quantized.losses[name]
      return total, updates

    gradient, updates = jax.grad(loss, has_aux=True)(params)
    change, state = optimizer.update(gradient, state, params)
    return (optax.apply_updates(params, change), {**rest, **updates}, state), None

  def run(variables):
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    carry = (variables["params"], rest, optimizer.init(variables["params"]))
    (params, rest, _), _ = jax.lax.scan(step, carry, jnp.arange(_STEPS))
    return {"params": params, **rest}

  return model, jax.jit(run)(variables)


def psnr(decoded: Array, wanted: Array) -> float:
  """In dB, of pixels in [0, 1]."""
  return float(-10 * jnp.log10(jnp.mean((jnp.clip(decoded, 0, 1) - wanted) ** 2)))


# ---------------------------------------------------------------- collapse and its remedies


@dataclasses.dataclass(frozen=True)
class Contestant:
  """A quantizer and the weights of its losses."""

  quantizer: Any
  weights: Mapping[str, float]


_COMMIT = {"commitment": 0.25}
_LEARN = {"commitment": 0.25, "codebook": 1.0}
_ENTROPY = {"sample_entropy": 0.1, "batch_entropy": -0.1}


def vq(**settings: Any) -> VectorQuantizer:
  return VectorQuantizer(_CODES, _DIM, codes_init=small_codes, **settings)


def small_codes(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """As vector_quantize_pytorch begins: uniform, Kaiming's bound for K D inputs."""
  bound = (6 / np.prod(shape)) ** 0.5
  return jax.random.uniform(key, shape, dtype, -bound, bound)


CONTESTANTS = {
  "learnt codes": Contestant(vq(update=None), _LEARN),
  "EMA": Contestant(vq(update=Ema(0.99)), _COMMIT),
  "EMA, rotation": Contestant(vq(update=Ema(0.99), gradient="rotation"), _COMMIT),
  "EMA, k-means start": Contestant(vq(update=Ema(0.99), start=KMeans()), _COMMIT),
  "EMA, cosine": Contestant(vq(update=Ema(0.99), metric="cosine"), _COMMIT),
  "EMA, reset below 0.1": Contestant(
    vq(update=Ema(0.99, reset=ResetBelow(0.1))), _COMMIT
  ),
  "EMA, periodic reset": Contestant(
    vq(update=Ema(0.99, reset=PeriodicReset())), _COMMIT
  ),
  "learnt, orthogonal": Contestant(
    vq(update=None, regularizers=(Orthogonal(),)), {**_LEARN, "orthogonal": 10.0}
  ),
  "learnt, diversity": Contestant(
    vq(update=None, regularizers=(Diversity(10.0),)), {**_LEARN, "diversity": 0.1}
  ),
  "learnt, entropy": Contestant(
    vq(update=None, regularizers=(Entropy(10.0),)), {**_LEARN, **_ENTROPY}
  ),
  "learnt, affine": Contestant(vq(update=None, affine=Affine()), _LEARN),
  "learnt, 4-d l2 codes": Contestant(
    Projected(VectorQuantizer(_CODES, 4, metric="cosine", update=None), _DIM), _LEARN
  ),
  "SimVQ": Contestant(SimVQ(_CODES, _DIM), {"commitment": 0.25, "codebook": 1.0}),
  "IBQ": Contestant(
    IndexBackpropagation(_CODES, _DIM),
    {"quantization": 1.0, "commitment": 1.0, "codebook": 0.25, **_ENTROPY},
  ),
  "FSQ 8, 8, 8": Contestant(FiniteScalar((8, 8, 8)), {}),
  "LFQ": Contestant(LookupFree(9, inverse_temperature=1.0), {**_COMMIT, **_ENTROPY}),
  "BSQ": Contestant(
    LookupFree(9, spherical=True, inverse_temperature=1.0), {**_COMMIT, **_ENTROPY}
  ),
}


@functools.cache
def collapse(seed: int) -> dict[str, float]:
  """Codes used by the training patches, in per cent, and PSNR of the test patches, in dB."""
  used, quality = {}, {}
  train, test = (jnp.asarray(patches(split)) for split in ("train", "test"))
  for name, contestant in CONTESTANTS.items():
    model, variables = fit(contestant.quantizer, contestant.weights, seed)
    apply = jax.jit(model.apply)
    ids = np.asarray(apply(variables, train)[1].ids)
    used[f"codes used (%): {name}"] = 100 * len(np.unique(ids)) / _CODES
    quality[f"PSNR (dB): {name}"] = psnr(apply(variables, test)[0], test)
  return {**used, **quality}


_EASY = ("FSQ 8, 8, 8", "LFQ", "BSQ")


def every_remedy_uses_more(numbers: Mapping[str, float]) -> bool:
  used = {n: v for n, v in numbers.items() if n.startswith("codes used")}
  plain = used.pop("codes used (%): learnt codes")
  return all(value > plain for value in used.values())


def reset_revives(numbers: Mapping[str, float]) -> bool:
  plain, reset = "learnt codes", "EMA, reset below 0.1"
  gain = numbers[f"PSNR (dB): {reset}"] - numbers[f"PSNR (dB): {plain}"]
  few = numbers[f"codes used (%): {plain}"] <= 15
  return few and numbers[f"codes used (%): {reset}"] >= 90 and gain >= 2


def fixed_codes_are_used(numbers: Mapping[str, float]) -> bool:
  return all(numbers[f"codes used (%): {name}"] >= 40 for name in _EASY)


# ---------------------------------------------------------------- products, residuals, sums

_BOOKS, _BOOK_CODES = 4, 16


def correlated(rows: int, seed: int) -> Array:
  """float32[rows, 16], Gaussians with correlation 0.9^|i - j| between dimensions."""
  key = jax.random.key(seed)
  distance = jnp.abs(jnp.arange(16)[:, None] - jnp.arange(16)[None])
  root = jnp.linalg.cholesky(jnp.power(jnp.float32(0.9), distance))
  return jax.random.normal(key, (rows, 16)) @ root.T


def on_gaussians(seed: int) -> dict[str, float]:
  return equal_bits(correlated(4096, 2 * seed), correlated(2048, 2 * seed + 1), seed)


def on_patches(seed: int) -> dict[str, float]:
  train, test = (jnp.asarray(patches(split)) for split in ("train", "test"))
  return equal_bits(train.reshape(-1, 16), test.reshape(-1, 16), seed)


def equal_bits(train: Array, test: Array, seed: int) -> dict[str, float]:
  """Squared error of held-out vectors at 4 codebooks of 16, as a share of their variance."""
  variance = jnp.var(test, axis=0).mean()
  methods = ("PQ", "OPQ", "RVQ", "AQ")
  return {
    method: float(jnp.mean((decoded - test) ** 2) / variance)
    for method, decoded in zip(methods, _decoded(train, test, seed), strict=True)
  }


def _decoded(train: Array, test: Array, seed: int) -> tuple[Array, ...]:
  """The test vectors through PQ, OPQ, RVQ and AQ fitted to the training vectors."""
  key = jax.random.key(seed)
  dim = train.shape[1] // _BOOKS
  product = Product(VectorQuantizer(_BOOK_CODES, dim), _BOOKS)
  means = [
    kmeans(chunk, first_means(chunk, _BOOK_CODES, key), 30)
    for chunk in jnp.split(train, _BOOKS, axis=1)
  ]
  codes, counts = (jnp.stack(parts) for parts in zip(*means, strict=True))
  state = {"codes": codes, "counts": counts, "sums": codes * counts[..., None]}
  plain: Any = product.apply({"codebook": {"quantizer": state}}, test[None])
  fitted = fit_opq(train, key, groups=_BOOKS, num_codes=_BOOK_CODES)
  rotated: Any = Rotated(product).apply(fitted.variables(), test[None])
  books = fit_residual(train, key, num_codebooks=_BOOKS, num_codes=_BOOK_CODES)
  sums = fit_additive(
    train,
    key,
    num_codebooks=_BOOKS,
    num_codes=_BOOK_CODES,
    encoder=AdditiveBeam(8),
  )
  return (
    plain.values[0],
    rotated.values[0],
    decode(books, encode_greedily(test, books)),
    decode(sums, AdditiveBeam()(test, sums)),
  )


def in_the_order_of_the_survey(numbers: Mapping[str, float]) -> bool:
  return numbers["AQ"] <= numbers["RVQ"] <= numbers["PQ"]


@functools.cache
def by_depth(seed: int) -> dict[str, float]:
  """PSNR of the test patches, decoded from the first 1 to 4 levels of 32 codes."""
  level = VectorQuantizer(32, _DIM, update=Ema(0.95, reset=ResetBelow(0.1)))
  quantizer = Residual(tuple(level.clone() for _ in range(4)), gradient="mimi")
  model, variables = fit(quantizer, _COMMIT, seed)
  test = jnp.asarray(patches("test"))
  quantized: Any = model.apply(variables, test)[1]
  found = {}
  for depth in range(1, 5):
    kept = jnp.where(jnp.arange(4) < depth, quantized.ids, -1)
    decoded: Any = model.apply(variables, kept, method="decode_ids")
    found[f"PSNR (dB): {depth} of 4 codebooks"] = psnr(decoded, test)
  return found


def each_level_adds(numbers: Mapping[str, float]) -> bool:
  return bool(np.all(np.diff(list(numbers.values())) >= 0.8))


# ---------------------------------------------------------------- claims

_SHEET = "arXiv 2507.22920, section 2 and table 1, at the scale of this repository"
_SETTING = (
  f"4 x 4 patches of digits, 512 codes (9 bits for 16 pixels), {_STEPS:,} steps of "
  f"{_BATCH} digits; codes used by the training patches, PSNR of the test patches"
)

_ORDER = "arXiv 2507.22920, table 4 (the order on SIFT1M)"
_BITS = (
  "4 codebooks of 16 codes; squared error of held-out vectors as a share of their variance; "
  "residual codebooks by k-means one after the other, additive ones from these by beam "
  "search and least squares"
)

CLAIMS = (
  Claim(
    "Learnt codes collapse (at most 15 % used), and dead-code reset revives them (at least "
    "90 % used, at least 2 dB more)",
    source=_SHEET,
    measure=collapse,
    holds=reset_revives,
    setting=_SETTING,
  ),
  Claim(
    "Every remedy uses more codes than plain learnt codes",
    source=_SHEET,
    measure=collapse,
    holds=every_remedy_uses_more,
    setting=_SETTING,
  ),
  Claim(
    "FSQ, LFQ and BSQ use at least 40 % of their codes with no averages and no reset (LFQ "
    "and BSQ with their entropies)",
    source=_SHEET,
    measure=collapse,
    holds=fixed_codes_are_used,
    setting=_SETTING,
  ),
  Claim(
    "Errors on correlated Gaussians at equal bits (4 codebooks of 16): additive "
    "quantization at most residual quantization, and that at most product quantization",
    source=_ORDER,
    measure=on_gaussians,
    holds=in_the_order_of_the_survey,
    setting="4,096 vectors of 16 dimensions, correlation 0.9^|i - j|; " + _BITS,
  ),
  Claim(
    "Errors on patches of digits at equal bits (4 codebooks of 16): additive "
    "quantization at most residual quantization, and that at most product quantization",
    source=_ORDER,
    measure=on_patches,
    holds=in_the_order_of_the_survey,
    setting="4 x 4 patches of digits; " + _BITS,
  ),
  Claim(
    "Each further codebook of a residual quantizer adds at least 0.8 dB",
    source=_SHEET,
    measure=by_depth,
    holds=each_level_adds,
    setting=f"4 x 4 patches of digits, 4 codebooks of 32 codes, {_STEPS:,} steps of "
    f"{_BATCH} digits; the test patches decoded from a prefix of the codebooks",
  ),
)

# Published rows; measured numbers never share a column with them.
TABLES = (
  {
    "what": "PSNR, rFID on ImageNet 256: VQGAN",
    "published": "27.86 dB, 1.228",
    "source": "arXiv 2507.22920, table 3",
  },
  {
    "what": "PSNR, rFID on ImageNet 256: FSQ",
    "published": "28.83 dB, 1.067",
    "source": "arXiv 2507.22920, table 3",
  },
  {
    "what": "PSNR, rFID on ImageNet 256: LFQ",
    "published": "27.87 dB, 2.444",
    "source": "arXiv 2507.22920, table 3",
  },
  {
    "what": "PSNR, rFID on ImageNet 256: BSQ",
    "published": "28.44 dB, 0.700",
    "source": "arXiv 2507.22920, table 3",
  },
  {
    "what": "recall@1/10/100 on SIFT1M, 64 bits: RVQ, PQ, CQ, AQ",
    "published": ".259/.658/.954, .224/.599/.924, .288/.716/.967, .298/.741/.972",
    "source": "arXiv 2507.22920, table 4",
  },
)
