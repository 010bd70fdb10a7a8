"""The tiny data set."""

from tests.tiny_data import curve, tiny

__all__ = ["curve", "tiny"]
