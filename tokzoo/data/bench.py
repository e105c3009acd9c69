"""How fast batches come, without a model: if this is slower than training, data is the limit."""

import dataclasses
import time
from typing import Any, Literal

from tokzoo.data.config import DataConfig
from tokzoo.data.pipeline import loader
from tokzoo.errors import TokzooError


@dataclasses.dataclass(frozen=True)
class BenchReport:
  """What `bench` measured.

  source:          as in `DataConfig.source`
  batch_size:      B
  threads:         that read and decode
  shape:           of the largest array of an example: (H, W, C) of a picture
  first_batch_ms:  from opening the source to the first batch
  seconds:         measured after the first batch
  batches:         in that time
  records_per_second, megabytes_per_second: of that array, pictures as float32
  bytes_per_second:  of whole batches, as they are put on the devices
  needs:           what a plan asks for, None if it was not told
  """

  source: str
  batch_size: int
  threads: int
  shape: tuple[int, ...]
  first_batch_ms: float
  seconds: float
  batches: int
  records_per_second: float
  megabytes_per_second: float
  bytes_per_second: float
  needs: "Needs | None" = None

  @property
  def headroom(self) -> float | None:
    """What came over what is needed: below 1 the devices wait for the input."""
    if self.needs is None:
      return None
    came = {
      "records": self.records_per_second,
      "bytes": self.bytes_per_second,
    }
    return came[self.needs.unit] / self.needs.per_second

  def rows(self) -> list[tuple[str, str]]:
    """Name and value of each line of a table."""
    rows = [
      ("source", self.source),
      ("batch", f"{self.batch_size} x {' x '.join(map(str, self.shape))}"),
      ("threads", str(self.threads)),
      ("first batch", f"{self.first_batch_ms:,.0f} ms"),
      ("measured", f"{self.batches:,} batches in {self.seconds:.1f} s"),
      ("records per second", f"{self.records_per_second:,.0f}"),
      ("megabytes per second", f"{self.megabytes_per_second:,.1f}"),
    ]
    if self.needs is None or self.headroom is None:
      return rows
    keeps_up = (
      f"yes, {self.headroom:.2f} times what is needed"
      if self.headroom >= 1
      else f"no, {self.headroom:.0%} of what is needed: the devices would wait"
    )
    return [*rows, ("needed", str(self.needs)), ("keeps up", keeps_up)]

  def as_dict(self) -> dict[str, Any]:
    """The fields as JSON can hold them."""
    fields = dataclasses.asdict(self)
    if self.headroom is not None:
      fields |= {"headroom": self.headroom, "keeps_up": self.headroom >= 1}
    return fields


@dataclasses.dataclass(frozen=True)
class Needs:
  """What one host must deliver so that its devices never wait.

  per_second:  of the unit
  unit:        "records" or "bytes"; bytes as `tokzoo plan` counts them: of batches as they
               are put on the devices, pictures as float32
  """

  per_second: float
  unit: Literal["records", "bytes"]

  def __str__(self) -> str:
    return f"{self.per_second:,.0f} {self.unit} per second"


def bench(
  config: DataConfig,
  batch_size: int,
  seconds: float = 5.0,
  needs: Needs | None = None,
) -> BenchReport:
  """Reads training batches for a while, as one host would that needs all rows.

  Args:
    config: the source, transforms, threads and prefetch.
    batch_size: B.
    seconds: how long to measure after the first batch; at least one batch is.
    needs: what a plan asks for, to compare with.

  Raises:
    TokzooError: as `loader`, or the time or the need is not positive.
  """
  if needs is not None and needs.per_second <= 0:
    raise TokzooError(f"the need is {needs}: it must be more than 0.")
  if seconds <= 0:
    raise TokzooError(f"bench was given {seconds} seconds: measure for more than 0.")
  opened = time.perf_counter()
  batches = loader(config, batch_size, seed=0)
  try:
    # The picture, or whatever else the records mostly consist of.
    first = next(batches)
    largest = max(first.values(), key=lambda array: array.nbytes)
    start = time.perf_counter()
    # What was made ahead while the first batch was awaited must not count.
    ready = config.prefetch if config.threads else 0
    for _ in range(ready):
      next(batches)
    begin, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - begin < seconds:
      next(batches)
      count += 1
    spent = time.perf_counter() - begin
  finally:
    batches.close()
  rate = count * batch_size / spent
  return BenchReport(
    source=config.source,
    batch_size=batch_size,
    threads=config.threads,
    shape=largest.shape[1:],
    first_batch_ms=(start - opened) * 1e3,
    seconds=spent,
    batches=count,
    records_per_second=rate,
    megabytes_per_second=rate * largest[0].nbytes / 1e6,
    bytes_per_second=rate * sum(a.nbytes for a in first.values()) / batch_size,
    needs=needs,
  )
