"""Layers of today's transformers: heads, attention, feed-forward."""

import functools
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

  The softmax runs in float32. Every query must see at least one key.
  """
  return jax.nn.dot_product_attention(q, k, v, mask=mask)


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
