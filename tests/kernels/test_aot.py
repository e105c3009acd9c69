"""Every kernel by the real compilers of machines that are not here: `pytest -m aot`."""

import functools

import jax
import jax.numpy as jnp
import pytest

from tokzoo import machines
from tokzoo.errors import TokzooError
from tokzoo.kernels import aot
from tokzoo.kernels.bit_packing import gpu as packing_gpu
from tokzoo.kernels.bit_packing import reference as packing
from tokzoo.kernels.bit_packing import tpu as packing_tpu
from tokzoo.kernels.bit_packing import xla as packing_xla
from tokzoo.kernels.codebook_search import gpu, tpu
from tokzoo.kernels.codebook_search.arg_specs import ARG_SPECS, ArgSpec
from tokzoo.machines import topologies

TARGETS = {"v5e": tpu.search, "v6e": tpu.search, "h100": gpu.search}
MIB = 2**20

needs_compilers = [
  pytest.mark.aot,
  pytest.mark.skipif(
    not all(machines.is_installed(target) for target in TARGETS),
    reason='the compilers are not installed: pip install "tokzoo[plan]"',
  ),
]


def with_marks(*params):
  return [
    pytest.param(*p, marks=needs_compilers, id="-".join(map(str, p))) for p in params
  ]


def naive(x, codebook, bias):
  """All scores at once, in float32."""
  scores = jnp.einsum("hnd,hkd->hnk", x, codebook, precision=jax.lax.Precision.HIGHEST)
  return jnp.argmax(scores - bias[:, None, :], axis=-1)


def of_name(name: str) -> ArgSpec:
  return next(spec for spec in ARG_SPECS if spec.name == name)


@pytest.mark.parametrize(
  ("target", "name"),
  with_marks(
    *(
      (target, spec.name)
      for target in TARGETS
      for spec in ARG_SPECS
      if target != "h100" or spec.top_k == 1
    )
  ),
)
def test_the_search_compiles_and_keeps_no_scores(target, name):
  spec = of_name(name)
  search = functools.partial(TARGETS[target], top_k=spec.top_k)
  report = aot.compile_for(search, spec.shapes, target)
  # The GPU's compiler is quick; on TPU the scores themselves are the yardstick, because
  # there XLA fuses the naive form too and it is slow to compile.
  whole = spec.score_bytes
  if target == "h100":
    whole = aot.compile_for(naive, spec.shapes, target).temp_bytes
    assert whole >= spec.score_bytes
  print(
    f"\n{target} {name}: temporary {report.temp_bytes / MIB:.2f} MiB, all scores "
    f"{whole / MIB:.1f} MiB ({report.temp_bytes / whole:.2%}), inputs "
    f"{report.argument_bytes / MIB:.1f} MiB, compiled in {report.seconds:.1f} s"
  )
  if target == "h100":
    # Split codes and a slice of split rows, each 1.5 times what it is split from. Widths
    # are filled up to 16 or 32 features.
    width = -(-spec.d // 16) * 16 if spec.d <= 16 else -(-spec.d // 32) * 32
    rows = min(spec.n, 2**16) + 128
    assert report.temp_bytes < 13 * spec.heads * width * (rows + spec.k + 256)
  else:
    assert report.temp_bytes <= 0.01 * spec.score_bytes
  if spec.score_bytes >= 2**34 and spec.k < 2**18:
    assert report.temp_bytes < 0.02 * spec.score_bytes


@pytest.mark.parametrize(
  ("target", "n"),
  with_marks(*((t, n) for t in ("v5e", "v6e") for n in (128, 1000, 2048))),
)
def test_the_packing_kernels_move_every_array_once(target, n):
  rows = 2**21 // n // 8 * 8
  latents = jax.ShapeDtypeStruct((rows, n), jnp.float32)
  words = jax.ShapeDtypeStruct((rows, -(-n // 32)), jnp.uint32)
  for kernel, plain, args in (
    (packing_tpu.pack, packing.pack, (latents,)),
    (
      functools.partial(packing_tpu.unpack, n=n, kind="sign"),
      functools.partial(packing.unpack, n=n, kind="sign"),
      (words,),
    ),
  ):
    report = aot.compile_for(kernel, args, target)
    by_xla = aot.compile_for(plain, args, target)
    print(
      f"\n{target} {n} bits: temporary {report.temp_bytes / MIB:.2f} MiB; XLA moves "
      f"{(by_xla.bytes_accessed or 0) / MIB:.0f} MiB for "
      f"{(by_xla.argument_bytes + by_xla.output_bytes) / MIB:.0f}"
    )
    assert report.temp_bytes <= 0.1 * (report.argument_bytes + report.output_bytes)


@pytest.mark.parametrize(("target",), with_marks(*((t,) for t in TARGETS)))
def test_packed_products_never_hold_all_bits(target):
  rows, n = 2**15, 256
  words = jax.ShapeDtypeStruct((rows, n // 32), jnp.uint32)
  weights = jax.ShapeDtypeStruct((n, 64), jnp.float32)
  multiply = functools.partial(packing_xla.packed_matmul, kind="sign")
  report = aot.compile_for(multiply, (words, weights), target)
  assert report.temp_bytes < rows * n * 4 / 4


@pytest.mark.parametrize(
  ("target", "n", "d"),
  with_marks(*(("h100", n, d) for n, d in ((128, 512), (256, 1024), (18, 100)))),
)
def test_the_gpu_kernel_of_packed_products_keeps_no_bits(target, n, d):
  rows = 2**17
  words = jax.ShapeDtypeStruct((rows, -(-n // 32)), jnp.uint32)
  weights = jax.ShapeDtypeStruct((n, d), jnp.float32)
  args = (words, weights)
  kernel = functools.partial(packing_gpu.packed_matmul, kind="sign")
  report = aot.compile_for(kernel, args, target)
  plain = functools.partial(packing.packed_matmul, kind="sign")
  whole = aot.compile_for(plain, args, target).temp_bytes
  # Columns are filled up to 128, and the rest cut off again.
  padding = rows * 128 * 4 if d % 128 else 0
  print(
    f"\n{target} product of {n} bits: temporary {report.temp_bytes / MIB:.2f} MiB, "
    f"naive {whole / MIB:.1f} MiB"
  )
  assert whole >= rows * n * 4
  assert report.temp_bytes - padding < 0.1 * whole


def test_an_unknown_machine_is_named_with_those_there_are():
  with pytest.raises(TokzooError, match=r"unknown chip 'v7'.*v6e"):
    topologies.devices("v7")


@pytest.mark.parametrize(("target",), with_marks(("v5e:3x7",), ("h100:8",)))
def test_a_topology_that_there_is_not(target):
  with pytest.raises(TokzooError, match="no topology"):
    topologies.devices(target)


def test_a_missing_compiler_names_the_extra(monkeypatch):
  monkeypatch.setattr(topologies, "is_installed", lambda name: False)
  with pytest.raises(TokzooError, match=r"tokzoo\[plan\]"):
    topologies.devices("v4")
