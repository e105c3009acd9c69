"""Metrics: states that merge over batches and hosts."""
