"""Cross-entropy of hidden rows against a (tensor-parallel) vocabulary, with never more than chunk x V logits at a time.

Forward goes through chunks of rows and keeps one log-sum-exp a row. Backward computes logits again, through slices of the vocabulary:
each slice sees all rows, so the weight's gradient is one product a slice and is never accumulated in low precision.
Shapes: Q rows, H hidden, V vocabulary rows of this tensor-parallel rank.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.distributed as dist
import torch.nn.functional as F

from mindspeed_vita.ops.tokenwise import row_losses


def plain_cross_entropy(hidden_QH: torch.Tensor, weight_VH: torch.Tensor, labels_Q: torch.Tensor) -> torch.Tensor:
    """The reference: all logits at once, over the whole vocabulary. float32[Q], computed in fp32 from products in the weights' dtype."""
    return F.cross_entropy(F.linear(hidden_QH, weight_VH).float(), labels_Q, reduction="none")


def chunked_cross_entropy(
    hidden_QH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_Q: torch.Tensor,
    *,
    chunk: int,
    first: int = 0,
    group: Optional[Any] = None,
) -> torch.Tensor:
    """Loss of each row.

    Args:
        hidden_QH: rows, the same on every rank of the group.
        weight_VH: this rank's rows of the output layer.
        labels_Q: int64, the token to predict, over the whole vocabulary.
        chunk: rows of logits that may exist at a time; V times as many numbers.
        first: the first token of weight_VH.
        group: tensor-parallel group; None where this rank holds the whole vocabulary.

    Returns:
        float32[Q]. Logits are products in the weights' dtype, cast to fp32; exponentials and sums are fp32.
        The gradient of hidden_QH is this rank's part of a sum over the group.
    """
    return _ChunkedCrossEntropy.apply(hidden_QH, weight_VH, labels_Q, chunk, first, group)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_QH: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_Q: torch.Tensor,
        chunk: int,
        first: int,
        group: Optional[Any],
    ) -> torch.Tensor:
        parts = [
            _row_losses(hidden, weight_VH, labels - first, group) for hidden, labels in zip(hidden_QH.split(chunk), labels_Q.split(chunk))
        ]
        losses_Q, lse_Q = (torch.cat(column) for column in zip(*parts))
        ctx.save_for_backward(hidden_QH, weight_VH, labels_Q, lse_Q)
        ctx.chunk, ctx.first = chunk, first
        return losses_Q

    @staticmethod
    def backward(ctx: Any, grad_Q: torch.Tensor) -> tuple[Optional[torch.Tensor], ...]:
        hidden_QH, weight_VH, labels_Q, lse_Q = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden_QH = torch.zeros_like(hidden_QH, dtype=torch.float32) if wants_hidden else None
        grad_weight_VH = torch.empty_like(weight_VH) if wants_weight else None
        width = max(1, ctx.chunk * len(weight_VH) // max(1, len(hidden_QH)))
        for start in range(0, len(weight_VH), width):
            weight = weight_VH[start : start + width]
            grad_logits = _grad_logits(hidden_QH, weight, labels_Q - ctx.first - start, lse_Q, grad_Q)
            if grad_hidden_QH is not None:
                grad_hidden_QH += grad_logits @ weight
            if grad_weight_VH is not None:
                torch.mm(grad_logits.T, hidden_QH, out=grad_weight_VH[start : start + width])
        return None if grad_hidden_QH is None else grad_hidden_QH.to(hidden_QH.dtype), grad_weight_VH, None, None, None, None


def _row_losses(
    hidden_CH: torch.Tensor, weight_VH: torch.Tensor, labels_C: torch.Tensor, group: Optional[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and log-sum-exps of a chunk of rows; labels count from this rank's first token."""
    logits_CV = F.linear(hidden_CH, weight_VH).float()
    if group is None:
        return row_losses(logits_CV, labels_C)
    highest_C = logits_CV.amax(-1)
    dist.all_reduce(highest_C, dist.ReduceOp.MAX, group=group)
    logits_CV.sub_(highest_C.unsqueeze(-1))
    mine_C = (labels_C >= 0) & (labels_C < len(weight_VH))
    target_C = logits_CV.gather(1, labels_C.clamp(0, len(weight_VH) - 1).unsqueeze(1)).squeeze(1) * mine_C
    sums_2C = torch.stack([target_C, logits_CV.exp_().sum(-1)])
    dist.all_reduce(sums_2C, group=group)
    log_sum_C = sums_2C[1].log()
    return log_sum_C - sums_2C[0], log_sum_C + highest_C


def _grad_logits(
    hidden_QH: torch.Tensor, weight_WH: torch.Tensor, labels_Q: torch.Tensor, lse_Q: torch.Tensor, grad_Q: torch.Tensor
) -> torch.Tensor:
    """(softmax - one hot) * grad over a slice of W tokens, in the dtype of the weight; labels count from the slice's first token."""
    probabilities_QW = F.linear(hidden_QH, weight_WH).float().sub_(lse_Q.unsqueeze(-1)).exp_()
    mine_Q1 = ((labels_Q >= 0) & (labels_Q < len(weight_WH))).unsqueeze(1)
    probabilities_QW.scatter_add_(1, labels_Q.clamp(0, len(weight_WH) - 1).unsqueeze(1), -mine_Q1.float())
    return probabilities_QW.mul_(grad_Q.unsqueeze(-1)).to(weight_WH.dtype)
