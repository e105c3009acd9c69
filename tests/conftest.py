"""The test session: 8 CPU devices, strict promotion, one compilation cache for all tests.

Two thirds of the time of `pytest` would be XLA's, which compiles thousands of tiny programs
that run once: its slow passes are left out. Tests with a marker of their own (`-m aot`), and
all with TOKZOO_TEST_OPTIMIZED=1, compile as users do.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from tokzoo.places import cache_dir

jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
  """XLA reads its flags when the first program is compiled, which is later."""
  flags = ["--xla_force_host_platform_device_count=8"]
  is_everyday = config.option.markexpr.startswith("not ")
  if is_everyday and not os.environ.get("TOKZOO_TEST_OPTIMIZED"):
    flags += [
      "--xla_backend_optimization_level=0",
      "--xla_llvm_disable_expensive_passes=true",
      "--xla_cpu_use_fusion_emitters=false",
    ]
  given = os.environ.get("XLA_FLAGS", "")
  flags = [flag for flag in flags if flag.partition("=")[0] not in given]
  os.environ["XLA_FLAGS"] = " ".join([given, *flags]).strip()


@pytest.fixture
def rng():
  return jax.random.key(0)
