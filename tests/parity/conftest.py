"""Worker pools, one per line of megatron-core."""

from tests.distributed.fixtures import layout_pool, pools

__all__ = ["layout_pool", "pools"]
