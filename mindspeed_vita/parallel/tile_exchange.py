"""Vision rows travel from the ranks that encoded them to the ranks whose tokens need them: one all-to-all, differentiable.

Where tensor-parallel ranks encode together, each decodes a part of the tiles and gather_tiles puts them together first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_vita.models.inputs import VisionRoute
from mindspeed_vita.parallel.all_to_all import all_to_all


class GroupRowExchange:
    """A RowExchange (models/vita.py) over one process group.

    Args:
        group: the ranks that share out a pack's tiles: the tp x cp group, or the cp group where tp ranks encode together.
        group_size: its size; a group of one only reorders rows.
    """

    def __init__(self, group: Any, group_size: int) -> None:
        self.group, self.group_size = group, group_size

    def __call__(self, rows_RH: torch.Tensor, route: VisionRoute) -> torch.Tensor:
        """Rows for this rank's tokens, in the order of route.targets: [sum(recv_counts), H]."""
        ordered = rows_RH.index_select(0, route.send_rows)
        if self.group_size == 1:
            return ordered
        return all_to_all(ordered, route.send_counts, route.recv_counts, self.group)


def gather_tiles(tiles_NCHW: torch.Tensor, counts: Sequence[int], group: Any) -> torch.Tensor:
    """The tiles of all ranks of a group, in the order of the ranks.

    Args:
        tiles_NCHW: this rank's tiles, uint8.
        counts: how many each rank has.
        group: the ranks.
    """
    most = max(counts)
    if len(counts) == 1 or not most:
        return tiles_NCHW
    padded = tiles_NCHW.new_zeros(most, *tiles_NCHW.shape[1:])
    padded[: len(tiles_NCHW)] = tiles_NCHW
    gathered = padded.new_empty(len(counts) * most, *padded.shape[1:])
    dist.all_gather_into_tensor(gathered, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(gathered.split(most), counts)])
