"""From a config to batches: global shuffle, each host's own rows, prefetch in threads.

The order of a run is one endless stream of views, the same for any number of hosts:

  view g  ->  epoch e, place p  ->  shuffled place  ->  record  ->  transforms, drawn from g
  batch s  =  views s B .. (s + 1) B - 1, of which a host makes only its own rows

So one host makes exactly what N hosts make together, in rank order, and the state of the
iterator is nothing but the number of batches taken. A batch may span two epochs.

Threads only: each makes a whole batch, and reading and decoding release Python's lock.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tokzoo.data.config import DataConfig
from tokzoo.data.sources import Record, Source, open_source
from tokzoo.data.transforms import fixed_part, random_part, require_sizes
from tokzoo.errors import TokzooError

_FEW = 64
"""Sources of at most so many records are decoded once and kept: packaged photographs."""

_MOST_VIEWS = 2**32 - 1
"""Of one epoch: Grain's shuffle counts in 32 bits."""


def host_rows(
  mesh: Mesh,
  global_batch: int,
  axes: Sequence[str] = ("data", "fsdp"),
  process: int | None = None,
) -> slice:
  """The rows of the global batch that one process must make.

  Two processes may need the same rows: those that differ only along the other axes.

  Args:
    mesh: over the devices of all processes.
    global_batch: B, over all hosts.
    axes: the mesh axes that the batch is split over; those that the mesh lacks are skipped.
    process: index of the process; None: this one.

  Returns:
    The contiguous rows `start:stop`.

  Raises:
    TokzooError: the batch is not divisible, or the mesh gives the process rows that do not
      lie side by side.
  """
  axes = tuple(axis for axis in axes if axis in mesh.axis_names)
  parts = int(np.prod([mesh.shape[axis] for axis in axes], dtype=int))
  if global_batch < 1 or global_batch % parts:
    sizes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in axes) or "1"
    raise TokzooError(
      f"a batch of {global_batch} cannot be split over {parts} parts of the mesh "
      f"({sizes}): choose a multiple of {parts}."
    )
  process = jax.process_index() if process is None else process
  sharding = NamedSharding(mesh, PartitionSpec(axes))
  starts = sorted(
    {
      index[0].indices(global_batch)[0]
      for device, index in sharding.devices_indices_map((global_batch,)).items()
      if device.process_index == process
    }
  )
  if not starts:
    raise TokzooError(f"process {process} has no device in the mesh: leave it out.")
  each = global_batch // parts
  if starts != list(range(starts[0], starts[0] + each * len(starts), each)):
    raise TokzooError(
      f"the mesh gives process {process} rows of the batch that do not lie side by side "
      f"(starting at {', '.join(map(str, starts))}): order the mesh's devices by process "
      "along data and fsdp."
    )
  return slice(starts[0], starts[0] + each * len(starts))


def loader(
  config: DataConfig,
  batch_size: int,
  seed: int,
  rows: slice | None = None,
  epochs: int | None = None,
) -> grain.DatasetIterator:
  """Training batches, endless unless `epochs` says otherwise.

  Every epoch holds `config.repeat` views of each record, in an order of its own. The state,
  `get_state()` and `set_state(state)`, is JSON: the number of global batches taken, so it
  restores on any number of hosts and threads. Close the iterator to stop its threads.

  Args:
    config: the source, transforms, threads and prefetch.
    batch_size: B, over all hosts.
    seed: of order, crops and flips.
    rows: the rows of every batch that this host makes, see `host_rows`; None: all.
    epochs: stop after so many epochs, leaving out a last incomplete batch.

  Returns:
    An iterator over dicts of arrays with b = rows.stop - rows.start rows:
    `image` float32[b, H, W, C] or `audio` float32[b, T, C], both in [-1, 1], and, where there
    are classes, `label` int32[b].

  Raises:
    TokzooError: here, the source cannot be opened or the sizes do not go together; from
      `next`, a record cannot be read.
  """
  _require_rows(batch_size, rows)
  if seed < 0:
    raise TokzooError(f"the seed is {seed}: it must be at least 0.")
  views = _views(config, open_source(config), seed)
  batches = sys.maxsize if epochs is None else epochs * len(views) // batch_size
  if batches == 0:
    raise TokzooError(
      f"{epochs} epochs of {len(views)} views hold no batch of {batch_size}: choose a "
      "smaller batch, or set data.repeat."
    )
  places = range(batch_size)[rows or slice(None)]

  def make(batch: int) -> dict[str, np.ndarray]:
    return _stack([views[batch * batch_size + place] for place in places])

  return _in_threads(grain.MapDataset.range(batches).map(make), config)


def state_after(batches: int) -> dict[str, int]:
  """The state of a `loader` from which so many batches were taken."""
  return {"next_index": batches}


def evaluation_batches(
  config: DataConfig,
  batch_size: int,
  rows: slice | None = None,
  batches: int | None = None,
) -> grain.DatasetIterator:
  """One pass in the source's order; every record counts once.

  Random crops and flips, if the config has any, are the same in every pass.

  Args:
    config: the source and transforms; `shuffle` is not used.
    batch_size: B, over all hosts.
    rows: the rows of every batch that this host makes; None: all.
    batches: at most so many; None: the whole split.

  Returns:
    An iterator over dicts as of `loader`, with `valid` bool[b]: False marks rows that only
    fill the last batch (copies of the last record).

  Raises:
    TokzooError: as `loader`.
  """
  _require_rows(batch_size, rows)
  views = _views(config, open_source(config), seed=None)
  return _pass(views, range(len(views)), config, batch_size, rows, batches)


class OnePass:
  """The views of one pass in the source's order, any part of which can be read by itself.

  Args:
    config: as of `evaluation_batches`.

  Raises:
    TokzooError: as `loader`.
  """

  def __init__(self, config: DataConfig):
    source = open_source(config)
    self.info = source.info
    self._config = config
    self._views = _views(config, source, seed=None)

  def __len__(self) -> int:
    return len(self._views)

  def batches(self, part: range, batch_size: int) -> grain.DatasetIterator:
    """The views of `part` as `evaluation_batches` gives those of a whole pass: view g is the
    same in whatever part it is read. Close the iterator to stop its threads."""
    _require_rows(batch_size, None)
    return _pass(self._views, part, self._config, batch_size)


def _pass(
  views: grain.MapDataset,
  part: range,
  config: DataConfig,
  batch_size: int,
  rows: slice | None = None,
  batches: int | None = None,
) -> grain.DatasetIterator:
  """Batches of the views of `part`, the last one filled up with copies of the last view."""
  count = -(-len(part) // batch_size)
  places = range(batch_size)[rows or slice(None)]

  def make(batch: int) -> dict[str, np.ndarray]:
    wanted = [batch * batch_size + place for place in places]
    stacked = _stack([views[part[min(place, len(part) - 1)]] for place in wanted])
    return {**stacked, "valid": np.array([place < len(part) for place in wanted])}

  number = count if batches is None else min(batches, count)
  return _in_threads(grain.MapDataset.range(number).map(make), config)


def _require_rows(batch_size: int, rows: slice | None) -> None:
  """Raises unless there is a batch and the rows lie in it."""
  if batch_size < 1:
    raise TokzooError(f"a batch of {batch_size} was asked for: it must be at least 1.")
  if rows is not None and not 0 <= rows.start < rows.stop <= batch_size:
    raise ValueError(f"{rows} is not a part of a batch of {batch_size} rows")


def _views(config: DataConfig, source: Source, seed: int | None) -> grain.MapDataset:
  """The endless stream of views by index; its length is that of one epoch.

  Args:
    config: `repeat`, `shuffle` and the transforms.
    source: of the records.
    seed: of order and draws; None: in the source's order, draws from a fixed seed.
  """
  require_sizes(config)
  if config.repeat < 1:
    raise TokzooError(f"data.repeat is {config.repeat}: it must be at least 1.")
  records = len(source)
  if records * config.repeat > _MOST_VIEWS:
    raise TokzooError(
      f"an epoch of {records * config.repeat} views is more than can be shuffled: set "
      f"data.repeat to at most {_MOST_VIEWS // records}."
    )

  def read(record: int) -> Record:
    return fixed_part(config, source[record])

  if records <= _FEW:
    # A view of a large photograph is one small crop: decode the photograph only once.
    read = functools.cache(read)

  # Two unrelated seeds, so that order and crops of neighbouring seeds have nothing in common.
  order_seed, draw_seed = np.random.SeedSequence(seed or 0).generate_state(2)
  views = grain.MapDataset.range(records * config.repeat)
  if config.shuffle and seed is not None:
    views = views.shuffle(seed=int(order_seed))
  transform = functools.partial(random_part, config)

  def record_of(place: int) -> Record:
    record = read(place % records)
    return record if config.crop != "ten" else {**record, "view": place // records}

  records_of_views = views.map(record_of)
  return records_of_views.random_map(transform, seed=int(draw_seed))


def _stack(examples: list[Any]) -> dict[str, np.ndarray]:
  """Examples as one batch."""
  shapes = {example["image"].shape for example in examples if "image" in example}
  if len(shapes) > 1:
    height, width, _ = min(shapes)
    other_height, other_width, _ = max(shapes)
    raise TokzooError(
      f"the pictures differ in size ({height} x {width} and {other_height} x "
      f"{other_width} pixels): set data.size and data.crop to cut them to one size."
    )
  lengths = {example["audio"].shape[0] for example in examples if "audio" in example}
  if len(lengths) > 1:
    raise TokzooError(
      f"the sounds differ in length ({min(lengths)} to {max(lengths)} samples): set "
      "data.seconds to cut them to one length."
    )
  return {
    name: np.stack([example[name] for example in examples]) for name in examples[0]
  }


def _in_threads(
  batches: grain.MapDataset[dict[str, np.ndarray]], config: DataConfig
) -> grain.DatasetIterator:
  """Iterates with threads that make batches ahead."""
  threads = config.threads if config.prefetch else 0
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=config.prefetch if threads else 0
  )
  return iter(batches.to_iter_dataset(options))
