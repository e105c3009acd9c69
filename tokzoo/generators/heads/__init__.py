"""Heads: small networks that turn a transformer's state into something else than logits."""

from tokzoo.generators.heads.flow_matching import FlowHead

__all__ = ["FlowHead"]
