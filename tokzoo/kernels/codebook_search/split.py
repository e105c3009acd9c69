"""float32 products on matrix units that multiply bf16.

A float32 has 24 significant bits, a bf16 has 8, and rounding to nearest leaves a remainder
of at most half a unit of either sign, so three bf16 numbers hold a float32 exactly:

  x = hi + mid + lo,   |mid| <= 2^-8 |x|,   |lo| <= 2^-16 |x|

(for 2^-100 < |x| < 2^127, or x = 0: outside, lo underflows or hi overflows). Of the nine
products of two such sums six are kept; a product of two bf16 is exact in float32. The
three that are left out, mid lo', lo mid' and lo lo', are together at most

  (2 x 2^-24 + 2^-32) |x| |x'|  <  2^-22.9 |x| |x'|

by these worst cases; that needs both numbers at their worst at once, and drawn at random the
error is near 2^-28. A float32 multiplication rounds by up to 2^-24. What is left is float32
accumulation: u = 2^-24 for each addition on a TPU, and where Hopper's tensor cores truncate,
twice that. So for a dot product of D features

  |score - exact|  <=  (2^-22.9 + 2 x 6D x 2^-24) sum_d |x_d| |c_d|

in the worst case, against D x 2^-24 sum |x_d| |c_d| for float32 in plain order. Products of
bf16-rounded inputs, the default of TPUs, are off by 2^-8 sum |x_d| |c_d|: enough to choose
another code for a good part of all rows.

The six products are one, of concatenated factors, so that a short D fills the depth of the
matrix unit; the small ones come first, which is how a sum loses least.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

TERMS = 6
HI, MID, LO = range(3)
# Which third of x meets which third of c, smallest products first.
PAIRS = ((LO, HI), (HI, LO), (MID, MID), (MID, HI), (HI, MID), (HI, HI))


def thirds(x: Float[Array, "*N D"]) -> tuple[BFloat16[Array, "*N D"], ...]:
  """hi, mid and lo: bf16 arrays whose sum is x."""
  parts = []
  for _ in range(3):
    # Rounded to nearest through its bits: a cast to bf16 and back is something that a
    # compiler may leave out.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jnp.uint32(0x8000)
    part = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    parts.append(part.astype(jnp.bfloat16))
    x = x - part
  return tuple(parts)


def left(x: Float[Array, "*N D"]) -> BFloat16[Array, "*N 6*D"]:
  """The factor whose product with `right(c)` is the product of x and c."""
  parts = thirds(x)
  return jnp.concatenate([parts[i] for i, _ in PAIRS], axis=-1)


def right(c: Float[Array, "*N D"]) -> BFloat16[Array, "*N 6*D"]:
  """See `left`."""
  parts = thirds(c)
  return jnp.concatenate([parts[j] for _, j in PAIRS], axis=-1)
