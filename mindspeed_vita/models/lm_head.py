"""The language head: logits and loss for the rows that need them, never a [sequence, vocabulary] tensor.

Shapes: T tokens of this context-parallel rank, L = T / tp of them held here (sequence parallel), R rows with logits, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region, gather_from_tensor_model_parallel_region

from mindspeed_vita.ops.cross_entropy import chunked_cross_entropy

IGNORE = -100


class LanguageHead:
    """Loss per token from final hidden states.

    Args:
        mode: masked (supervised rows only, in chunks) | chunked (all rows, in chunks) | original (all rows at once).
        chunk: rows of logits that exist at a time.
        tp_rank, tp_size, tp_group: the tensor-parallel group and this rank's place; the vocabulary is split over it.
    """

    def __init__(self, *, mode: str, chunk: int, tp_rank: int = 0, tp_size: int = 1, tp_group: Any = None) -> None:
        assert tp_size == 1 or tp_group is not None
        self.mode, self.chunk = mode, chunk
        self.tp_rank, self.tp_size, self.tp_group = tp_rank, tp_size, tp_group if tp_size > 1 else None

    def losses(
        self, hidden_L1H: torch.Tensor, weight_VH: torch.Tensor, labels_T: torch.Tensor, weights_T: torch.Tensor
    ) -> torch.Tensor:
        """Weighted cross-entropy of each token: float32[T], 0 where the label is -100.

        Args:
            hidden_L1H: this rank's share of the final hidden states.
            weight_VH: this rank's rows of the output layer.
            labels_T: int64, the next token, or -100.
            weights_T: float32 factor on each token's loss.
        """
        rows_Q, shown_Q = self._rows(labels_T)
        local = rows_Q.view(self.tp_size, -1)[self.tp_rank] % hidden_L1H.shape[0]
        hidden_QH = hidden_L1H.squeeze(1).index_select(0, local)
        if self.tp_size > 1:
            hidden_QH = gather_from_sequence_parallel_region(hidden_QH, tensor_parallel_output_grad=True)
        labels_Q = labels_T[rows_Q].clamp_min(0)
        if self.mode == "original":
            losses_Q = self._losses_at_once(hidden_QH, weight_VH, labels_Q)
        else:
            first = self.tp_rank * len(weight_VH)
            losses_Q = chunked_cross_entropy(hidden_QH, weight_VH, labels_Q, chunk=self.chunk, first=first, group=self.tp_group)
        losses_Q = losses_Q * shown_Q * weights_T[rows_Q]
        return torch.zeros_like(weights_T, dtype=torch.float32).index_add(0, rows_Q, losses_Q)

    def logits(self, hidden_L1H: torch.Tensor, weight_VH: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
        """Logits of chosen tokens, whole vocabulary, fp32: [R, V]."""
        hidden_TH = hidden_L1H.squeeze(1)
        if self.tp_size > 1:
            hidden_TH = gather_from_sequence_parallel_region(hidden_TH, tensor_parallel_output_grad=True)
        logits = F.linear(hidden_TH[rows_R], weight_VH)
        return (gather_from_tensor_model_parallel_region(logits) if self.tp_size > 1 else logits).float()

    def _rows(self, labels_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens whose logits are computed, the same number for each tensor-parallel rank's share, and which of them count.

        Every rank knows all labels, so shares are padded to one size without communication; a padded entry repeats a token
        and is not counted. One row at least keeps the graph, and so the collectives, the same on every rank.
        """
        supervised_SL = (labels_T != IGNORE).view(self.tp_size, -1)
        share = supervised_SL.shape[1]
        if self.mode != "masked":
            return torch.arange(labels_T.shape[0], device=labels_T.device), supervised_SL.flatten().float()
        width = max(1, int(supervised_SL.sum(1).max()))
        # a stable sort puts the supervised tokens of each share first, in order
        first = supervised_SL.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
        shown = supervised_SL.gather(1, first)
        rows = first + share * torch.arange(self.tp_size, device=labels_T.device).unsqueeze(1)
        return rows.flatten(), shown.flatten().float()

    def _losses_at_once(self, hidden_QH: torch.Tensor, weight_VH: torch.Tensor, labels_Q: torch.Tensor) -> torch.Tensor:
        logits_QV = F.linear(hidden_QH, weight_VH).float()
        if self.tp_size == 1:
            return F.cross_entropy(logits_QV, labels_Q, reduction="none")
        return vocab_parallel_cross_entropy(logits_QV.unsqueeze(1), labels_Q.unsqueeze(1)).squeeze(1)
