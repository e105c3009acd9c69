"""A run of four processes that are killed, stopped and starved."""
