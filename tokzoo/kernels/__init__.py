"""Kernels: a plain jax.numpy reference each, and faster forms beside it."""
