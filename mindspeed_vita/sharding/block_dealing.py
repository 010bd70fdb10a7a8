"""Which context-parallel rank holds which block of a sequence's key-value cache. numpy only."""

from __future__ import annotations

import numpy as np


def deal_blocks(before: int, count: int, cp: int) -> np.ndarray:
    """Deals the blocks of one prefill chunk to context-parallel ranks.

    The largest multiple of 2 * cp blocks at the chunk's beginning is dealt as 2 * cp pieces of equal length in zigzag: rank r takes pieces
    r and 2 * cp - 1 - r, so attention work inside the chunk is even. The blocks that remain are dealt one by one in the same zigzag, which
    goes on where the chunk before ended. So, however a sequence is cut into chunks, n blocks put at most ceil(n / cp) on a rank.

    Args:
        before: blocks of the sequence before this chunk.
        count: blocks of this chunk.
        cp: number of context-parallel ranks.

    Returns:
        int64[count], the rank of each block.

    Raises:
        ValueError: a negative number of blocks, or no rank.
    """
    if before < 0 or count < 0 or cp < 1:
        raise ValueError(f"cannot deal {count} blocks after {before} to {cp} ranks; expected no negative number and at least one rank")
    zigzag = np.concatenate([np.arange(cp), np.arange(cp)[::-1]])
    piece, rest = divmod(count, 2 * cp)
    return np.concatenate([np.repeat(zigzag, piece), zigzag[(before + np.arange(rest)) % (2 * cp)]])
