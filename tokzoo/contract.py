"""The contract: what a tokenizer, a quantizer, a generator and a task promise.

These are protocols, not base classes: a system is a plain Linen module with these methods.
Axis letters are in `tokzoo/tokens.py`.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from tokzoo.tokens import Tokens

Variables = Mapping[str, PyTree]
"""Linen collections by name: `params`, `codebook`, ..."""

Batch = Mapping[str, Array]
"""Arrays whose first axis is the batch: `image float32[B, H, W, C]` in [-1, 1],
`label int32[B]`, `valid bool[B]` (False: a row that only fills the last batch), ..."""


@struct.dataclass
class Quantized:
  """What a quantizer returns.

  values:  float32[B, L, D], the codes, with the straight-through (or other) gradient
  ids:     int32[B, L] or int32[B, L, Q]; for binary codes float32[B, L, m] of 0 and 1
  losses:  named, unweighted scalars
  stats:   named arrays that sum over batches, e.g. `counts` int32[K]
  """

  values: Float[Array, "B L D"]
  ids: Int[Array, "B L"] | Int[Array, "B L Q"] | Float[Array, "B L m"]
  losses: dict[str, Float[Array, ""]] = struct.field(default_factory=dict)
  stats: dict[str, Array] = struct.field(default_factory=dict)


@struct.dataclass
class Output:
  """What a tokenizer's `__call__` returns.

  reconstruction:  of the input's shape, float32
  tokens:          the tokens of the input
  losses:          named, unweighted scalars (commitment loss, code loss, ...)
  stats:           named arrays that sum over batches
  features:        intermediate activations that a loss reads, by name
  """

  reconstruction: Array
  tokens: Tokens
  losses: dict[str, Float[Array, ""]] = struct.field(default_factory=dict)
  stats: dict[str, Array] = struct.field(default_factory=dict)
  features: dict[str, Array] = struct.field(default_factory=dict)


@runtime_checkable
class Tokenizer(Protocol):
  """A Linen module between data and tokens."""

  def encode(
    self, x: Array, *, num_tokens: int | None = None, rng: PRNGKeyArray | None = None
  ) -> Tokens: ...

  def decode(self, tokens: Tokens, *, rng: PRNGKeyArray | None = None) -> Array: ...

  def __call__(self, x: Array, train: bool = False) -> Output: ...


@runtime_checkable
class Quantizer(Protocol):
  """A Linen module between latents and codes. Float32 inside, whatever the model's dtype.

  Running statistics (EMA codebooks) live in the collection `codebook`. No collective is
  called: statistics are sums over the batch axis, which jit makes global over the mesh.
  Masked positions get id -1 and value 0 and enter neither losses nor statistics.
  """

  def __call__(
    self,
    z: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Quantized: ...

  def ids_to_codes(self, ids: Array) -> Float[Array, "B L D"]: ...

  def codes_to_ids(self, codes: Float[Array, "B L D"]) -> Array: ...

  @property
  def num_codes(self) -> int: ...

  @property
  def bits_per_token(self) -> float: ...


@runtime_checkable
class Generator(Protocol):
  """A Linen module that models tokens. `condition` is the system's own pytree of arrays."""

  def loss(
    self, tokens: Tokens, condition: PyTree, rng: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]: ...

  def sample(self, rng: PRNGKeyArray, condition: PyTree, **settings: Any) -> Tokens: ...


@struct.dataclass
class Losses:
  """What a task's `losses` returns for one batch.

  players:  one scalar per player: the thing its optimizer minimises
  metrics:  scalars to log, float32; named losses unweighted
  updates:  new values of mutable collections, e.g. {"codebook": ...}
  turns:    whose turn it is, of players that take turns: one that is not moved keeps its
            parameters and its optimizer's moments, but its learning rate goes by the run's
            steps. Those not named always move
  """

  players: dict[str, Float[Array, ""]]
  metrics: dict[str, Float[Array, ""]] = struct.field(default_factory=dict)
  updates: dict[str, PyTree] = struct.field(default_factory=dict)
  turns: dict[str, Bool[Array, ""]] = struct.field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
  """What a system contributes to the one trainer: a frozen dataclass of settings.

  players:  player name -> regular expression over parameter paths ("encoder/blocks_0/...").
            A parameter belongs to the first player whose expression matches from its start;
            one that no player claims is frozen. Most tasks have {"model": ".*"}.

  A task may have `adopt(initial) -> Variables` as well: weights that a run starts from, moved
  to where the task keeps them. And `exact`, names of what in a batch stays float32 where the
  run computes in bfloat16.
  """

  @property
  def players(self) -> Mapping[str, str]: ...

  def init(self, rng: PRNGKeyArray, batch: Batch) -> Variables:
    """All variables, from one batch's shapes. Pure: the trainer calls it under jit."""
    ...

  def losses(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray, step: Int[Array, ""]
  ) -> Losses:
    """One scalar per player. Pure; the mean over the (global) batch."""
    ...

  def evaluate(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Any]:
    """Mergeable metric states (`tokzoo.metrics`) of one batch. Rows with `valid` False
    must not count. Pure."""
    ...

  def pictures(
    self, variables: Variables, batch: Batch, rng: PRNGKeyArray
  ) -> dict[str, Float[Array, "B H W C"]]:
    """Images in [-1, 1] for the log, e.g. originals over reconstructions; {} if none. Pure."""
    ...
