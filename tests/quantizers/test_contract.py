"""What holds for every quantizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.compiling import AS_USERS
from tokzoo.contract import Quantizer
from tokzoo.quantizers import Ema, FiniteScalar, LookupFree, ResetBelow, VectorQuantizer
from tokzoo.quantizers.additive import Additive, AdditiveBeam
from tokzoo.quantizers.affine import Affine
from tokzoo.quantizers.ibq import IndexBackpropagation
from tokzoo.quantizers.latent import LatentQuantizer
from tokzoo.quantizers.opq import Rotated
from tokzoo.quantizers.product import Product
from tokzoo.quantizers.projected import Projected
from tokzoo.quantizers.qinco import Qinco
from tokzoo.quantizers.residual import residual_fsq
from tokzoo.quantizers.simvq import SimVQ
from tokzoo.quantizers.updates import Learnt

QUANTIZERS = {
  "fsq": FiniteScalar((8, 5, 5, 5)),
  "fsq_symmetric": FiniteScalar((2, 3, 4, 7), symmetric=True),
  "lfq": LookupFree(10, inverse_temperature=1.0),
  "lfq_31_bits": LookupFree(31, inverse_temperature=1.0),
  "lfq_groups": LookupFree(40, id_groups=4, inverse_temperature=1.0),
  "bsq": LookupFree(12, spherical=True, gradient="sign", inverse_temperature=1.0),
  "vq": VectorQuantizer(70, 6, update=Ema(0.8, reset=ResetBelow(0.95))),
  "vq_cosine": VectorQuantizer(
    70, 6, "cosine", "rotation", Ema(0.8, reset=ResetBelow(0.95))
  ),
  "vq_learnt": VectorQuantizer(70, 6, "cosine", update=None),
  "vq_revived": VectorQuantizer(70, 6, "angular", update=Learnt()),
  "vq_affine": VectorQuantizer(70, 6, update=Ema(0.8), affine=Affine()),
  "simvq": SimVQ(70, 6, frozen_dim=4),
  "ibq": IndexBackpropagation(70, 6, entropy_temperature=1.0),
  "product": Product(Projected(LookupFree(4, inverse_temperature=1.0), 6), 3),
  "opq": Rotated(Product(VectorQuantizer(70, 2, update=Ema(0.8)), 3)),
  "residual_fsq": residual_fsq((4, 3, 2), 2),
  "latent": LatentQuantizer((4, 3, 5)),
  "additive": Additive(20, 6, 2, AdditiveBeam(2)),
  "qinco": Qinco(20, 6, 2),
}
each = pytest.mark.parametrize("name", QUANTIZERS)
# A sum does not say which learnt codes it is made of.
each_invertible = pytest.mark.parametrize(
  "name", [name for name in QUANTIZERS if name not in ("additive", "qinco")]
)


def latent_size(quantizer) -> int:
  match quantizer:
    case FiniteScalar():
      return len(quantizer.levels)
    case LookupFree():
      return quantizer.bits
    case _:
      return quantizer.dim


def latents(quantizer, batch=8, length=5, seed=1):
  shape = (batch, length, latent_size(quantizer))
  return 2 * jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def variables_of(name):
  quantizer = QUANTIZERS[name]
  return jax.jit(quantizer.init)(jax.random.key(0), latents(quantizer))


@functools.cache
def compiled(name, method="__call__"):
  return jax.jit(functools.partial(QUANTIZERS[name].apply, method=method))


def train_step(name, z, mask=None):
  """Output, new state and gradient of a training step."""
  return compiled_step(name, variables_of(name), z, mask)


@functools.partial(jax.jit, static_argnums=0)
def compiled_step(name, variables, z, mask):
  def loss(z, params):
    quantized, after = QUANTIZERS[name].apply(
      {**variables, **params},
      z,
      mask,
      train=True,
      mutable=["codebook"],
      rngs={"codebook": jax.random.key(7)},
    )
    total = jnp.sum(jnp.sin(quantized.values)) + sum(quantized.losses.values(), 0.0)
    return total, (quantized, after)

  params = {"params": variables["params"]} if "params" in variables else {}
  grads, (quantized, after) = jax.grad(loss, argnums=(0, 1), has_aux=True)(z, params)
  return {"out": quantized, "after": after, "grads": grads}


exact_step = jax.jit(
  compiled_step.__wrapped__, static_argnums=0, compiler_options=AS_USERS
)


def assert_trees_equal(a, b, **tolerance):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, **tolerance)


@each
def test_follows_the_contract(name):
  quantizer = QUANTIZERS[name]
  assert isinstance(quantizer, Quantizer)
  quantized = compiled(name)(variables_of(name), latents(quantizer))
  assert quantized.values.dtype == jnp.float32
  assert quantized.ids.dtype == jnp.int32
  if not isinstance(quantizer, SimVQ):
    assert set(map(float, quantized.losses.values())) <= {0.0}, (
      "eval mode has no losses"
    )
  groups = getattr(quantizer, "id_groups", 1)
  assert quantizer.bits_per_token == pytest.approx(
    groups * np.log2(float(quantizer.num_codes))
  )


@each_invertible
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_ids_to_codes_to_ids(name, data):
  """Every id, or a spread of 4,096 from a drawn start, comes back as itself."""
  quantizer, variables = QUANTIZERS[name], variables_of(name)
  count = min(quantizer.num_codes, 4096)
  step = quantizer.num_codes // count
  start = data.draw(st.integers(0, quantizer.num_codes - 1 - step * (count - 1)))
  ids = start + step * np.arange(count)
  assert ids.max() < quantizer.num_codes
  ids = jnp.asarray(ids, jnp.int32)
  if getattr(quantizer, "id_groups", 1) > 1:
    ids = jnp.stack([jnp.roll(ids, shift) for shift in range(quantizer.id_groups)], -1)
  codes = compiled(name, "ids_to_codes")(variables, ids)
  back = compiled(name, "codes_to_ids")(variables, codes)
  np.testing.assert_array_equal(back, ids)
  again = compiled(name, "ids_to_codes")(variables, back)
  np.testing.assert_array_equal(again, codes)


@each
@settings(max_examples=15, deadline=None)
@given(
  z=st.lists(st.floats(-1e4, 1e4, width=32), min_size=40, max_size=40),
  dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
)
def test_any_latent_has_an_id_and_its_code(name, z, dtype):
  """Ids lie in range, and values are to the last bit the codes of the ids."""
  quantizer, variables = QUANTIZERS[name], variables_of(name)
  z = jnp.asarray(np.resize(z, (1, 3, latent_size(quantizer)))).astype(dtype)
  quantized = compiled(name)(variables, z)
  ids = np.asarray(quantized.ids)
  assert ids.min() >= 0 and ids.max() < quantizer.num_codes
  codes = compiled(name, "ids_to_codes")(variables, quantized.ids)
  np.testing.assert_array_equal(quantized.values, codes)


@each
def test_bfloat16_latents_give_the_float32_result(name):
  quantizer = QUANTIZERS[name]
  z = latents(quantizer).astype(jnp.bfloat16)
  low = compiled(name)(variables_of(name), z)
  high = compiled(name)(variables_of(name), z.astype(jnp.float32))
  assert_trees_equal(low, high, rtol=0, atol=0)


@each
def test_masked_equals_without_the_masked_rows(name):
  quantizer = QUANTIZERS[name]
  z = latents(quantizer)
  mask = jnp.ones(z.shape[:2], bool).at[3:].set(False)
  # What lies behind the mask must not matter, whatever it is.
  z = z.at[3:].set(jnp.where(z[3:] > 0, jnp.inf, jnp.nan))
  masked, short = train_step(name, z, mask), train_step(name, z[:3])
  assert np.all(np.asarray(masked["out"].ids)[3:] == -1)
  assert np.all(np.asarray(masked["out"].values)[3:] == 0)
  assert not np.asarray(masked["grads"][0])[3:].any()
  kept = masked["out"].replace(
    values=masked["out"].values[:3], ids=masked["out"].ids[:3]
  )
  assert_trees_equal(kept, short["out"], rtol=1e-6, atol=1e-6)
  assert_trees_equal(masked["grads"][0][:3], short["grads"][0], rtol=1e-5, atol=1e-6)
  assert_trees_equal(masked["grads"][1], short["grads"][1], rtol=1e-5, atol=1e-6)
  if not getattr(getattr(quantizer, "update", None), "reset", None):
    assert_trees_equal(masked["after"], short["after"], rtol=1e-6, atol=1e-7)


@each
def test_masked_ids_have_the_zero_code(name):
  quantizer = QUANTIZERS[name]
  ids = compiled(name)(variables_of(name), latents(quantizer)).ids
  codes = compiled(name, "ids_to_codes")(variables_of(name), jnp.full_like(ids, -1))
  assert codes.shape == latents(quantizer).shape and not codes.any()


@each
def test_one_device_equals_eight(name):
  """The state after a step is the same to the last bit on any mesh."""
  z = latents(QUANTIZERS[name], batch=16)
  mask = jax.random.bernoulli(jax.random.key(3), 0.8, z.shape[:2])
  mesh = Mesh(np.array(jax.devices()).reshape(8), ("data",))
  split = NamedSharding(mesh, PartitionSpec("data"))
  variables = variables_of(name)
  many = exact_step(name, variables, *jax.device_put((z, mask), split))
  one = exact_step(name, variables, *jax.device_put((z, mask), jax.devices()[0]))
  assert len(many["out"].values.sharding.device_set) == 8
  assert_trees_equal(many["after"], one["after"], rtol=0, atol=0)
  assert_trees_equal(
    (many["out"].values, many["out"].ids, many["out"].stats),
    (one["out"].values, one["out"].ids, one["out"].stats),
    rtol=0,
    atol=0,
  )
  assert_trees_equal(many["grads"], one["grads"], rtol=1e-5, atol=3e-5)
