"""Chips: what their makers' public data sheets say of each.

TPU   cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}: dense bf16 FLOP/s, HBM, interconnect and
      data center network of a chip. `link` is one torus axis in both directions, which is what
      a ring over one mesh axis uses: the sheet's bidirectional bandwidth of all links, over
      the number of axes (two for v5e and v6e, three for v4 and v5p), one way.
GPU   data sheets of A100, H100, H200 and DGX B200: dense bf16 FLOP/s (the sheets lead with
      twice that, for sparse matrices), HBM, NVLink one way; the network of a DGX node: eight
      ports of 200 Gb/s (A100) or 400 Gb/s.
CPU   the processor of this machine, to look at programs and to test with. Its rates are
      nominal and stand for nothing.
"""

import dataclasses
import os
from typing import Literal

GIB = 2**30
_GB = 1e9
# What libtpu keeps of each chip's memory for itself: v5e of 16 GiB offers 15.75.
_TPU_RESERVED = GIB // 4
# jax takes this part of a GPU's memory unless told otherwise.
_GPU_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of accelerator.

  platform:        of jax
  packages:        one of them must be importable to compile for it
  flops:           dense bf16 FLOP/s
  hbm_bytes:       main memory
  hbm_rate:        bytes/s of main memory
  link_rate:       bytes/s that a chip sends to others of its slice or node (ICI, NVLink)
  network_rate:    bytes/s that a chip sends out of its slice or node (DCN, InfiniBand)
  chips_per_host:  of a machine with several hosts
  shapes:          common topologies, the smallest first; the compiler may take others
  """

  platform: Literal["tpu", "cuda", "cpu"]
  packages: tuple[str, ...]
  flops: float
  hbm_bytes: int
  hbm_rate: float
  link_rate: float
  network_rate: float
  chips_per_host: int
  shapes: tuple[str, ...]

  @property
  def usable_bytes(self) -> int:
    """Memory that a program can have."""
    if self.platform == "tpu":
      return self.hbm_bytes - _TPU_RESERVED
    if self.platform == "cuda":
      fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", _GPU_FRACTION)
      return int(self.hbm_bytes * float(fraction))
    return self.hbm_bytes


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
  *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
  *("8x8x8", "8x8x16", "8x16x16"),
)
_NODES = tuple(f"{n}x1" for n in (1, 2, 4, 8)) + tuple(
  f"8x{hosts}" for hosts in (2, 4, 8, 16, 32, 64, 128)
)


def _tpu(
  flops: float,
  hbm_gib: int,
  hbm_gb_s: float,
  link_gb_s: float,
  network_gbit_s: float,
  shapes: tuple[str, ...],
) -> Chip:
  return Chip(
    platform="tpu",
    packages=("libtpu",),
    flops=flops,
    hbm_bytes=hbm_gib * GIB,
    hbm_rate=hbm_gb_s * _GB,
    link_rate=link_gb_s * _GB,
    network_rate=network_gbit_s * _GB / 8,
    chips_per_host=4,
    shapes=shapes,
  )


def _gpu(
  flops: float, hbm_bytes: int, hbm_gb_s: float, nvlink_gb_s: float, port_gbit_s: float
) -> Chip:
  return Chip(
    platform="cuda",
    packages=("jax_cuda12_plugin", "jax_cuda13_plugin"),
    flops=flops,
    hbm_bytes=hbm_bytes,
    hbm_rate=hbm_gb_s * _GB,
    link_rate=nvlink_gb_s * _GB,
    network_rate=port_gbit_s * _GB / 8,
    chips_per_host=8,
    shapes=_NODES,
  )


CHIPS = {
  "v4": _tpu(275e12, 32, 1228, 100, 50, (*_CUBES, "12x16x16")),
  "v5e": _tpu(197e12, 16, 819, 100, 25, _FLAT),
  "v5p": _tpu(459e12, 95, 2765, 200, 50, (*_CUBES, "16x16x16", "16x16x24")),
  "v6e": _tpu(918e12, 32, 1640, 200, 100, _FLAT),
  # Memory as the driver shows it, of what the sheets call 80, 80, 141 and 180 GB.
  "a100-80": _gpu(312e12, 85_100_068_864, 2039, 300, 200),
  "h100": _gpu(989e12, 84_978_434_048, 3352, 450, 400),
  "h200": _gpu(989e12, 150_754_820_096, 4800, 450, 400),
  "b200": _gpu(2250e12, 191_514_673_152, 7700, 900, 400),
  "cpu": Chip("cpu", ("jax",), 1e11, 16 * GIB, 2e10, 1e10, 1e9, 8, ("1", "8")),
}
"""Name -> chip."""
