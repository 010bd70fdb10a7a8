"""The module cache of the tests of hf/, and the tiny data set."""

from tests.tiny_data import tiny
from tests.unit.hf.conftest import own_module_cache

__all__ = ["own_module_cache", "tiny"]
