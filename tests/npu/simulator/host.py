"""Operators of aten that torch_npu has and torch on a CPU has not: gradients of products that torch takes apart elsewhere."""

from __future__ import annotations

from typing import Optional, Sequence

import torch


def matmul_backward(
    grad: torch.Tensor, a: torch.Tensor, b: torch.Tensor, mask: Sequence[bool]
) -> tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
    """Gradients of a @ b for a of two or more dimensions."""
    assert a.dim() >= 2 and b.dim() >= 2
    grad_a = (grad @ b.transpose(-1, -2)).sum_to_size(a.shape) if mask[0] else None
    if not mask[1]:
        return grad_a, None
    if b.dim() == 2:
        return grad_a, a.flatten(0, -2).T @ grad.flatten(0, -2)
    return grad_a, (a.transpose(-1, -2) @ grad).sum_to_size(b.shape)


def linear_backward(
    x: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor, mask: Sequence[bool]
) -> tuple[Optional[torch.Tensor], Optional[torch.Tensor], Optional[torch.Tensor]]:
    """Gradients of x @ weight^T + bias."""
    rows = grad.flatten(0, -2)
    return (
        grad @ weight if mask[0] else None,
        rows.T @ x.flatten(0, -2) if mask[1] else None,
        rows.sum(0) if mask[2] else None,
    )


SUBSTITUTES = {"aten::matmul_backward": matmul_backward, "aten::linear_backward": linear_backward}
"""By the operator's name."""
