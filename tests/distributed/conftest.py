"""Worker pools, one per line of megatron-core, shared by every test that needs more than one process; the tiny data set."""

from tests.distributed.fixtures import layout_pool, pools
from tests.tiny_data import curve, tiny

__all__ = ["curve", "layout_pool", "pools", "tiny"]
