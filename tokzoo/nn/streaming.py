"""What a causal network remembers between two pieces of a stream.

A layer that looks back asks the `Stream` of the call for what it left there last time and
leaves what the next piece will need:

  past = stream.take(self, None)     # None: this is the first piece
  stream.leave(self, new)

Outside a call the memory is a plain dictionary of arrays by layer (`Stream.memory`), carried
from step to step by whoever streams. Nothing is hidden: the same piece with the same memory
gives the same output.
"""

from typing import Any

import flax.linen as nn

Memory = dict[str, Any]
"""Layer path -> arrays; empty before the first piece."""


class Stream:
  """The memory of one call: read from `before`, written to `memory`."""

  def __init__(self, before: Memory):
    self.before = before
    self.memory: Memory = {}

  @property
  def is_first(self) -> bool:
    """Whether nothing came before this piece. Static."""
    return not self.before

  def take(self, layer: nn.Module) -> Any:
    """What the layer left at the piece before; None at the first."""
    return self.before.get("/".join(layer.path))

  def leave(self, layer: nn.Module, arrays: Any) -> None:
    """Keeps arrays for the layer's next piece."""
    self.memory["/".join(layer.path)] = arrays
