"""Puts vision rows where the pack's tokens expect them, after checking that they fit."""

from __future__ import annotations

from typing import Any, Optional

import torch


def splice(embeddings_T1H: torch.Tensor, rows_RH: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """The embeddings with row r at token targets[r], differentiable in both.

    Args:
        embeddings_T1H: embeddings of this rank's tokens.
        rows_RH: vision rows for this rank's tokens.
        targets_R: int64, the token of each row.
    """
    assert rows_RH.shape[0] == targets_R.shape[0], (rows_RH.shape, targets_R.shape)
    return _Splice.apply(embeddings_T1H, rows_RH.to(embeddings_T1H.dtype), targets_R)


class _Splice(torch.autograd.Function):
    """index_copy whose backward pass keeps the places alone. torch's own keeps the rows too, though it needs their shape only."""

    @staticmethod
    def forward(ctx: Any, embeddings_T1H: torch.Tensor, rows_RH: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(targets_R)
        return embeddings_T1H.index_copy(0, targets_R, rows_RH.unsqueeze(1))

    @staticmethod
    def backward(ctx: Any, grad_T1H: torch.Tensor) -> tuple[Optional[torch.Tensor], Optional[torch.Tensor], None]:
        (targets_R,) = ctx.saved_tensors
        wants_embeddings, wants_rows, _ = ctx.needs_input_grad
        return (
            grad_T1H.index_fill(0, targets_R, 0) if wants_embeddings else None,
            grad_T1H.index_select(0, targets_R).squeeze(1) if wants_rows else None,
            None,
        )


def check_counts(num_context_tokens: int, num_tiles: int, tokens_per_tile: int) -> None:
    """Refuses a pack whose vision tokens and tiles disagree: a row would land on a token that is not its own.

    Raises:
        ValueError: the counts differ.
    """
    if num_context_tokens != num_tiles * tokens_per_tile:
        raise ValueError(
            f"the pack holds {num_context_tokens} vision tokens but {num_tiles} tiles of {tokens_per_tile} tokens "
            f"({num_tiles * tokens_per_tile}); check that the data and the model use the same tile and patch size"
        )
