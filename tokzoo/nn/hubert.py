"""HuBERT, whose hidden states speech codecs are distilled from or encode.

Hsu et al., arXiv 2106.07447; the base shape, with layer norms after each branch, in the names
of transformers' HubertModel (wav2vec 2.0's base shape is the same). What it is given is 16 kHz
audio float32[B, T], for the published base model of no particular scale.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tokzoo.nn.conv1d import CONV1D, Conv1d, conv1d, torch_init
from tokzoo.nn.group_norm import GroupNorm
from tokzoo.nn.layers import attend, merge_heads, split_heads
from tokzoo.weights import Rule, linear_rules, norm_rules


@dataclasses.dataclass(frozen=True)
class HuBERT:
  """Sizes; the defaults are those of hubert-base."""

  dim: int = 768
  """Features of the hidden states."""
  layers: int = 12
  """Of the transformer."""
  heads: int = 12
  """Of attention."""
  hidden: int = 3072
  """Features inside an MLP."""
  conv_dims: tuple[int, ...] = (512,) * 7
  """Features of the convolutions."""
  conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
  """In samples."""
  conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
  """In samples."""
  position_kernel: int = 128
  """Taps of the convolution that tells positions."""
  position_groups: int = 16
  """Groups of it."""

  def frames(self, samples: int) -> int:
    """Frames of so many samples."""
    for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
      samples = (samples - kernel) // stride + 1
    return samples


class Model(nn.Module):
  """Audio to the hidden states before and after each layer."""

  net: HuBERT

  @nn.compact
  def __call__(self, x: Float[Array, "B T"]) -> list[Float[Array, "B L D"]]:
    c = self.net
    y = x[..., None]
    sizes = zip(c.conv_dims, c.conv_kernels, c.conv_strides, strict=True)
    for i, (features, kernel, stride) in enumerate(sizes):
      conv = Conv1d(features, kernel, stride, use_bias=False, name=f"conv_{i}")
      y = conv(y)
      if i == 0:
        y = GroupNorm(features, epsilon=1e-5, name="conv_0_norm")(y)
      y = nn.gelu(y, approximate=False)
    y = nn.Dense(c.dim, name="projection")(_norm("projection_norm")(y))
    y = y + nn.gelu(Positions(c, name="positions")(y), approximate=False)
    y = _norm("layer_norm")(y)
    states = [y]
    for i in range(c.layers):
      y = Layer(c, name=f"layers_{i}")(y)
      states.append(y)
    return states


class Positions(nn.Module):
  """A grouped convolution, each group by itself: XLA's own is slow on CPUs."""

  net: HuBERT

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    c, taps = self.net, self.net.position_kernel
    size = c.dim // c.position_groups
    kernel = self.param("kernel", torch_init, (taps, size, c.dim)).astype(x.dtype)
    bias = self.param("bias", nn.initializers.zeros, (c.dim,)).astype(x.dtype)
    # An even kernel would give one frame more; the last is left out.
    padded = jnp.pad(x, ((0, 0), (taps // 2, taps // 2 - (taps + 1) % 2), (0, 0)))
    parts = zip(
      jnp.split(padded, c.position_groups, axis=-1),
      jnp.split(kernel, c.position_groups, axis=-1),
      strict=True,
    )
    y = jnp.concatenate([conv1d(part, own) for part, own in parts], axis=-1)
    return y + bias[None, None]


class Layer(nn.Module):
  """Attention over all frames and an MLP, each added and then normalised."""

  net: HuBERT

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    c = self.net
    q, k, v = (
      split_heads(nn.Dense(c.dim, name=f"{n}_proj")(x), c.dim // c.heads) for n in "qkv"
    )
    y = nn.Dense(c.dim, name="out_proj")(merge_heads(attend(q, k, v)))
    x = _norm("layer_norm")(x + y)
    y = nn.gelu(nn.Dense(c.hidden, name="intermediate_dense")(x), approximate=False)
    y = nn.Dense(c.dim, name="output_dense")(y)
    return _norm("final_layer_norm")(x + y)


def _norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def hubert_rules(key: str, path: str) -> tuple[Rule, ...]:
  """The rules of transformers' HubertModel, whose `masked_spec_embed` has no place here.

  Args:
    key: the authors' prefix with its dot, e.g. "semantic_model.", or "".
    path: ours, e.g. "params/semantic_model".
  """
  conv = f"{key}feature_extractor.conv_layers"
  proj, encoder = f"{key}feature_projection", f"{key}encoder"
  layer, own = f"{encoder}.layers.{{i}}", f"{path}/layers_{{i}}"
  position = f"{encoder}.pos_conv_embed.conv"
  rules: list[Rule] = [
    Rule(f"{conv}.{{i}}.conv.weight", f"{path}/conv_{{i}}/kernel", CONV1D),
    *norm_rules(f"{conv}.0.layer_norm", f"{path}/conv_0_norm"),
    *norm_rules(f"{proj}.layer_norm", f"{path}/projection_norm"),
    *linear_rules(f"{proj}.projection", f"{path}/projection"),
    Rule(f"{position}.weight", f"{path}/positions/kernel", CONV1D),
    Rule(f"{position}.bias", f"{path}/positions/bias"),
    *norm_rules(f"{encoder}.layer_norm", f"{path}/layer_norm"),
    *norm_rules(f"{layer}.layer_norm", f"{own}/layer_norm"),
    *norm_rules(f"{layer}.final_layer_norm", f"{own}/final_layer_norm"),
  ]
  for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
    rules += linear_rules(f"{layer}.attention.{name}", f"{own}/{name}")
  for name in ("intermediate_dense", "output_dense"):
    rules += linear_rules(f"{layer}.feed_forward.{name}", f"{own}/{name}")
  return tuple(rules)
