"""The tiny data set."""

from tests.tiny_data import tiny

__all__ = ["tiny"]
