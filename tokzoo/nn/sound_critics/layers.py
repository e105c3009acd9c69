"""What the discriminators of sound share: convolutions with weight or spectral norm."""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

Norm = Literal["weight", "spectral", "none"]


@struct.dataclass
class Verdict:
  """What one sub-discriminator says.

  logits:  float[B, ..., 1], high for recordings
  maps:    its feature maps, in order; whether the logits are among them is the network's
  kind:    which of the networks of `Critics` it belongs to
  """

  logits: Float[Array, "B ..."]
  maps: tuple[Array, ...]
  kind: int = struct.field(pytree_node=False, default=0)


class NormConv(nn.Module):
  """A convolution over any number of axes, its kernel normalised as the name says.

  weight:    g v / |v|, a norm for each output channel; g starts as |v|
  spectral:  v / sigma, the largest singular value by one power iteration a training step and one
             at the start, whose vectors are the collection `spectral`

  Fields are those of a Linen convolution; `padding` counts samples on both sides.
  """

  features: int
  size: tuple[int, ...]
  strides: tuple[int, ...] | None = None
  dilation: tuple[int, ...] | None = None
  padding: tuple[int, ...] | None = None
  groups: int = 1
  norm: Norm = "weight"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    axes = len(self.size)
    shape = (*self.size, x.shape[-1] // self.groups, self.features)
    fan_in = 1
    for size in shape[:-1]:
      fan_in *= size
    # torch's default for convolutions.
    init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    bound = fan_in**-0.5
    bias = self.param("bias", _uniform(bound), (self.features,), jnp.float32)
    kernel = self.param("kernel", init, shape, jnp.float32)
    if self.norm == "weight":
      start = jnp.linalg.norm(kernel.reshape(-1, self.features), axis=0)
      gain = self.param("gain", lambda _: start)
      flat = kernel.reshape(-1, self.features).astype(jnp.float32)
      length = jnp.sqrt(jnp.maximum(jnp.square(flat).sum(0), 1e-24))
      scale = gain.astype(jnp.float32) / length
      kernel = kernel * scale.astype(kernel.dtype)[(None,) * (axes + 1)]
    elif self.norm == "spectral":
      kernel = kernel / self._sigma(kernel).astype(kernel.dtype)
    padding = self.padding or (0,) * axes
    spatial = "TFZ"[:axes]
    made = jax.lax.conv_general_dilated(
      x,
      kernel.astype(x.dtype),
      window_strides=self.strides or (1,) * axes,
      padding=[(p, p) for p in padding],
      rhs_dilation=self.dilation or (1,) * axes,
      dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
      feature_group_count=self.groups,
    )
    return made + bias.astype(x.dtype)[(None,) * (axes + 1)]

  def _sigma(self, kernel: Array) -> Float[Array, ""]:
    """The largest singular value of [out, in * taps], by torch's power iteration."""
    matrix = kernel.reshape(-1, self.features).T.astype(jnp.float32)
    fixed = jax.lax.stop_gradient(matrix)

    def begin(size: int) -> Array:
      key = self.make_rng("params")
      return _unit(jax.random.normal(key, (size,)))

    left = self.variable("spectral", "left", begin, matrix.shape[0])
    right = self.variable("spectral", "right", begin, matrix.shape[1])
    u, v = left.value, right.value
    if self.is_mutable_collection("spectral"):
      v = _unit(fixed.T @ u)
      u = _unit(fixed @ v)
      # While initializing too, where torch iterates at its first look: vectors as drawn make a
      # sigma of hundredths, and a generator that is judged by it a gradient that is not finite.
      left.value, right.value = u, v
    return u @ (matrix @ v)


class Condition(nn.Module):
  """What a condition adds to the logits: the scalar product of its entry of a table, which starts
  at 0, with the features of each place (projection discriminators, arXiv 1802.05637).

  count:  entries of the table
  """

  count: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "B F K D"], condition: Int[Array, ""] | None
  ) -> Float[Array, "B F K 1"]:
    """Nothing where no condition is given."""
    table = self.param("table", nn.initializers.zeros, (self.count, x.shape[-1]))
    if condition is None:
      return jnp.zeros((*x.shape[:-1], 1), x.dtype)
    return (x * table[condition].astype(x.dtype)[None, None, None]).sum(
      -1, keepdims=True
    )


class Critics(nn.Module):
  """Several discriminators as one.

  networks:   of them
  peak:       the wave is first freed of its mean and scaled to this peak (0.8 in DAC); None: not
  """

  networks: Sequence[nn.Module]
  peak: float | None = None

  @property
  def conditions(self) -> int:
    """Entries of the condition; 0: none of them knows of one."""
    return max(map(conditions_of, self.networks))

  @nn.compact
  def __call__(
    self, wave: Float[Array, "B T C"], condition: Int[Array, ""] | None = None
  ) -> list[Verdict]:
    if self.peak is not None:
      wave = wave - wave.mean(1, keepdims=True)
      highest = jnp.abs(wave).max(1, keepdims=True)
      wave = self.peak * wave / (highest + jnp.asarray(1e-9, wave.dtype))
    found: list[Verdict] = []
    for kind, network in enumerate(self.networks):
      said = called(network, wave, condition)
      found += [Verdict(v.logits, v.maps, kind) for v in said]
    return found


def conditions_of(network: Any) -> int:
  """Entries of the condition that a critic hears of; 0: of none."""
  return getattr(network, "conditions", 0)


def called(
  network: Any, wave: Array, condition: Int[Array, ""] | None = None
) -> list[Verdict]:
  """A critic on waves; a condition is for those that know of one."""
  return network(wave, condition) if conditions_of(network) else network(wave)


def leaky(x: Array, slope: float) -> Array:
  """Leaky ReLU."""
  return nn.leaky_relu(x, slope)


def _unit(x: Float[Array, "n"]) -> Float[Array, "n"]:
  return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def _uniform(bound: float) -> nn.initializers.Initializer:
  def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init
