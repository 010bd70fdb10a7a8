"""Vision rows travel from the ranks that encoded them to the ranks whose tokens need them: one all-to-all, differentiable."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from mindspeed_vita.models.inputs import VisionRoute


class _AllToAllRows(torch.autograd.Function):
    """Uneven all-to-all of rows; the gradient is the same exchange backwards."""

    @staticmethod
    def forward(ctx: Any, rows_RH: torch.Tensor, send: tuple[int, ...], recv: tuple[int, ...], group: Any) -> torch.Tensor:
        ctx.send, ctx.recv, ctx.group = send, recv, group
        return _all_to_all(rows_RH, send, recv, group)

    @staticmethod
    def backward(ctx: Any, grad_RH: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _all_to_all(grad_RH, ctx.recv, ctx.send, ctx.group), None, None, None


def _all_to_all(rows_RH: torch.Tensor, send: tuple[int, ...], recv: tuple[int, ...], group: Any) -> torch.Tensor:
    received = rows_RH.new_empty(sum(recv), rows_RH.shape[1])
    dist.all_to_all_single(received, rows_RH.contiguous(), list(recv), list(send), group=group)
    return received


class TileExchange:
    """The exchange over one tp x cp group.

    Args:
        group: the tp x cp process group.
        group_size: its size; a group of one only reorders rows.
    """

    def __init__(self, group: Any, group_size: int) -> None:
        self.group, self.group_size = group, group_size

    def __call__(self, rows_RH: torch.Tensor, route: VisionRoute) -> torch.Tensor:
        """Rows for this rank's tokens, in the order of route.places: [sum(recv_counts), H]."""
        ordered = rows_RH.index_select(0, route.send_rows)
        if self.group_size == 1:
            return ordered
        return _AllToAllRows.apply(ordered, route.send_counts, route.recv_counts, self.group)
