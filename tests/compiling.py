"""The compiler as users have it, for tests that look at the last bit (see conftest.py)."""

AS_USERS = {
  "xla_backend_optimization_level": 3,
  "xla_llvm_disable_expensive_passes": False,
  "xla_cpu_use_fusion_emitters": True,
}
"""`compiler_options` of `jax.jit`."""
