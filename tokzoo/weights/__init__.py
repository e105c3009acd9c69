"""Weights: reading published files, and tables that map them to our parameters and back."""

from tokzoo.weights.blocks import llama_block_rules, norm_rules, vit_block_rules
from tokzoo.weights.files import read_metadata, read_state, write_safetensors
from tokzoo.weights.flax_files import is_flax, write_flax
from tokzoo.weights.table import (
  CONV2D,
  KEEP,
  LINEAR,
  POINTWISE,
  Row,
  Rule,
  Step,
  Table,
  Transform,
  conv2d_rules,
  fingerprint,
  flatten,
  linear_rules,
  unflatten,
)
from tokzoo.weights.weight_norm import WeightNorm

__all__ = [
  "CONV2D",
  "KEEP",
  "LINEAR",
  "POINTWISE",
  "Row",
  "Rule",
  "Step",
  "Table",
  "Transform",
  "WeightNorm",
  "conv2d_rules",
  "fingerprint",
  "flatten",
  "is_flax",
  "linear_rules",
  "llama_block_rules",
  "norm_rules",
  "read_metadata",
  "read_state",
  "unflatten",
  "vit_block_rules",
  "write_flax",
  "write_safetensors",
]
