"""From what a program costs to how long it takes: whichever of four bounds binds.

  compute   FLOPs of a chip / its bf16 rate
  memory    bytes that it moves in HBM / the rate of HBM
  link      bytes that it sends inside its slice or node / the rate of ICI or NVLink
  network   bytes that it sends out of it / its share of DCN or InfiniBand

each rate times the part of it that programs attain. Everything overlaps, nothing waits: the
longest of the four is the step.
"""

import dataclasses
from typing import Any

from tokzoo.machines import Chip


@dataclasses.dataclass(frozen=True)
class Assumptions:
  """The part of each data sheet's rate that a program is taken to attain.

  Published training runs of large transformers reach half to two thirds of the peak of their
  matrix units; streams and rings about four fifths of theirs.
  """

  compute: float = 0.6
  """Of the dense bf16 rate, which is assumed for every product."""
  memory: float = 0.8
  """Of the bandwidth of HBM."""
  link: float = 0.8
  """Of one torus axis in both directions (TPU), or of NVLink."""
  network: float = 0.8
  """Of a chip's share of its host's network."""


TYPICAL = Assumptions()


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of one run by each bound."""

  compute: float
  memory: float
  link: float
  network: float

  @property
  def seconds(self) -> float:
    """The longest."""
    return max(dataclasses.astuple(self))

  @property
  def bound(self) -> str:
    """Which one that is."""
    return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def roofline(facts: dict[str, Any], chip: Chip, assumed: Assumptions) -> Roofline:
  """The bounds of a program.

  Args:
    facts: flops, hbm_bytes and collectives, per device.
    chip: the data sheet.
    assumed: how much of it is attained.
  """
  link = sum(one["sent"] for one in facts["collectives"])
  network = sum(one["crossing"] for one in facts["collectives"])
  return Roofline(
    compute=facts["flops"] / (chip.flops * assumed.compute),
    memory=facts["hbm_bytes"] / (chip.hbm_rate * assumed.memory),
    link=link / (chip.link_rate * assumed.link),
    network=network / (chip.network_rate * assumed.network),
  )
