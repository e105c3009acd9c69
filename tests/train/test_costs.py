"""What compiled programs cost, against hand counts and XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tokzoo.machines import hlo
from tokzoo.machines.costs import count
from tokzoo.train.mesh import make_mesh
from tokzoo.train.recipe import MeshShape

ALONE = [0]


def compiled(fn, *shapes):
  args = [
    s if hasattr(s, "dtype") else jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes
  ]
  return jax.jit(fn).lower(*args).compile()


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
  def fn(w, x):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=6)[0]

  program = compiled(fn, (128, 128), (32, 128))
  once = 2 * 32 * 128 * 128
  assert count(program.as_text(), ALONE).flops == 6 * once
  # XLA's own count, for which this is here.
  assert program.cost_analysis()["flops"] < 2 * once


def test_loops_inside_loops_and_their_gradients():
  def fn(w, x):
    def inner(c, _):
      return c @ w, None

    def outer(c, _):
      return jax.lax.scan(inner, c, None, length=3)[0], None

    return jax.lax.scan(outer, x, None, length=4)[0].sum()

  costs = count(compiled(jax.grad(fn), (64, 64), (16, 64)).as_text(), ALONE)
  # Forward, and one product each for the weight and the input.
  assert costs.flops == pytest.approx(3 * 12 * 2 * 16 * 64 * 64, rel=0.1)
  assert costs.unknown_loops == 0


@pytest.mark.parametrize(
  ("stride", "padding", "groups", "dilation"),
  [(1, "SAME", 1, 1), (2, "SAME", 1, 1), (1, "VALID", 4, 1), (1, "SAME", 1, 2)],
)
def test_convolutions_as_xla_counts_them(stride, padding, groups, dilation):
  def fn(x, w):
    return jax.lax.conv_general_dilated(
      x,
      w,
      (stride, stride),
      padding,
      rhs_dilation=(dilation, dilation),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    )

  shapes = (4, 15, 15, 8), (3, 3, 8 // groups, 16)
  for function in (fn, jax.grad(lambda x, w: fn(x, w).sum(), argnums=(0, 1))):
    program = compiled(function, *shapes)
    theirs = program.cost_analysis()["flops"]
    ours = count(program.as_text(), ALONE).flops
    assert ours > 0
    assert ours == pytest.approx(theirs, rel=0.15)


def test_bytes_of_a_scan_are_those_of_its_slices():
  def fn(ws, x):
    return jax.lax.scan(lambda c, w: (c @ w, None), x, ws)[0]

  layers, width = 16, 256
  costs = count(compiled(fn, (layers, width, width), (8, width)).as_text(), ALONE)
  weights = layers * width * width * 4
  # Each layer reads its own weights, not all of them.
  assert weights < costs.hbm_bytes < 6 * weights


@pytest.mark.parametrize(
  ("collective", "kind", "sent"),
  [
    (lambda x: jax.lax.psum(x, "data"), "all-reduce", 2 * 3 / 4),
    (lambda x: jax.lax.all_gather(x, "data"), "all-gather", 3.0),
    (
      lambda x: jax.lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True),
      "reduce-scatter",
      3 / 4,
    ),
    (
      lambda x: jax.lax.all_to_all(x, "data", 1, 0, tiled=True),
      "all-to-all",
      3 / 4,
    ),
    (
      lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 2), (2, 3), (3, 0)]),
      "collective-permute",
      1.0,
    ),
  ],
)
def test_collectives_by_the_ring(collective, kind, sent):
  mesh = make_mesh(MeshShape(data=4), jax.devices()[:4])
  split = PartitionSpec("data")
  fn = jax.shard_map(
    collective, mesh=mesh, in_specs=split, out_specs=split, check_vma=False
  )
  x = jax.ShapeDtypeStruct(
    (4 * 8, 256), jnp.float32, sharding=NamedSharding(mesh, split)
  )
  text = jax.jit(fn).lower(x).compile().as_text()
  (one,) = count(text, [0] * 4).collectives
  here = 8 * 256 * 4
  assert (one.kind, one.over, one.count) == (kind, "link", 1)
  assert one.sent == pytest.approx(sent * here)
  (far,) = count(text, [0, 0, 1, 1]).collectives
  assert far.over == "network" and far.sent == one.sent
  assert 0 < far.crossing <= far.sent


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    (
      "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}",
      [[0, 1], [2, 3]],
    ),
    ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ("replica_groups={}", [[0, 1, 2, 3]]),
  ],
)
def test_groups_in_every_way_that_xla_writes_them(text, expected):
  line = f"  %x = f32[4]{{0}} all-reduce(%y), channel_id=1, {text}, to_apply=%add"
  np.testing.assert_array_equal(hlo.groups(hlo._instruction(line), 4), expected)


def test_what_lies_in_a_scratchpad_moves_nothing():
  shapes = list(hlo._shapes("(f32[8,128]{1,0:T(8,128)S(1)}, bf16[4]{0}, pred[])"))
  assert [s.is_hbm for s in shapes] == [False, True, True]
  assert [s.bytes for s in shapes] == [4096, 8, 1]


@pytest.mark.parametrize("batch", [False, True])
def test_products_with_and_without_a_batch(batch):
  lead = (3,) if batch else ()
  fn = functools.partial(jnp.einsum, "...ij,...jk->...ik")
  program = compiled(fn, (*lead, 32, 64), (*lead, 64, 16))
  expected = 2 * 32 * 64 * 16 * (3 if batch else 1)
  assert count(program.as_text(), ALONE).flops == expected
