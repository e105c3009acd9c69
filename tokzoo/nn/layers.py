"""Layers of today's transformers: heads, attention, feed-forward."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def split_heads(x: Float[Array, "B L D"], head_dim: int) -> Float[Array, "B L H d"]:
  """Cuts the features into heads of `head_dim`."""
  return x.reshape(*x.shape[:-1], x.shape[-1] // head_dim, head_dim)


def merge_heads(x: Float[Array, "B L H d"]) -> Float[Array, "B L D"]:
  """The inverse of `split_heads`."""
  return x.reshape(*x.shape[:-2], -1)


def attend(
  q: Float[Array, "B Q H d"],
  k: Float[Array, "B K H d"],
  v: Float[Array, "B K H d"],
  mask: Bool[Array, "#B 1 #Q K"] | None = None,
) -> Float[Array, "B Q H d"]:
  """Softmax attention, scaled by 1/sqrt(d); True in `mask` lets a key be seen.

  The softmax runs in float32. Every query must see at least one key. On an NVIDIA GPU half
  precision goes to cuDNN's fused attention, which keeps no matrix of weights: a train step of
  LlamaGen-L on an H200 takes 17 % less time and two thirds of the memory
  (experiments/results/plan/h200.json).
  """
  fused = is_for_cudnn(q, k, mask) and _has_cudnn()
  how = "cudnn" if fused else "xla"
  return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=how)


def is_for_cudnn(q: Any, k: Any, mask: Any = None) -> bool:
  """Whether cuDNN's attention takes these arrays, in training too (shapes as in `attend`)."""
  queries, keys = q.shape[1], k.shape[1]
  if q.dtype not in (jnp.bfloat16, jnp.float16) or k.dtype != q.dtype:
    return False
  if q.shape[-1] > 128 or q.shape[-1] % 8:
    return False
  if mask is None:
    return queries > 1  # for one query nothing is to be gained
  # A mask becomes an added bias, which must name all queries and, for its gradient, be even.
  named = mask.shape[-2:] == (queries, keys)
  return named and queries > 1 and queries % 2 == 0 and keys % 2 == 0


@functools.cache
def _has_cudnn() -> bool:
  """Whether this process computes on NVIDIA GPUs that have fused attention (Ampere or later).

  A plan for GPUs that are not here knows no cuDNN, and has the plain attention.
  """
  if jax.default_backend() != "gpu":
    return False
  capability = getattr(jax.local_devices()[0], "compute_capability", "")
  return bool(re.fullmatch(r"\d+\.\d+", capability)) and float(capability) >= 8.0


def rows_dot_general(
  x: Array, kernel: Array, dimensions: Any, *args: Any, **kwargs: Any
) -> Array:
  """`dot_general` of a Dense layer, for `nn.Dense(dot_general=...)`: x [..., D] as rows [N, D].

  The same numbers. The gradient of the kernel then sums over one axis instead of two, for
  which XLA's CPU compiler would first copy both operands in another order.
  """
  rows = jax.lax.dot_general(
    x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), *args, **kwargs
  )
  return rows.reshape(*x.shape[:-1], kernel.shape[-1])


class GatedMLP(nn.Module):
  """Wd(silu(Wg x) * Wu x), without biases (SwiGLU, arXiv 2002.05202)."""

  hidden: int
  kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    dense = functools.partial(
      nn.Dense,
      use_bias=False,
      kernel_init=self.kernel_init,
      dot_general=rows_dot_general,
    )
    gate = dense(self.hidden, name="gate_proj")(x)
    up = dense(self.hidden, name="up_proj")(x)
    return dense(x.shape[-1], name="down_proj")(nn.silu(gate) * up)


class MLP(nn.Module):
  """Two linear layers with biases and the tanh form of GELU between."""

  hidden: int

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    x_hidden = nn.gelu(nn.Dense(self.hidden, name="up_proj")(x), approximate=True)
    return nn.Dense(x.shape[-1], name="down_proj")(x_hidden)


def float32(x: Array) -> Float[Array, "..."]:
  """`x` in float32: quantizers and losses compute in it, whatever the model's dtype."""
  return jnp.asarray(x, jnp.float32)
