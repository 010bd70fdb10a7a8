"""The language head: logits and loss for the rows that need them, never a [sequence, vocabulary] tensor.

Shapes: T tokens of this context-parallel rank, L = T / tp of them held here (sequence parallel), Q or R rows with logits, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region, gather_from_tensor_model_parallel_region

from mindspeed_vita.ops.cross_entropy import chunked_cross_entropy, plain_cross_entropy

IGNORE = -100


class LanguageHead:
    """Loss per token from final hidden states.

    Args:
        mode: masked (supervised rows only, in chunks) | chunked (all rows, in chunks) | original (all rows at once).
        chunk: rows of logits that exist at a time.
        tp_rank, tp_size, tp_group: the tensor-parallel group and this rank in it; the vocabulary is split over it.
        sequence_parallel: hidden states are shared out over the group. Without it each rank has all of them, and only logits are served.
    """

    def __init__(
        self, *, mode: str, chunk: int, tp_rank: int = 0, tp_size: int = 1, tp_group: Any = None, sequence_parallel: bool = True
    ) -> None:
        assert tp_size == 1 or tp_group is not None
        self.mode, self.chunk = mode, chunk
        self.tp_rank, self.tp_size, self.tp_group = tp_rank, tp_size, tp_group if tp_size > 1 else None
        self.shared_out = sequence_parallel and tp_size > 1

    def losses(
        self,
        hidden_L1H: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_T: torch.Tensor,
        weights_T: torch.Tensor,
        supervised_Q: torch.Tensor,
    ) -> torch.Tensor:
        """Weighted cross-entropy of each token: float32[T], 0 where the label is -100.

        Args:
            hidden_L1H: this rank's share of the final hidden states.
            weight_VH: this rank's rows of the output layer.
            labels_T: int64, the next token, or -100.
            weights_T: float32 factor on each token's loss.
            supervised_Q: int64, the tokens whose label is not -100: the host knows them, finding them on the device would wait for it.
                Unsupervised tokens among them cost logits and change nothing.
        """
        assert self.shared_out or self.tp_size == 1
        if self.mode == "masked":
            # one row at least keeps the graph, and so the collectives of its backward pass, the same on every rank
            rows_Q = supervised_Q if len(supervised_Q) else torch.zeros_like(labels_T[:1])
            hidden_QH = self._take(hidden_L1H.squeeze(1), rows_Q)
        else:
            rows_Q = torch.arange(len(labels_T), device=labels_T.device)
            hidden_QH = hidden_L1H.squeeze(1)
            if self.tp_size > 1:
                hidden_QH = gather_from_sequence_parallel_region(hidden_QH, tensor_parallel_output_grad=True)
        labels_Q = labels_T[rows_Q]
        shown_Q = labels_Q != IGNORE
        if self.mode == "original":
            losses_Q = self._losses_at_once(hidden_QH, weight_VH, labels_Q.clamp_min(0))
        else:
            first = self.tp_rank * len(weight_VH)
            wanted_Q = labels_Q.clamp_min(0)
            losses_Q = chunked_cross_entropy(hidden_QH, weight_VH, wanted_Q, chunk=self.chunk, first=first, group=self.tp_group)
        losses_Q = losses_Q * shown_Q * weights_T[rows_Q]
        return torch.zeros_like(weights_T, dtype=torch.float32).index_add(0, rows_Q, losses_Q)

    @torch.no_grad()
    def hits(
        self, hidden_L1H: torch.Tensor, weight_VH: torch.Tensor, labels_T: torch.Tensor, supervised_Q: torch.Tensor
    ) -> torch.Tensor:
        """Whether each token's label has the highest logit: float32[T] of 1 and 0, 0 where the label is -100.

        Of equal logits the one with the lowest id counts as the highest. Arguments as losses.
        """
        first, vocabulary = self.tp_rank * len(weight_VH), self.tp_size * len(weight_VH)
        found = []
        for hidden_CH in self._take(hidden_L1H.squeeze(1), supervised_Q).split(self.chunk):
            highest_C, ids_C = F.linear(hidden_CH, weight_VH).float().max(-1)
            ids_C = ids_C.to(torch.int32) + first  # which every library of collectives reduces
            if self.tp_group is not None:
                mine_C = highest_C.clone()
                dist.all_reduce(highest_C, dist.ReduceOp.MAX, group=self.tp_group)
                ids_C = ids_C.masked_fill(mine_C != highest_C, vocabulary)
                dist.all_reduce(ids_C, dist.ReduceOp.MIN, group=self.tp_group)
            found.append(ids_C)
        hits_Q = (torch.cat(found) == labels_T[supervised_Q]).float()  # the label -100 of an unsupervised token is no id
        return torch.zeros_like(labels_T, dtype=torch.float32).index_add(0, supervised_Q, hits_Q)

    def logits(self, hidden_L1H: torch.Tensor, weight_VH: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
        """Logits of chosen tokens, whole vocabulary, fp32: [R, V]."""
        logits = F.linear(self._take(hidden_L1H.squeeze(1), rows_R), weight_VH)
        return (gather_from_tensor_model_parallel_region(logits) if self.tp_size > 1 else logits).float()

    def _take(self, hidden_LH: torch.Tensor, rows_Q: torch.Tensor) -> torch.Tensor:
        """Chosen rows of the whole sequence, on every rank of the group: [Q, H]."""
        if not self.shared_out:
            return hidden_LH.index_select(0, rows_Q)
        return _RowsOfGroup.apply(hidden_LH, rows_Q - self.tp_rank * len(hidden_LH), self.tp_group)

    def _losses_at_once(self, hidden_QH: torch.Tensor, weight_VH: torch.Tensor, labels_Q: torch.Tensor) -> torch.Tensor:
        if self.tp_size == 1:
            return plain_cross_entropy(hidden_QH, weight_VH, labels_Q)
        logits_QV = F.linear(hidden_QH, weight_VH).float()
        return vocab_parallel_cross_entropy(logits_QV.unsqueeze(1), labels_Q.unsqueeze(1)).squeeze(1)


class _RowsOfGroup(torch.autograd.Function):
    """Rows that are spread over a group, put together: each is contributed by its owner alone, so the sum over the group is exact.

    Every rank uses the rows with its part of the vocabulary, so the gradient is summed over the group, and a row's goes to its owner.
    """

    @staticmethod
    def forward(ctx: Any, hidden_LH: torch.Tensor, local_Q: torch.Tensor, group: Any) -> torch.Tensor:
        """local_Q counts the wanted rows from this rank's first; others' lie outside 0 .. L - 1."""
        mine_Q1 = ((local_Q >= 0) & (local_Q < len(hidden_LH))).unsqueeze(1)
        local_Q = local_Q.clamp(0, len(hidden_LH) - 1)
        rows_QH = hidden_LH.index_select(0, local_Q).masked_fill_(~mine_Q1, 0)
        dist.all_reduce(rows_QH, group=group)
        ctx.save_for_backward(local_Q, mine_Q1)
        ctx.num_rows, ctx.group = len(hidden_LH), group
        return rows_QH

    @staticmethod
    def backward(ctx: Any, grad_QH: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        local_Q, mine_Q1 = ctx.saved_tensors
        summed_QH = grad_QH.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed_QH, group=ctx.group)
        grad_LH = summed_QH.new_zeros(ctx.num_rows, summed_QH.shape[1])
        return grad_LH.index_add_(0, local_Q, summed_QH.masked_fill_(~mine_Q1, 0)), None, None
