"""A leaf, numpy only: which context-parallel rank owns which tokens and cache blocks, and which rank encodes which tiles."""

from mindspeed_vita.sharding.block_dealing import deal_blocks
from mindspeed_vita.sharding.cp_plan import CPPlan, index, make_cp_plan
from mindspeed_vita.sharding.tiles import TileRoute, tile_owner, tile_routes

__all__ = ["CPPlan", "TileRoute", "deal_blocks", "index", "make_cp_plan", "tile_owner", "tile_routes"]
