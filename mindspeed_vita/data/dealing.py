"""Deals the packs of one global step to data-parallel ranks, so that none waits long for another: every rank gets as many, of even cost."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mindspeed_vita.config.recipe import LanguageConfig, ModelConfig

if TYPE_CHECKING:
    from mindspeed_vita.data.dataset import PackDataset

_ROUNDS = 200


@dataclass(frozen=True, kw_only=True)
class RelativeWork:
    """Work of attention and of tiles. The unit is the work of one token in the decoder's linear layers."""

    attention: float
    """Causal attention, per squared token of a document."""
    tile: float
    """One tile in tower and projector."""


def layer_weights(language: LanguageConfig) -> int:
    """Weights of the linear layers in one decoder layer: its multiply-adds per token."""
    heads = 2 * language.num_heads + 2 * language.num_kv_heads  # of queries and outputs, of keys and values
    return language.hidden_size * (heads * language.head_dim + 3 * language.ffn_hidden_size)


def relative_work(model: ModelConfig) -> RelativeWork:
    """Counts the multiply-adds of a forward pass. Norms, the head and the tower's class token are left out: they are small."""
    language, vision, projector = model.language, model.vision, model.projector
    per_layer = layer_weights(language)
    # half of the query-key pairs are causal, and each is used twice: for its score, and for the sum of values
    attention = language.num_heads * language.head_dim
    patches, width = vision.grid**2, vision.hidden_size
    per_patch = vision.num_layers * width * (4 * width + 2 * vision.ffn_hidden_size + 2 * patches) + 3 * vision.patch_size**2 * width
    per_row = projector.hidden_size * (projector.pixel_shuffle**2 * width + language.hidden_size)
    tile = patches * per_patch + model.tokens_per_tile * per_row
    return RelativeWork(attention=attention / per_layer, tile=tile / (language.num_layers * per_layer))


def pack_costs(dataset: PackDataset, numbers: Sequence[int], work: RelativeWork) -> np.ndarray:
    """Predicted cost of packs, in tokens: float64. All have as many tokens, padding included; attention and tiles differ."""
    length, resets = dataset.settings.seq_length, dataset.settings.resets
    costs = []
    for number in numbers:
        tokens, tiles, squares = dataset.cost_of(number)
        attention = squares if resets else float(tokens) ** 2
        costs.append(length + work.attention * attention + work.tile * tiles)
    return np.array(costs)


def deal(costs: np.ndarray, num_ranks: int) -> list[list[int]]:
    """Packs dealt to each rank, by their number in the step, the same number to all, with sums as even as swapping makes them.

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
    for pack in np.argsort(-costs, kind="stable").tolist():
        total, rank = heapq.heappop(open_ranks)
        ranks[rank].append(pack)
        if len(ranks[rank]) < each:
            heapq.heappush(open_ranks, (total + float(costs[pack]), rank))
    totals = np.array([costs[packs].sum() for packs in ranks])
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
    return sorted((sorted(packs) for packs in ranks), key=lambda packs: packs[0])


class StepOrder:
    """Which packs each step has: as the plan numbers them, or packs of like cost together.

    Packs are then sorted by cost within a window of so many steps and cut into steps. The steps of a window are in random order, so that
    training does not go from cheap to dear. Consecutive micro-batches of a pipeline cost about the same, as WLB-LLM asks (arXiv
    2503.17924); packs stay whole, and each is used once.

    Args:
        costs_of: cost of each of some pack numbers.
        global_batch: packs of a step.
        window: steps that exchange packs; below 2 none do.
        seed: of the order of the steps.
    """

    def __init__(self, costs_of: Callable[[Sequence[int]], np.ndarray], *, global_batch: int, window: int, seed: int) -> None:
        self._costs_of, self._batch, self._window, self._seed = costs_of, global_batch, window, seed
        self._number, self._packs = -1, np.empty(0, dtype=np.int64)

    def packs(self, first: int) -> Sequence[int]:
        """Pack numbers of the step that has the places from `first` on in the run."""
        if self._window < 2:
            return range(first, first + self._batch)
        size = self._window * self._batch
        return [int(self._of_window(place // size)[place % size]) for place in range(first, first + self._batch)]

    def _of_window(self, number: int) -> np.ndarray:
        if number != self._number:
            size = self._window * self._batch
            order = even_steps(self._costs_of(range(number * size, (number + 1) * size)), self._batch, (self._seed, number))
            self._number, self._packs = number, number * size + order
        return self._packs


def even_steps(costs: np.ndarray, global_batch: int, seed: Sequence[int]) -> np.ndarray:
    """Packs in an order in which each step has packs of like cost, the cheapest first: int64[n].

    Args:
        costs: float[n], a multiple of global_batch.
        global_batch: packs of a step.
        seed: of the order of the steps.
    """
    steps = np.argsort(costs, kind="stable").reshape(-1, global_batch)
    return steps[np.random.default_rng(seed).permutation(len(steps))].reshape(-1)
