"""Streaming of causal codecs: the state between two pieces, and which pieces fit.

  state = model.init_state(batch_size)
  state, tokens = model.encode_step(state, x)     # x: a whole number of hops
  state, x = model.decode_step(state, tokens)

(each as `module.apply(variables, ..., method="encode_step")`). The tokens and the audio of all
pieces, one after the other, are those of the whole. Encoding and decoding keep their own
memory in one state, so either can run alone.
"""

from flax import struct

from tokzoo.errors import TokzooError
from tokzoo.nn.seanet import SEANet, first_hops
from tokzoo.nn.streaming import Memory


class StreamState(struct.PyTreeNode):
  """What a codec remembers of a stream.

  encoder, decoder:  arrays by layer; empty before the first piece, so that a step has one
                     program for the first piece and one for all others
  batch_size:        B, static
  first_hops:        hops (frames) that the first piece must hold at least, static
  """

  encoder: Memory
  decoder: Memory
  batch_size: int = struct.field(pytree_node=False)
  first_hops: int = struct.field(pytree_node=False)


def first_state(net: SEANet, batch_size: int) -> StreamState:
  """The state before the first piece.

  Raises:
    TokzooError: a network that cannot stream.
  """
  return StreamState({}, {}, batch_size, first_hops(net))


def check_piece(
  state: StreamState, memory: Memory, batch: int, length: int, hop: int, unit: str
) -> None:
  """Raises TokzooError unless a piece of `length` may come next.

  Args:
    state: of the stream.
    memory: of the side that reads the piece.
    batch: rows of the piece.
    length: of the piece.
    hop: that it must be a multiple of.
    unit: what is counted, for the message.
  """
  if batch != state.batch_size:
    raise TokzooError(
      f"a stream of {state.batch_size} rows got a piece of {batch}: keep the batch size of "
      "init_state."
    )
  if length % hop or not length:
    raise TokzooError(
      f"a piece of {length} {unit} is not a whole number of hops of {hop}: collect the "
      "samples until a hop is full, and fill up the last one with zeros."
    )
  least = state.first_hops * hop
  if not memory and length < least:
    raise TokzooError(
      f"the first piece of this stream must hold {least} {unit} at least, this one has "
      f"{length}: what lies before the start is a reflection of what comes after it."
    )
