"""Puts vision rows where the pack's tokens expect them, after checking that they fit."""

from __future__ import annotations

import torch


def splice(embeddings_T1H: torch.Tensor, rows_RH: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """The embeddings with row r at token targets[r], differentiable in both.

    Args:
        embeddings_T1H: embeddings of this rank's tokens.
        rows_RH: vision rows for this rank's tokens.
        targets_R: int64, the token of each row.
    """
    assert rows_RH.shape[0] == targets_R.shape[0], (rows_RH.shape, targets_R.shape)
    return embeddings_T1H.index_copy(0, targets_R, rows_RH.to(embeddings_T1H.dtype).unsqueeze(1))


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
