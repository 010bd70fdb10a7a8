"""An all-to-all of rows with a gradient: the same exchange backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_vita.platform.phases import phase


def all_to_all(rows: torch.Tensor, send: Sequence[int], recv: Sequence[int], group: Any) -> torch.Tensor:
    """Exchanges rows with every rank of a group.

    Args:
        rows: [sum(send), ...], first those for rank 0, then those for rank 1, ...
        send: rows for each rank.
        recv: rows from each rank.
        group: the ranks.

    Returns:
        [sum(recv), ...], in the order of the ranks.
    """
    return _AllToAll.apply(rows, tuple(send), tuple(recv), group)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, send: tuple[int, ...], recv: tuple[int, ...], group: Any) -> torch.Tensor:
        ctx.send, ctx.recv, ctx.group = send, recv, group
        return _exchange(rows, send, recv, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _exchange(grad, ctx.recv, ctx.send, ctx.group), None, None, None


def _exchange(rows: torch.Tensor, send: tuple[int, ...], recv: tuple[int, ...], group: Any) -> torch.Tensor:
    received = rows.new_empty(sum(recv), *rows.shape[1:])
    with phase("exchange"):
        dist.all_to_all_single(received, rows.contiguous(), list(recv), list(send), group=group)
    return received
