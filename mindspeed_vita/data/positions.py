"""Positions of a pack's tokens for the rotary embedding. Training, generation and the parity checks take them from here."""

from __future__ import annotations

import numpy as np


def document_positions(cu_seqlens: np.ndarray) -> np.ndarray:
    """Positions that count from 0 in each document, and so in the padding: int64[S].

    Args:
        cu_seqlens: int64[D + 1], bounds of the pack's documents, from 0 to S.
    """
    return np.arange(cu_seqlens[-1], dtype=np.int64) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
