"""Memory that a process on CPUs frees, and needs again at once.

XLA on CPUs asks for a program's temporaries anew at every call. The C library of Linux gives
blocks of that size back to the kernel when they are freed, so each call gets them as pages
that are not there: of a small training step, which takes 100 MB of them, a third of the time
goes into faulting pages in (27,000 a step). The command line keeps them, on CPUs, unless
TOKZOO_KEEP_MEMORY=0; a script of your own calls `keep_freed_memory` before it imports jax.
"""

import ctypes
import sys

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Lets this process keep what it frees, for its next request.

  To be called before jax starts its threads: they would have heaps of their own, which are
  given back all the same. What the process holds does not shrink below its peak any more,
  and all threads share one heap.

  Returns:
    Whether the C library has such settings: that of Linux has, if it is glibc.
  """
  if not sys.platform.startswith("linux"):
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:
    return False
  settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
  return all(mallopt(name, value) == 1 for name, value in settings.items())
