"""The tiny data set and the curve reader."""

from tests.tiny_data import curve, tiny

__all__ = ["curve", "tiny"]
