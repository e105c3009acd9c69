"""Weights: reading published files, and tables that map them to our parameters and back."""

from tokzoo.weights.files import read_state, write_safetensors
from tokzoo.weights.table import (
  CONV2D,
  KEEP,
  LINEAR,
  Row,
  Rule,
  Table,
  Transform,
  conv2d_rules,
  fingerprint,
  flatten,
  linear_rules,
  unflatten,
)

__all__ = [
  "CONV2D",
  "KEEP",
  "LINEAR",
  "Row",
  "Rule",
  "Table",
  "Transform",
  "conv2d_rules",
  "fingerprint",
  "flatten",
  "linear_rules",
  "read_state",
  "unflatten",
  "write_safetensors",
]
