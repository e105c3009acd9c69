"""Machines that need not be here: chips, topologies, and what a compiled program costs."""

from tokzoo.machines.chips import CHIPS, Chip
from tokzoo.machines.topologies import Topology, is_installed, parse

__all__ = ["CHIPS", "Chip", "Topology", "is_installed", "parse"]
