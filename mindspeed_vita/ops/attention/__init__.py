"""Attention over packed documents and over tiles."""

from mindspeed_vita.ops.attention.api import backend_names, packed_attention, tile_attention

__all__ = ["backend_names", "packed_attention", "tile_attention"]
