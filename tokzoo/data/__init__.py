"""Data: Grain pipelines over random-access sources."""

from tokzoo.data.config import DataConfig

__all__ = ["DataConfig"]
