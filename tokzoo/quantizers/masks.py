"""What every quantizer does with positions that are masked out, and with its counts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MAX_COUNTED = 2**18
"""The largest implicit codebook whose codes are counted one by one in `stats`."""


def latents(
  z: Float[Array, "B L D"], mask: Bool[Array, "B L"] | None
) -> Float[Array, "B L D"]:
  """`z` as float32, and 0 where `mask` is False: padding may hold anything, also NaN."""
  z = z.astype(jnp.float32)
  return z if mask is None else jnp.where(mask[..., None], z, 0)


def masked_mean(
  x: Float[Array, "B L *D"], mask: Bool[Array, "B L"] | None
) -> Float[Array, ""]:
  """The mean over kept positions and all further axes; 0 where no position is kept."""
  if mask is None:
    return jnp.mean(x)
  wide = mask.reshape(mask.shape + (1,) * (x.ndim - 2))
  kept = jnp.sum(jnp.where(wide, x, 0))
  per_position = x[0, 0].size
  return kept / (jnp.maximum(jnp.sum(mask), 1) * per_position).astype(x.dtype)


def hide(
  values: Float[Array, "B L D"],
  ids: Int[Array, "B L *Q"],
  mask: Bool[Array, "B L"] | None,
) -> tuple[Float[Array, "B L D"], Int[Array, "B L *Q"]]:
  """Value 0 and id -1 where `mask` is False."""
  if mask is None:
    return values, ids
  wide = mask.reshape(mask.shape + (1,) * (ids.ndim - 2))
  return jnp.where(mask[..., None], values, 0), jnp.where(wide, ids, -1)


def count_codes(ids: Int[Array, "*N"], num_codes: int) -> Int[Array, "K"]:
  """How often each code occurs, int32; ids of -1 (masked positions) are not counted."""
  flat = jnp.where(ids < 0, num_codes, ids).reshape(-1)
  return jnp.bincount(flat, length=num_codes + 1)[:num_codes].astype(jnp.int32)


def losses_in(
  train: bool, losses: dict[str, Float[Array, ""]]
) -> dict[str, Float[Array, ""]]:
  """The losses while training, zeros of the same names otherwise."""
  return losses if train else jax.tree.map(jnp.zeros_like, losses)
