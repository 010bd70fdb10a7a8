"""Evens out attention work between ranks by swapping chunks, at the least price in travelling keys. numpy only."""

from __future__ import annotations

import numpy as np

TOLERANCE = 1.03
"""The heaviest rank's work over the mean at which swapping stops."""
_PARTNERS = 4
"""Lightest ranks that are tried as partners of the heaviest."""
_MAX_SWAPS_PER_CHUNK = 2


def even_out(work: np.ndarray, reach: np.ndarray, owners: np.ndarray, num_ranks: int) -> np.ndarray:
    """Swaps chunks of the heaviest rank for chunks of light ones until it is close to the mean. Equal shares stay equal.

    Each swap is the one that costs the fewest key chunks per unit of work evened out. A chunk that moves to a rank needs there the
    keys of its document before it; those that the rank owns, or needs already, cost nothing, so chunks of one long document
    tend to move together.

    Args:
        work: int64[chunks], work of each chunk.
        reach: int64[chunks], the first chunk whose keys a chunk's queries look at.
        owners: int64[chunks], the rank of each chunk.
        num_ranks: number of ranks.

    Returns:
        new owners.
    """
    owners, load = owners.copy(), np.bincount(owners, weights=work, minlength=num_ranks)
    mean = load.mean()
    for _ in range(_MAX_SWAPS_PER_CHUNK * len(work)):
        heavy = int(load.argmax())
        if load[heavy] <= TOLERANCE * mean:
            break
        swaps = [
            _best_swap(work, reach, owners, load[heavy] - load[light], heavy, int(light))
            for light in np.argsort(load, kind="stable")[:_PARTNERS]
            if light != heavy
        ]
        price, mine, theirs = min(swaps)
        if not np.isfinite(price):
            break
        light = owners[theirs]
        owners[mine], owners[theirs] = light, heavy
        moved = work[mine] - work[theirs]
        load[heavy] -= moved
        load[light] += moved
    return owners


def _best_swap(
    work: np.ndarray, reach: np.ndarray, owners: np.ndarray, gap: float, heavy: int, light: int
) -> tuple[float, int, int]:
    """(price, heavy's chunk, light's chunk) of the cheapest swap that lowers the higher of the two loads; price inf if none does."""
    mine, theirs = np.flatnonzero(owners == heavy), np.flatnonzero(owners == light)
    keys = _new_keys(reach, owners, light, mine)[:, None] + _new_keys(reach, owners, heavy, theirs)[None, :]
    moved = work[mine][:, None] - work[theirs][None, :]
    gain = np.minimum(moved, gap - moved)  # of the higher load: past half of the gap the light rank becomes the higher one
    price = np.where(gain > 0, (keys + 1) / np.maximum(gain, 1e-9), np.inf)
    best = int(price.argmin())
    return float(price.flat[best]), int(mine[best // len(theirs)]), int(theirs[best % len(theirs)])


def _new_keys(reach: np.ndarray, owners: np.ndarray, rank: int, chunks: np.ndarray) -> np.ndarray:
    """Key chunks that would newly travel to a rank if it took each of some chunks, and one for the chunk's own keys on their way back."""
    at_hand = needed_chunks(reach, owners, rank) | (owners == rank)
    missing = np.concatenate([[0], np.cumsum(~at_hand)])
    return missing[chunks] - missing[reach[chunks]] + 1


def needed_chunks(reach: np.ndarray, owners: np.ndarray, rank: int) -> np.ndarray:
    """bool[chunks]: key chunks that a rank's queries look at, its own included."""
    queries = np.flatnonzero(owners == rank)
    edges = np.bincount(reach[queries], minlength=len(owners) + 1) - np.bincount(queries, minlength=len(owners) + 1)
    return np.cumsum(edges)[:-1] > 0
