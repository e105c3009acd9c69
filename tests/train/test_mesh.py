"""The mesh, path rules, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tokzoo import machines
from tokzoo.errors import TokzooError
from tokzoo.machines import topologies
from tokzoo.train import MeshShape, make_mesh, shardings
from tokzoo.train.mesh import check_batch, host_arrays, put_batch

FSDP = MeshShape(1, 8)


def spec_of(shape, mesh_shape=FSDP, rules=()):
  """The spec of one array that is called encoder/kernel."""
  variables = {"params": {"encoder": {"kernel": jnp.zeros(shape)}}}
  placed = shardings(variables, make_mesh(mesh_shape), rules)
  return placed["params"]["encoder"]["kernel"].spec


def test_minus_one_takes_what_is_left():
  mesh = make_mesh(MeshShape(data=-1, fsdp=2, model=2))
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "model": 2}


@pytest.mark.parametrize(
  ("shape", "words"),
  [
    (MeshShape(-1, -1, 1), "one of them may be -1"),
    (MeshShape(0, 1, 1), "sizes are positive"),
    (MeshShape(3, 1, 1), "needs 3 devices, but there are 8"),
    (MeshShape(-1, 3, 1), "a multiple of 3 devices, but there are 8"),
  ],
)
def test_a_mesh_that_cannot_be_made(shape, words):
  with pytest.raises(TokzooError, match=words):
    make_mesh(shape)


def test_fsdp_takes_the_largest_divisible_axis():
  assert spec_of((32, 64)) == P(None, "fsdp")
  assert spec_of((64, 32)) == P("fsdp")
  assert spec_of((64, 64)) == P(None, "fsdp")
  assert spec_of((63, 32)) == P(None, "fsdp")  # 63 is larger, but 8 does not divide it
  assert spec_of((63, 33)) == P()
  assert spec_of((8, 8)) == P()  # small arrays are copied
  assert spec_of((64, 64), MeshShape(8, 1)) == P()


def test_the_first_matching_rule_wins():
  rules = (("encoder/k", ("model", None)), ("encoder", (None, "model")))
  with pytest.raises(TokzooError, match=r"'encoder' matches no variable"):
    spec_of((64, 64), MeshShape(1, 2, 4), rules)
  assert spec_of((64, 64), MeshShape(1, 2, 4), rules[:1]) == P("model", None)


@pytest.mark.parametrize(
  ("rule", "words"),
  [
    (("kernel", ("fsdp",)), "matches no variable"),  # expressions match from the start
    (("encoder", ("rows",)), "names the mesh axis 'rows'"),
    (("encoder", ("fsdp", "fsdp")), "uses a mesh axis twice"),
    (("encoder", ("fsdp", None, None)), "has 3 axes"),
    (("encoder", (None, "fsdp")), "splits an axis of 63"),
  ],
)
def test_rules_are_checked(rule, words):
  with pytest.raises(TokzooError, match=words):
    spec_of((64, 63), rules=(rule,))


def test_a_batch_that_the_mesh_does_not_divide_is_refused_with_the_numbers():
  mesh = make_mesh(MeshShape(4, 2))
  check_batch(mesh, 16, accumulate=2)
  with pytest.raises(TokzooError, match=r"batch of 12 .* 8 devices .* multiple of 8"):
    check_batch(mesh, 12)
  with pytest.raises(TokzooError, match=r"24 .* 2 micro-batches.* multiple of 16"):
    check_batch(mesh, 24, accumulate=2)


def test_a_batch_is_split_over_data_and_fsdp_but_not_model():
  mesh = make_mesh(MeshShape(2, 2, 2))
  x = np.arange(8, dtype=np.float32)[:, None]
  batch = put_batch({"x": x, "key": np.array(["a"] * 8)}, mesh, 8)
  assert set(batch) == {"x"}
  assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 1)}
  np.testing.assert_array_equal(jax.device_get(batch["x"]), x)


def test_only_numbers_leave_the_host():
  batch = {"image": np.zeros(2, np.uint8), "valid": np.ones(2, bool), "key": ["a", "b"]}
  assert set(host_arrays(batch)) == {"image", "valid"}


@dataclasses.dataclass(frozen=True)
class Chip:
  """As much of a TPU's device as laying out needs."""

  id: int
  slice_index: int
  coords: tuple[int, int, int]
  platform: str = "tpu"
  device_kind: str = "TPU v5 lite"
  process_index: int = 0
  core_on_chip: int = 0


def test_only_the_data_axis_crosses_slices():
  # Two slices of 2 x 4 chips, in turns.
  chips = [
    Chip(id, slice_index=id % 2, coords=(id // 2 % 2, id // 4, 0)) for id in range(16)
  ]
  mesh = make_mesh(MeshShape(4, 2, 2), chips)
  assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "model": 2}
  found = [{chip.slice_index for chip in row.flat} for row in mesh.devices]
  assert found == [{0}, {0}, {1}, {1}]
  with pytest.raises(TokzooError, match="data of 1 cannot be spread over 2 TPU slices"):
    make_mesh(MeshShape(1, 16, 1), chips)


@pytest.mark.aot
@pytest.mark.skipif(not machines.is_installed("v5e"), reason="needs the extra plan")
def test_two_slices_of_a_pod():
  chips = topologies.devices("2xv5e:4x4")
  mesh = make_mesh(MeshShape(-1, 8, 1), chips)
  found = [{chip.slice_index for chip in row.flat} for row in mesh.devices]
  assert found == [{0}, {0}, {1}, {1}]
