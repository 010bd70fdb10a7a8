"""A sum over the ranks of a group with a gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def sum_over(values: torch.Tensor, group: Any) -> torch.Tensor:
    """The sum of a tensor over the ranks of a group, on each of them.

    The result of every rank depends on the values of all, so a rank's gradient is the sum over the ranks of what each of them passes back.
    """
    return _Sum.apply(values, group)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _summed(values, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _summed(grad, ctx.group), None


def _summed(values: torch.Tensor, group: Any) -> torch.Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total
