"""Deals the packs of one global step to data-parallel ranks, so that none waits long for another: every rank gets as many, of even cost."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mindspeed_vita.data.dataset import PackDataset

_ATTENTION = 491_520 / (2 * 13.21e9)
"""Attention work per squared token, over that of one token elsewhere: 14B, 48 layers of width 5,120, causal."""
_TILE = 728e9 / (2 * 13.21e9)
"""Work of one tile in the 300M tower, over that of one token."""
_ROUNDS = 200


def pack_costs(dataset: PackDataset, numbers: Sequence[int]) -> np.ndarray:
    """Predicted cost of packs, in tokens: float64. All have as many tokens, padding included; attention and tiles differ."""
    length, resets = dataset.settings.seq_length, dataset.settings.resets
    costs = []
    for number in numbers:
        tokens, tiles, squares = dataset.cost_of(number)
        attention = squares if resets else float(tokens) ** 2
        costs.append(length + _ATTENTION * attention + _TILE * tiles)
    return np.array(costs)


def deal(costs: np.ndarray, num_ranks: int) -> list[list[int]]:
    """Places dealt to each rank, the same number to all, with sums as even as swapping makes them.

    The largest go first, each to the rank with the smallest sum that is not full; then the heaviest and the lightest rank swap
    the pair of packs that evens them out most, while that helps. Every rank's packs are in ascending order.

    Args:
        costs: float[n], a multiple of num_ranks.
        num_ranks: ranks.
    """
    each = len(costs) // num_ranks
    assert each * num_ranks == len(costs), (len(costs), num_ranks)
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    open_ranks = [(0.0, rank) for rank in range(num_ranks)]
    for place in np.argsort(-costs, kind="stable").tolist():
        total, rank = heapq.heappop(open_ranks)
        ranks[rank].append(place)
        if len(ranks[rank]) < each:
            heapq.heappush(open_ranks, (total + float(costs[place]), rank))
    totals = np.array([costs[places].sum() for places in ranks])
    for _ in range(_ROUNDS if each > 1 else 0):
        heavy, light = int(np.argmax(totals)), int(np.argmin(totals))
        gap = totals[heavy] - totals[light]
        moved = costs[ranks[heavy]][:, None] - costs[ranks[light]][None, :]
        gain = np.minimum(moved, gap - moved)
        best = int(gain.argmax())
        if gain.flat[best] <= 1e-9 * totals[heavy]:
            break
        mine, theirs = divmod(best, each)
        ranks[heavy][mine], ranks[light][theirs] = ranks[light][theirs], ranks[heavy][mine]
        totals[heavy] -= moved.flat[best]
        totals[light] += moved.flat[best]
    # the rank that has the step's first pack comes first: with packs of equal cost every rank gets the next one in turn
    return sorted((sorted(places) for places in ranks), key=lambda places: places[0])
