"""Vocos' backbone with attention, and the head that makes audio by an inverse STFT.

Siuzdak, "Vocos" (arXiv 2306.00814), as WavTokenizer extends it (arXiv 2408.16532): residual
blocks and an attention over all frames before the ConvNeXt blocks, whose norms are conditioned
on one of a few bandwidths. Sequences are float[B, L, D].
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from tokzoo.nn.conv1d import POINTWISE1D, Conv1d, conv1d_rules
from tokzoo.nn.group_norm import GroupNorm
from tokzoo.nn.layers import attend
from tokzoo.weights import Rule, linear_rules, norm_rules


@dataclasses.dataclass(frozen=True)
class Vocos:
  """Sizes; the defaults are WavTokenizer's at 75 frames a second."""

  dim: int = 768
  """Features."""
  hidden: int = 2304
  """Features inside a ConvNeXt block."""
  layers: int = 12
  """ConvNeXt blocks."""
  groups: int = 32
  """Of each GroupNorm."""
  bandwidths: int = 4
  """Entries of each conditional norm."""
  n_fft: int = 1280
  """Samples of a window."""
  hop: int = 320
  """Samples a frame."""


class ResBlock(nn.Module):
  """x + two convolutions of 3 taps, each after a GroupNorm and swish."""

  groups: int

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    y = x
    for n in (1, 2):
      y = nn.swish(GroupNorm(self.groups, name=f"norm{n}")(y))
      y = Conv1d(x.shape[-1], 3, padding=1, name=f"conv{n}")(y)
    return checkpoint_name(x + y, "block")


class AttentionBlock(nn.Module):
  """x + attention of one head over all frames."""

  groups: int

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    y = GroupNorm(self.groups, name="norm")(x)
    q, k, v = (nn.Dense(x.shape[-1], name=name)(y)[:, :, None] for name in "qkv")
    return x + nn.Dense(x.shape[-1], name="proj_out")(attend(q, k, v)[:, :, 0])


class ConditionalNorm(nn.Module):
  """LayerNorm whose scale and shift belong to a bandwidth."""

  bandwidths: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], bandwidth: Int[Array, ""] | int
  ) -> Float[Array, "B L D"]:
    shape = (self.bandwidths, x.shape[-1])
    scale = self.param("scale", nn.initializers.ones, shape)[bandwidth]
    shift = self.param("shift", nn.initializers.zeros, shape)[bandwidth]
    plain = nn.LayerNorm(
      epsilon=1e-6, use_scale=False, use_bias=False, use_fast_variance=False
    )
    y = plain(x) * scale.astype(x.dtype)[None, None]
    return y + shift.astype(x.dtype)[None, None]


class ConvNeXtBlock(nn.Module):
  """x + a scaled MLP of a depthwise convolution of 7 taps."""

  net: Vocos

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], bandwidth: Int[Array, ""] | int
  ) -> Float[Array, "B L D"]:
    c = self.net
    y = Conv1d(c.dim, 7, padding=3, groups=c.dim, name="dwconv")(x)
    y = ConditionalNorm(c.bandwidths, name="norm")(y, bandwidth)
    y = nn.gelu(nn.Dense(c.hidden, name="pwconv1")(y), approximate=False)
    y = nn.Dense(c.dim, name="pwconv2")(y)
    gamma = self.param("gamma", nn.initializers.constant(1 / c.layers), (c.dim,))
    return checkpoint_name(x + gamma.astype(x.dtype)[None, None] * y, "block")


class Backbone(nn.Module):
  """Codes to the features that the head reads."""

  net: Vocos

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L E"], bandwidth: Int[Array, ""] | int = 0
  ) -> Float[Array, "B L D"]:
    c = self.net
    x = Conv1d(c.dim, 7, padding=3, name="embed")(x)
    for i in range(5):
      kind = AttentionBlock if i == 2 else ResBlock
      x = kind(c.groups, name=f"pos_net_{i}")(x)
    x = GroupNorm(c.groups, name="pos_net_5")(x)
    x = ConditionalNorm(c.bandwidths, name="norm")(x, bandwidth)
    for i in range(c.layers):
      x = ConvNeXtBlock(c, name=f"convnext_{i}")(x, bandwidth)
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="final_layer_norm")(
      x
    )


class Head(nn.Module):
  """Magnitude and phase of each frame's spectrum, to audio of hop samples a frame.

  In float32 whatever comes in. Magnitudes are at most 100.
  """

  net: Vocos

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B T"]:
    c = self.net
    told = nn.Dense(c.n_fft + 2, name="out")(x).astype(jnp.float32)
    magnitude, phase = jnp.split(told, 2, axis=-1)
    magnitude = jnp.minimum(jnp.exp(magnitude), 100.0)
    spectrum = jax.lax.complex(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase))
    return inverse_stft(spectrum, c.n_fft, c.hop)


def inverse_stft(spectrum: Array, n_fft: int, hop: int) -> Float[Array, "B T"]:
  """Frames to audio: windowed (Hann), added up, divided by what the windows add up to.

  Args:
    spectrum: complex64[B, L, n_fft / 2 + 1].
    n_fft: samples of a frame.
    hop: samples from one frame to the next.

  Returns:
    float32[B, L * hop]: half a window less a hop is cut from both ends.
  """
  window = np.hanning(n_fft + 1)[:-1].astype(np.float32)
  frames = jnp.fft.irfft(spectrum, n_fft, axis=-1) * jnp.asarray(window)[None, None]
  power = np.broadcast_to(np.square(window), (1, *frames.shape[1:]))
  cut = (n_fft - hop) // 2
  total = _overlap_add(frames, hop)[:, cut:]
  weight = _overlap_add(jnp.asarray(power), hop)[:, cut:]
  length = (frames.shape[1] - 1) * hop + n_fft - 2 * cut
  return total[:, :length] / weight[:, :length]


def _overlap_add(frames: Float[Array, "B L n"], hop: int) -> Float[Array, "B T"]:
  batch, length, size = frames.shape
  parts = -(-size // hop)
  frames = jnp.pad(frames, ((0, 0), (0, 0), (0, parts * hop - size)))
  blocks = frames.reshape(batch, length, parts, hop)
  later = [
    jnp.pad(blocks[:, :, i], ((0, 0), (i, parts - 1 - i), (0, 0))) for i in range(parts)
  ]
  return sum(later[1:], later[0]).reshape(batch, -1)


def vocos_rules(backbone: str, head: str, path: str) -> tuple[Rule, ...]:
  """The rules of backbone and head.

  Args:
    backbone, head: the authors' prefixes.
    path: ours of what holds both, e.g. "params".
  """
  ours = f"{path}/backbone"
  net, own = f"{backbone}.pos_net.{{i}}", f"{ours}/pos_net_{{i}}"
  block, inner = f"{backbone}.convnext.{{i}}", f"{ours}/convnext_{{i}}"
  rules: list[Rule] = [*conv1d_rules(f"{backbone}.embed", f"{ours}/embed")]
  for n in (1, 2):
    rules += conv1d_rules(f"{net}.conv{n}", f"{own}/conv{n}")
    rules += norm_rules(f"{net}.norm{n}", f"{own}/norm{n}")
    rules += linear_rules(f"{block}.pwconv{n}", f"{inner}/pwconv{n}")
  for name in ("q", "k", "v", "proj_out"):
    rules.append(Rule(f"{net}.{name}.weight", f"{own}/{name}/kernel", POINTWISE1D))
    rules.append(Rule(f"{net}.{name}.bias", f"{own}/{name}/bias"))
  rules += norm_rules(f"{net}.norm", f"{own}/norm")
  rules += norm_rules(f"{backbone}.pos_net.5", f"{ours}/pos_net_5")
  rules += conv1d_rules(f"{block}.dwconv", f"{inner}/dwconv")
  for stem, place in ((backbone, ours), (block, inner)):
    for name in ("scale", "shift"):
      rules.append(Rule(f"{stem}.norm.{name}.weight", f"{place}/norm/{name}"))
  rules.append(Rule(f"{block}.gamma", f"{inner}/gamma"))
  rules += norm_rules(f"{backbone}.final_layer_norm", f"{ours}/final_layer_norm")
  rules += linear_rules(f"{head}.out", f"{path}/head/out")
  return tuple(rules)
