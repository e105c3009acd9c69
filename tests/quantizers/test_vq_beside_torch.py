"""Three training steps beside vector-quantize-pytorch, of what the fixtures do not cover."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokzoo.quantizers import Ema, ResetBelow, VectorQuantizer
from tokzoo.quantizers.affine import Affine
from tokzoo.quantizers.gradients import Directional, SyncUpdate
from tokzoo.quantizers.updates import EncodecReset, Learnt

pytestmark = pytest.mark.torch

LEARNT = {"learnable_codebook": True, "ema_update": False}
# Dead codes are seldom at so low a threshold: without one the estimator is refused there.
SELDOM = 1e-9
CASES = {
  "affine": (
    {"affine_param": True, "decay": 0.9, "rotation_trick": False},
    VectorQuantizer(11, 5, update=Ema(0.9), affine=Affine()),
  ),
  "affine_learnt": (
    {"affine_param": True, "rotation_trick": False, **LEARNT},
    VectorQuantizer(11, 5, update=None, affine=Affine()),
  ),
  "sync_update": (
    {"sync_update_v": 0.3, "rotation_trick": True, **LEARNT},
    VectorQuantizer(11, 5, "euclidean", SyncUpdate(0.3, "latent", "rotation"), None),
  ),
  "directional": (
    {
      "directional_reparam": True,
      "directional_reparam_variance": 0.0,
      "threshold_ema_dead_code": SELDOM,
    },
    VectorQuantizer(
      11, 5, "euclidean", Directional(0.0), Learnt(reset=ResetBelow(SELDOM))
    ),
  ),
  "no_reset": (
    {"decay": 0.9, "rotation_trick": False},
    VectorQuantizer(11, 5, update=Ema(0.9, reset=EncodecReset())),
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_three_steps(name):
  torch = pytest.importorskip("torch")
  vq = pytest.importorskip("vector_quantize_pytorch")
  options, quantizer = CASES[name]
  torch.manual_seed(0)
  theirs = vq.VectorQuantize(dim=5, codebook_size=11, **options).train()
  book = theirs._codebook
  book.embed.data.copy_(torch.randn_like(book.embed))
  book.embed_avg.copy_(book.embed.data)
  first = jnp.asarray(book.embed[0].detach().numpy().copy())
  variables = quantizer.init(jax.random.key(0), jnp.zeros((1, 1, 5)))
  for collection in ("params", "codebook"):
    for entry in {"codes", "sums"} & set(variables.get(collection, {})):
      variables[collection][entry] = first

  @jax.jit
  def step(z, variables, cotangent):
    def total(z, params):
      quantized, after = quantizer.apply(
        {**variables, "params": params},
        z,
        train=True,
        mutable=["codebook"],
        rngs={"codebook": jax.random.key(0)},
      )
      return jnp.sum(quantized.values * cotangent), (quantized, after)

    return jax.grad(total, (0, 1), has_aux=True)(z, variables.get("params", {}))

  for shift in range(3):
    x = (3 * torch.randn(2, 7, 5) + shift).requires_grad_(True)
    cotangent = torch.randn(2, 7, 5)
    theirs.zero_grad()
    values, ids, _ = theirs(x)
    (values * cotangent).sum().backward()
    (grad, grads), (quantized, after) = step(
      x.detach().numpy(), variables, cotangent.numpy()
    )
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_array_equal(quantized.ids, ids.numpy())
    np.testing.assert_allclose(quantized.values, values.detach().numpy(), **close)
    np.testing.assert_allclose(grad, x.grad.numpy(), **close)
    if getattr(book.embed, "grad", None) is not None:
      np.testing.assert_allclose(grads["codes"], book.embed.grad[0].numpy(), **close)
    variables = {**variables, **after}
    if "codes" in after.get("codebook", {}):
      np.testing.assert_allclose(after["codebook"]["codes"], book.embed[0], **close)
