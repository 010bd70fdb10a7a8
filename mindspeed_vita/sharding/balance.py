"""Evens out attention work between ranks by swapping chunks, at the least price in travelling keys. numpy only."""

from __future__ import annotations

import numpy as np

TOLERANCE = 1.03
"""The heaviest rank's work over the mean at which swapping stops."""
_PARTNERS = 4
"""Lightest ranks that are tried as partners of the heaviest."""
_MOST_SWAPS = 1024
"""Bounds the time of planning. Packs of 1M tokens were seen to need up to 800; each takes about 0.15 ms."""


def even_out(
    work: np.ndarray, reach: np.ndarray, sizes: np.ndarray, owners: np.ndarray, num_ranks: int, tolerance: float = TOLERANCE
) -> np.ndarray:
    """Swaps chunks of the heaviest rank for chunks of light ones until it is close to the mean. Only chunks of one size are swapped.

    Each swap is the one that costs the fewest key chunks per unit of work evened out. A chunk that moves to a rank needs there the
    keys of its document before it; those that the rank owns, or needs already, cost nothing, so chunks of one long document
    tend to move together.

    Args:
        work: int64[chunks], work of each chunk.
        reach: int64[chunks], the first chunk whose keys a chunk's queries look at.
        sizes: int64[chunks], tokens of each chunk.
        owners: int64[chunks], the rank of each chunk.
        num_ranks: number of ranks.
        tolerance: the heaviest rank's work over the mean at which swapping stops.

    Returns:
        new owners.
    """
    owners, load = owners.copy(), np.bincount(owners, weights=work, minlength=num_ranks)
    mean = load.mean()
    missing = [_missing_before(reach, owners, rank) for rank in range(num_ranks)]
    for _ in range(_MOST_SWAPS):
        heavy = int(np.argmax(load))
        if load[heavy] <= tolerance * mean:
            break
        mine = np.flatnonzero(owners == heavy)
        swaps = []
        for light in np.argsort(load, kind="stable")[:_PARTNERS]:
            theirs = np.flatnonzero(owners == light)
            keys = _new_keys(reach, missing[light], mine)[:, None] + _new_keys(reach, missing[heavy], theirs)[None, :]
            usable = sizes[mine][:, None] == sizes[theirs][None, :]
            swaps.append(_best_swap(work, keys, usable, mine, theirs, load[heavy] - load[light]))
        price, out, back = min(swaps)
        if not np.isfinite(price):
            break
        light = int(owners[back])
        owners[out], owners[back] = light, heavy
        load[heavy] -= work[out] - work[back]
        load[light] += work[out] - work[back]
        for rank in (heavy, light):
            missing[rank] = _missing_before(reach, owners, rank)
    return owners


def _best_swap(
    work: np.ndarray, keys: np.ndarray, usable: np.ndarray, mine: np.ndarray, theirs: np.ndarray, gap: float
) -> tuple[float, int, int]:
    """(price, heavy's chunk, light's chunk) of the cheapest swap that lowers the higher of the two loads; price inf if none does."""
    moved = work[mine][:, None] - work[theirs][None, :]
    gain = np.minimum(moved, gap - moved)  # of the higher load: past half of the gap the light rank becomes the higher one
    price = np.where((gain > 0) & usable, (keys + 1) / np.maximum(gain, 1e-9), np.inf)
    best = int(np.argmin(price))
    return float(price.flat[best]), int(mine[best // len(theirs)]), int(theirs[best % len(theirs)])


def _new_keys(reach: np.ndarray, missing: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Key chunks that would newly travel to a rank if it took each of some chunks, and one for the chunk's own keys on their way back."""
    return missing[chunks] - missing[reach[chunks]] + 1


def _missing_before(reach: np.ndarray, owners: np.ndarray, rank: int) -> np.ndarray:
    """int64[chunks + 1]: how many of the chunks before each are not at hand on a rank: neither its own nor looked at by its queries."""
    queries = np.flatnonzero(owners == rank)
    edges = np.bincount(reach[queries], minlength=len(owners) + 1) - np.bincount(queries, minlength=len(owners) + 1)
    at_hand = (np.cumsum(edges)[:-1] > 0) | (owners == rank)
    return np.concatenate([[0], np.cumsum(~at_hand)])
