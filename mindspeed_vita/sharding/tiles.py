"""Which rank encodes which tiles, and which of the resulting rows each rank's tokens need. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindspeed_vita.sharding.cp_plan import CPPlan, index


@dataclass(frozen=True)
class TileRoute:
    """What one rank sends and receives after encoding its tiles. The group is tp x cp, or cp where tp ranks encode together.

    Attributes:
        send_rows: int64[sum(send_counts)], rows of this rank's encoded tiles (tile-major), grouped by receiver.
        send_counts: rows for each rank of the group.
        recv_counts: rows from each rank of the group.
        targets: int64[sum(recv_counts)], the local token whose embedding each received row replaces.
    """

    send_rows: np.ndarray
    send_counts: tuple[int, ...]
    recv_counts: tuple[int, ...]
    targets: np.ndarray


def tile_owner(num_tiles: int, group_size: int) -> list[range]:
    """Contiguous tile ranges, one per rank, sizes differing by at most one: frames stay in decode order and the count is the cost.

    The ranges of tp neighbours join to the range that a group of group_size / tp gives instead.
    """
    starts = [rank * num_tiles // group_size for rank in range(group_size + 1)]
    return [range(starts[rank], starts[rank + 1]) for rank in range(group_size)]


def tile_routes(
    cp_plan: CPPlan, tile_first_token: np.ndarray, tokens_per_tile: int, tp_size: int, group_rank: int, *, tensor: bool = False
) -> TileRoute:
    """The exchange of vision rows, seen from one rank of the tp x cp group (rank = cp_rank * tp + tp_rank).

    Sequence parallel gives each rank of the group a contiguous tp-th of its context-parallel rank's tokens, so every token
    row has exactly one owner.

    Args:
        cp_plan: token owners of the pack.
        tile_first_token: int[N], pack position of each tile's first row.
        tokens_per_tile: rows per tile.
        tp_size: tensor-parallel size.
        group_rank: the rank in the tp x cp group whose view is returned.
        tensor: the tp ranks encode the same tiles together, so all of them have the rows, and each exchanges over its context
            parallel group those that its own tensor-parallel rank holds.
    """
    positions = (np.asarray(tile_first_token, dtype=np.int64)[:, None] + np.arange(tokens_per_tile)).reshape(-1)
    holder = np.empty(cp_plan.num_tokens, dtype=np.int64)
    local = np.empty(cp_plan.num_tokens, dtype=np.int64)
    for cp_rank in range(cp_plan.cp_size):
        owned = index(cp_plan, cp_rank)
        share = len(owned) // tp_size
        holder[owned] = cp_rank * tp_size + np.arange(len(owned)) // share
        local[owned] = np.arange(len(owned)) % share
    row_holder = holder[positions]
    group_size = cp_plan.cp_size * tp_size
    if tensor:
        cp_rank, tp_rank = divmod(group_rank, tp_size)
        row_holder = np.where(row_holder % tp_size == tp_rank, row_holder // tp_size, -1)
        group_size, group_rank = cp_plan.cp_size, cp_rank
    counts = [len(tiles) for tiles in tile_owner(len(tile_first_token), group_size)]
    row_encoder = np.repeat(np.repeat(np.arange(group_size), counts), tokens_per_tile)

    first_row = sum(counts[:group_rank]) * tokens_per_tile
    mine = np.flatnonzero((row_encoder == group_rank) & (row_holder >= 0))
    order = np.argsort(row_holder[mine], kind="stable")
    wanted = np.flatnonzero(row_holder == group_rank)
    return TileRoute(
        send_rows=mine[order] - first_row,
        send_counts=tuple(np.bincount(row_holder[mine], minlength=group_size).tolist()),
        recv_counts=tuple(np.bincount(row_encoder[wanted], minlength=group_size).tolist()),
        targets=local[positions[wanted]],
    )
