"""Losses: pure functions on arrays, and the networks that some of them need."""
