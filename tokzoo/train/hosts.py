"""What several processes must agree on. With one process nothing is sent."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
  """True in the process that writes logs and tidies folders."""
  return jax.process_index() == 0


def any_host(flag: bool) -> bool:
  """True if the flag is set in any process. All processes must call it."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def any_name(name: str | None) -> str | None:
  """The name given in this process, or "a signal" if only another one has one."""
  return name or "a signal to another host" if any_host(name is not None) else None


def wait_for_all(name: str) -> None:
  """Returns when every process has come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
