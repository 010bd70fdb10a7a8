"""Attention over blocks of packed documents, over cached keys, and over tiles."""

from mindspeed_vita.ops.attention.api import tile_attention
from mindspeed_vita.ops.attention.call import Blocks, Heads, Upstream
from mindspeed_vita.ops.attention.paged import Paged, PagedSequences
from mindspeed_vita.ops.attention.registry import Backend, backend_names, choose, register_backend

__all__ = [
    "Backend",
    "Blocks",
    "Heads",
    "Paged",
    "PagedSequences",
    "Upstream",
    "backend_names",
    "choose",
    "register_backend",
    "tile_attention",
]
