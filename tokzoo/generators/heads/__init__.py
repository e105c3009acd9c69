"""Heads: small networks that draw a token given a transformer's state."""

from tokzoo.generators.heads.codes import CodesHead
from tokzoo.generators.heads.flow_matching import FlowHead

__all__ = ["CodesHead", "FlowHead"]
