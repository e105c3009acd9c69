"""What a planned program really needs: compiled and run on the machine that is here.

Weights and data are waves, not zeros: a GPU multiplies zeros faster. No recipe's files are
read, so a published recipe can be measured where its data set and its networks are not.

Several processes of a machine may measure at once: they compile side by side, and run one
after the other, when none compiles any more.
"""

import contextlib
import dataclasses
import fcntl
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from tokzoo.errors import TokzooError
from tokzoo.machines import Topology
from tokzoo.places import cache_dir
from tokzoo.train.mesh import make_mesh
from tokzoo.train.plan.planning import Plan, memory_parts
from tokzoo.train.plan.programs import What, lower, memory_of
from tokzoo.train.recipe import Recipe

_WARM = 3
_TURNS = 5


@dataclasses.dataclass(frozen=True)
class Measured:
  """One program as it ran.

  device, jax_version:  where, and by what
  steps:                runs in a turn, of five
  step_seconds:         of one run: the median turn
  spread:               the slowest turn over the fastest, less one
  examples_per_second:  of the machine
  utilisation:          the plan's FLOPs over what the chips could do in that time
  program_bytes:        memory of a chip, as the compiler that compiled it says
  peak_bytes:           the most that was allocated on a chip, compiling and filling included;
                        None where the backend does not say
  compile_seconds:      of the program
  """

  device: str
  jax_version: str
  steps: int
  step_seconds: float
  spread: float
  examples_per_second: float
  utilisation: float | None
  program_bytes: int
  peak_bytes: int | None
  compile_seconds: float


def measure(
  recipe: Recipe, what: What, machine: Topology, made: Plan, steps: int
) -> Measured:
  """Runs a program on this machine's devices.

  Args:
    recipe: that was planned.
    what: the train step, or the model's encode, decode or sample.
    machine: which this one must be.
    made: the plan, for its FLOPs.
    steps: runs in a turn.

  Raises:
    TokzooError: the machine is another one, or its memory is too small.
  """
  if steps < 1:
    raise TokzooError(f"--measure {steps} runs nothing: choose 1 or more.")
  _check(machine)
  mesh = make_mesh(recipe.mesh)
  with _turnstile(fcntl.LOCK_SH):
    program = lower(recipe, what, mesh)
    start = time.perf_counter()
    compiled = program.lowered.compile()
    compile_seconds = time.perf_counter() - start
    fill = _filler(program.arguments)
  with _turnstile(fcntl.LOCK_EX):
    try:
      turns = _run(compiled, fill(), what, steps)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      raise TokzooError(
        f"{recipe.name} does not fit this machine: {str(error).splitlines()[0][:200]}"
      ) from error
  seconds = statistics.median(turns)
  stats = jax.local_devices()[0].memory_stats() or {}
  flops = made.flops_per_device
  return Measured(
    device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    jax_version=jax.__version__,
    steps=steps,
    step_seconds=seconds,
    spread=max(turns) / min(turns) - 1,
    examples_per_second=recipe.batch_size / seconds,
    utilisation=None if flops is None else flops / (seconds * machine.chip.flops),
    program_bytes=sum(memory_parts(memory_of(compiled)).values()),
    peak_bytes=stats.get("peak_bytes_in_use"),
    compile_seconds=compile_seconds,
  )


def _check(machine: Topology) -> None:
  """Raises where the devices that are here are not the machine's."""
  kind, number = jax.devices()[0].device_kind, jax.device_count()
  name = machine.chip_name.partition("-")[0]
  # "TPU v5 lite" is v5e; some versions of jax call v5p plainly "TPU v5".
  shown = f"{kind.lower().replace(' lite', 'e')} "
  is_kind = name in shown or (name == "v5p" and "tpu v5 " in shown)
  if not is_kind or number != machine.num_chips:
    raise TokzooError(
      f"--measure needs the machine that is planned, {machine}, and here are {number} x "
      f"{kind}: name its topology."
    )


def _run(
  compiled: Any, arguments: tuple[Any, ...], what: What, steps: int
) -> list[float]:
  """Seconds of a run, in each turn."""
  turns = []
  for turn in range(_TURNS + 1):
    number = steps if turn else _WARM
    begin = time.perf_counter()
    made = None
    for _ in range(number):
      made = compiled(*arguments)
      if what == "train":
        arguments = (made[0], *arguments[1:])  # the state's buffers were given away
    jax.block_until_ready(made)
    if turn:
      turns.append((time.perf_counter() - begin) / number)
  return turns


def waves(shapes: PyTree) -> PyTree:
  """Arrays of these shapes, placed as they say: floats in [-0.04, 0.04], of optimizers in
  [0, 0.04], where second moments are; integers 0, which are ids, labels and counts; keys."""
  return _filler(shapes)()


def _filler(shapes: PyTree) -> Callable[[], PyTree]:
  """The compiled program that makes the arrays of `waves`."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
  least = [
    0.0 if "opt_states" in jax.tree_util.keystr(path) else -0.04 for path, _ in leaves
  ]

  def make() -> list[jax.Array]:
    return [_wave(leaf, index, least[index]) for index, (_, leaf) in enumerate(leaves)]

  placed = [getattr(leaf, "sharding", None) for _, leaf in leaves]
  compiled = jax.jit(make, out_shardings=placed).lower().compile()
  return lambda: jax.tree.unflatten(structure, compiled())


def _wave(leaf: jax.ShapeDtypeStruct, index: int, least: float) -> jax.Array:
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.random.key(index)
  if not jnp.issubdtype(leaf.dtype, jnp.floating):
    return jnp.zeros(leaf.shape, leaf.dtype)
  # The phase of a long iota is lost to rounding; what is left is noise, which is as good.
  phase = jnp.arange(math.prod(leaf.shape), dtype=jnp.uint32).astype(jnp.float32)
  wave = 0.5 + 0.5 * jnp.sin(12.9898 * phase + index)
  return (least + (0.04 - least) * wave).reshape(leaf.shape).astype(leaf.dtype)


@contextlib.contextmanager
def _turnstile(kind: int) -> Iterator[None]:
  """Compiling is shared, running is not: a lock of the machine, in the cache's folder."""
  folder = cache_dir()
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / "measuring.lock", "w") as file:
    fcntl.flock(file, kind)
    yield
