"""Regularizers of codebooks, and the quantizers whose losses are the point: SimVQ, IBQ, dVAE."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.errors import TokzooError
from tokzoo.quantizers import VectorQuantizer
from tokzoo.quantizers.gumbel import GumbelSoftmax
from tokzoo.quantizers.ibq import IndexBackpropagation
from tokzoo.quantizers.regularizers import (
  Diversity,
  Entropy,
  Orthogonal,
  softmax_entropies,
)
from tokzoo.quantizers.simvq import SimVQ


@functools.partial(jax.jit, static_argnums=0)
def step(quantizer, variables, z, mask=None):
  """Output and gradient of the sum of all losses in a training step."""

  def total(z, params):
    quantized = quantizer.apply(
      {**variables, "params": params},
      z,
      mask,
      train=True,
      rngs={"codebook": jax.random.key(4)},
    )
    return sum(quantized.losses.values(), jnp.zeros(())), quantized

  grads, quantized = jax.grad(total, (0, 1), has_aux=True)(z, variables["params"])
  return quantized, grads


def init(quantizer, z):
  return jax.jit(quantizer.init)(jax.random.key(0), z)


def check_by_differences(function, x, grad, places, step=1e-2, rel=2e-2):
  """A few entries of a gradient by central differences."""
  function = jax.jit(function)
  for place in places:
    ahead, behind = x.at[place].add(step), x.at[place].add(-step)
    difference = float(function(ahead) - function(behind)) / (2 * step)
    assert float(grad[place]) == pytest.approx(difference, rel=rel, abs=1e-3)


@pytest.mark.parametrize("active_only", [False, True])
def test_orthogonality_equals_the_sum_over_pairs(active_only, rng):
  codes = 3 * jax.random.normal(rng, (7, 4))
  ids = jnp.asarray([[0, 2, 2, -1], [5, 0, -1, -1]])
  regularizer = Orthogonal(active_only)

  def loss(codes):
    z = jnp.zeros((2, 4, 4))
    return regularizer(z, codes, ids, ids >= 0, "euclidean")["orthogonal"]

  rows = np.asarray(codes, np.float64)[[0, 2, 5] if active_only else slice(None)]
  rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
  expected = np.mean((rows @ rows.T) ** 2) - 1 / len(rows)
  value, grad = jax.jit(jax.value_and_grad(loss))(codes)
  assert float(value) == pytest.approx(expected, rel=1e-5)
  check_by_differences(loss, codes, grad, [(0, 1), (5, 3)])
  assert np.asarray(grad)[1].any() != active_only
  if active_only:
    nobody = regularizer(None, codes, jnp.full((1, 2), -1), None, "euclidean")
    assert float(nobody["orthogonal"]) == 0


def test_orthogonal_codes_cost_nothing():
  eye = jnp.eye(6)
  value = Orthogonal()(None, eye, jnp.zeros((1, 1), jnp.int32), None, "cosine")
  assert float(value["orthogonal"]) == pytest.approx(0, abs=1e-7)


def test_diversity_is_per_position_over_the_batch(rng):
  z = jax.random.normal(rng, (5, 3, 2))
  codes = jax.random.normal(jax.random.key(1), (6, 2))
  mask = jnp.ones((5, 3), bool).at[2:, 1].set(False).at[:, 2].set(False)
  loss = jax.jit(
    lambda z, mask: Diversity(3.0)(z, codes, None, mask, "euclidean")["diversity"]
  )
  distance = np.linalg.norm(np.asarray(z)[:, :, None] - np.asarray(codes), axis=-1)
  p = np.exp(-3.0 * distance)
  p /= p.sum(-1, keepdims=True)

  def entropy(q):
    return -(q * np.log(np.maximum(q, 1e-5))).sum(-1)

  everywhere = -np.mean(entropy(p.mean(0)))
  assert float(loss(z, None)) == pytest.approx(everywhere, rel=1e-4)
  kept = -np.mean([entropy(p[:, 0].mean(0)), entropy(p[:2, 1].mean(0))])
  assert float(loss(jnp.where(mask[..., None], z, 9), mask)) == pytest.approx(
    kept, rel=1e-4
  )


def test_entropies_of_a_softmax(rng):
  logits = 3 * jax.random.normal(rng, (3, 4, 5))
  mask = jnp.ones((3, 4), bool).at[1].set(False)
  sample, batch = jax.jit(softmax_entropies)(logits, mask)
  p = np.asarray(jax.nn.softmax(logits, -1), np.float64)[np.asarray(mask)]
  assert float(sample) == pytest.approx(-(p * np.log(p)).sum(-1).mean(), rel=1e-5)
  mean = p.mean(0)
  assert float(batch) == pytest.approx(-(mean * np.log(mean + 1e-5)).sum(), rel=1e-5)
  sharp = jax.jit(jax.grad(lambda x: sum(softmax_entropies(x))))(1e6 * logits)
  assert np.isfinite(sharp).all()


def test_entropies_by_squared_distances(rng):
  """Softmax of -|z - c|^2 / T, as MaskGIT's tokenizer is trained."""
  z, codes = 0.1 * jax.random.normal(rng, (2, 5, 3)), 0.1 * jnp.eye(4, 3)
  loss = Entropy(1 / 0.01, is_squared=True)
  found = loss(z, codes, jnp.zeros((2, 5), jnp.int32), None, "euclidean")
  flat = np.asarray(z, np.float64).reshape(10, 3)
  distances = np.square(flat[:, None] - np.asarray(codes)[None]).sum(-1)
  p = np.exp(-distances / 0.01)
  p /= p.sum(-1, keepdims=True)
  sample, mean = -(p * np.log(p)).sum(-1).mean(), p.mean(0)
  assert float(found["sample_entropy"]) == pytest.approx(sample, rel=1e-4)
  batch = -(mean * np.log(mean + 1e-5)).sum()
  assert float(found["batch_entropy"]) == pytest.approx(batch, rel=1e-4)
  with pytest.raises(TokzooError, match="for the euclidean metric, not 'cosine'"):
    loss(z, codes, jnp.zeros((2, 5), jnp.int32), None, "cosine")


def test_regularizers_are_losses_of_the_layer(rng):
  """Named, unweighted, of the codes that the search sees, zeros in evaluation."""
  quantizer = VectorQuantizer(
    8, 3, update=None, regularizers=(Orthogonal(), Diversity(2.0), Entropy(2.0))
  )
  z = jax.random.normal(rng, (2, 6, 3))
  variables = init(quantizer, z)
  quantized, (_, grads) = step(quantizer, variables, z)
  names = {"commitment", "codebook", "orthogonal", "diversity"}
  assert set(quantized.losses) == names | {"sample_entropy", "batch_entropy"}
  assert all(float(loss) != 0 for loss in quantized.losses.values())
  assert np.asarray(grads["codes"]).all(), "the entropies reach codes not chosen"
  still = jax.jit(quantizer.apply)(variables, z).losses
  assert set(still) == set(quantized.losses) and not any(map(float, still.values()))


def test_simvq_moves_every_code_by_one_matrix(rng):
  quantizer = SimVQ(40, 3, frozen_dim=5)
  z = jax.random.normal(rng, (2, 10, 3))
  variables = init(quantizer, z)
  frozen = np.asarray(variables["codebook"]["frozen"])
  assert frozen.shape == (40, 5)
  assert frozen.std() == pytest.approx(5**-0.5, rel=0.15)
  quantized, (_, grads) = step(quantizer, variables, z)
  kernel = variables["params"]["transform"]["kernel"]
  codes = frozen @ np.asarray(kernel)
  np.testing.assert_allclose(
    quantized.values, codes[np.asarray(quantized.ids)], rtol=1e-5, atol=1e-6
  )
  # Its losses are there in evaluation too.
  still = jax.jit(quantizer.apply)(variables, z)
  assert {k: float(v) for k, v in still.losses.items()} == {
    k: pytest.approx(float(v)) for k, v in quantized.losses.items()
  }

  def loss(kernel):  # the codes chosen stay the same in so small a step
    params = {"params": {"transform": {"kernel": kernel}}}
    return sum(quantizer.apply({**variables, **params}, z).losses.values())

  # commitment stops at the codes, codebook does not, and both have the same value.
  grad = 2 * grads["transform"]["kernel"]
  check_by_differences(loss, kernel, grad, [(0, 0), (4, 2)], step=1e-3)


def test_ibq_gives_every_code_a_gradient(rng):
  quantizer = IndexBackpropagation(30, 4, entropy_temperature=1.0)
  z = jax.random.normal(rng, (2, 5, 4))
  variables = init(quantizer, z)
  codes = variables["params"]["codes"]
  quantized, (grad_z, grads) = step(quantizer, variables, z)
  logits = np.asarray(z) @ np.asarray(codes).T
  np.testing.assert_array_equal(quantized.ids, logits.argmax(-1))
  np.testing.assert_array_equal(
    quantized.values, np.asarray(codes)[np.asarray(quantized.ids)]
  )
  assert np.asarray(grads["codes"]).any(-1).all() and np.asarray(grad_z).any()
  names = {"quantization", "commitment", "codebook", "sample_entropy", "batch_entropy"}
  assert set(quantized.losses) == names

  def entropies(codes):
    sharp = quantizer.apply({"params": {"codes": codes}}, z, train=True).losses
    return sharp["sample_entropy"] - sharp["batch_entropy"]

  grad = jax.jit(jax.grad(entropies))(codes)
  check_by_differences(entropies, codes, grad, [(0, 0), (17, 2)])


@pytest.mark.parametrize("is_hard", [False, True])
def test_dvae_trains_through_its_softmax(is_hard, rng):
  """The soft path is a true gradient; the hard one has its gradient at the code's value."""
  soft = GumbelSoftmax(12, 3, temperature=0.8)
  quantizer = GumbelSoftmax(12, 3, temperature=0.8, is_hard=is_hard)
  z = jax.random.normal(rng, (2, 4, 3))
  variables = init(quantizer, z)
  codes = np.asarray(variables["params"]["codes"])

  def total(quantizer, kernel):
    params = {**variables["params"]}
    params["to_logits"] = {**params["to_logits"], "kernel": kernel}
    rngs = {"codebook": jax.random.key(4)}
    quantized = quantizer.apply({"params": params}, z, train=True, rngs=rngs)
    return jnp.sum(quantized.values), quantized

  kernel = variables["params"]["to_logits"]["kernel"]
  loss = functools.partial(total, quantizer)
  grad, quantized = jax.jit(jax.grad(loss, has_aux=True))(kernel)
  check_by_differences(
    lambda kernel: total(soft, kernel)[0], kernel, grad, [(0, 0), (2, 7)]
  )
  drawn = codes[np.asarray(quantized.ids)]
  assert np.allclose(quantized.values, drawn) == is_hard
  still = jax.jit(quantizer.apply)(variables, z)
  logits = np.asarray(z) @ np.asarray(kernel)
  np.testing.assert_array_equal(still.ids, logits.argmax(-1))
  np.testing.assert_array_equal(still.values, codes[logits.argmax(-1)])


def test_dvae_divergence_temperature_and_padding(rng):
  quantizer = GumbelSoftmax(12, 3)
  z = 2 * jax.random.normal(rng, (2, 40, 3))
  variables = init(quantizer, z)
  mask = jnp.ones((2, 40), bool).at[1].set(False)
  padded = z.at[1].set(jnp.nan)
  quantized, grads = step(quantizer, variables, padded, mask)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((quantized, grads)))
  assert (np.asarray(quantized.ids)[1] == -1).all()
  assert not np.asarray(quantized.values)[1].any()
  logits = np.asarray(z)[0] @ np.asarray(variables["params"]["to_logits"]["kernel"])
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  kl = (p * np.log(p * 12)).sum(-1).mean()
  assert float(quantized.losses["kl"]) == pytest.approx(kl, rel=1e-4)

  @jax.jit
  def spread(heat):
    rngs = {"codebook": jax.random.key(4)}
    drawn = quantizer.apply(variables, z, train=True, temperature=heat, rngs=rngs)
    return jnp.std(drawn.values)

  assert spread(0.1) > 1.5 * spread(10.0), "hot mixtures lie near the mean code"


def test_dvae_round_trip(rng):
  quantizer = GumbelSoftmax(300, 4)
  variables = init(quantizer, jnp.ones((1, 1, 4)))
  ids = jnp.arange(300).reshape(3, 100)

  @jax.jit
  def there_and_back(ids):
    codes = quantizer.apply(variables, ids, method="ids_to_codes")
    return codes, quantizer.apply(variables, codes, method="codes_to_ids")

  codes, back = there_and_back(ids)
  np.testing.assert_array_equal(back, ids)
  masked, _ = there_and_back(jnp.full((1, 2), -1))
  assert codes.shape == (3, 100, 4) and not masked.any()
