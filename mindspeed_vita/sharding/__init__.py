"""Who holds what: which context-parallel rank owns which tokens, which rank encodes which tiles. numpy only."""

from mindspeed_vita.sharding.cp_plan import CPPlan, index, plan
from mindspeed_vita.sharding.tiles import TileRoute, tile_owner, tile_routes

__all__ = ["CPPlan", "TileRoute", "index", "plan", "tile_owner", "tile_routes"]
