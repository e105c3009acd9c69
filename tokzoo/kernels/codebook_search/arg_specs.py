"""Shapes of real models, that tests compile for and the bench runs on."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ArgSpec:
  """One search.

  name:      what the shape is from
  n:         rows, all latents of a batch
  k:         codes
  d:         features
  heads:     codebooks that are searched side by side
  top_k:     codes a row
  on_cpu:    whether a CPU gets through it in about a second
  """

  name: str
  n: int
  k: int
  d: int
  heads: int = 1
  top_k: int = 1
  on_cpu: bool = True

  @property
  def score_bytes(self) -> int:
    """What the float32 [N, K] matrices take that the kernels never make."""
    return 4 * self.heads * self.n * self.k

  @property
  def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
    """x float32[H, N, D], codebook float32[H, K, D], bias float32[H, K]."""
    return tuple(
      jax.ShapeDtypeStruct((self.heads, *shape), jnp.float32)
      for shape in ((self.n, self.d), (self.k, self.d), (self.k,))
    )


ARG_SPECS = (
  ArgSpec("16k-8k-64", 16_384, 8_192, 64),
  ArgSpec("vq-gan-1k-256", 16_384, 1_024, 256),
  ArgSpec("llamagen-16k-8", 16_384, 16_384, 8),
  ArgSpec("titok-4k-12", 8_192, 4_096, 12),
  ArgSpec("encodec-1k-128", 8_192, 1_024, 128),
  ArgSpec("vit-vqgan-8k-32", 8_192, 8_192, 32),
  ArgSpec("product-8x256-32", 16_384, 256, 32, heads=8),
  ArgSpec("best-rq-8k-16", 4_096, 8_192, 16, heads=4),
  ArgSpec("odd-1001-997-5", 1_001, 997, 5),
  ArgSpec("beam-4-1k-64", 4_096, 1_024, 64, top_k=4),
  ArgSpec("dall-e-8k-512", 8_192, 8_192, 512, on_cpu=False),
  ArgSpec("text-32k-768", 8_192, 32_768, 768, on_cpu=False),
  ArgSpec("ibq-262k-256", 16_384, 262_144, 256, on_cpu=False),
  ArgSpec("256k-16k-8", 262_144, 16_384, 8, on_cpu=False),
  ArgSpec("256k-16k-64", 262_144, 16_384, 64, on_cpu=False),
  ArgSpec("256k-16k-256", 262_144, 16_384, 256, on_cpu=False),
)
