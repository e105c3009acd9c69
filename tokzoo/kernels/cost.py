"""What a kernel costs, where the compiler cannot see into it.

Mosaic for TPU takes a `pl.CostEstimate` with the kernel. Mosaic GPU takes none, so there the
same numbers go into the name of a scope, which the compiled program keeps beside the kernel;
`tokzoo.machines.costs` reads both.
"""

from contextlib import AbstractContextManager
from typing import Any

import jax


def kernel_cost(flops: int, bytes_accessed: int) -> AbstractContextManager[Any]:
  """The scope of a kernel that costs so much, on one device.

  Args:
    flops: operations of its products, 2 for each multiplication and addition.
    bytes_accessed: that it reads from and writes to main memory.
  """
  return jax.named_scope(f"kernel_cost_{flops}_flops_{bytes_accessed}_bytes")
