"""tokzoo: one zoo, one contract, every token."""

__version__ = "0.1.0"
