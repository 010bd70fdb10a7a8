"""The context-parallel plan of one pack: which rank owns which chunk of tokens, and the pieces attention stays inside.

Planning is plain numpy, so that data workers can do it; ring_steps.py says what follows for one rank, parallel/ carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mindspeed_vita.sharding.balance import TOLERANCE, even_out
from mindspeed_vita.sharding.ring_steps import RankSteps, border_traffic, joined_ranges, key_traffic, rank_steps

CHUNK = 2048
"""Tokens per chunk of a pack with several documents, if a rank then has FEWEST_CHUNKS to MOST_CHUNKS of them."""
FEWEST_CHUNKS, MOST_CHUNKS = 16, 64
"""Chunks of a rank: fewer leave too little to swap, more make planning slow."""
_SMALLEST = 64
_READING = 1 / 16
"""What a key row costs that a block reads, and whose gradient it adds up, beside one that travels: memory against links."""
_CROSSING = 16
"""What a key row costs that crosses the border of a node, in addition to its way inside. Links inside a node are 8 to 12 times as fast as
the network (planner/devices); with twice that, borders decide between plans of about the same keys."""
_OF_TWO = 0.999 * TOLERANCE**0.5
"""Tolerance for nodes and for the ranks of a node, so that both together keep to TOLERANCE."""
PADDING_PIECE = 512
"""Most tokens of a piece of padding. Attention inside one long piece would be wasted work."""


@dataclass(frozen=True, eq=False)
class CPPlan:
    """Chunk owners of one pack of S tokens, and the pieces that attention stays inside.

    Attributes:
        piece_bounds: int64[P + 1], bounds from 0 to S of the pieces that attention stays inside. A piece is a document; only the
            padding, which is one document of the pack, is cut into several.
        ring_size: number of ring ranks. Without Ulysses these are the context-parallel ranks.
        edges: int64[chunks + 1], bounds of the chunks, from 0 to S.
        owners: int64[chunks], the ring rank of each chunk. Every ring rank owns the same number of tokens.
        ulysses: context-parallel ranks that make up one ring rank. Each holds a stretch of its tokens, and during attention all of
            them for some of the heads.
        node_size: neighbouring ring ranks that share a node, a divisor of ring_size. Keys cross the border of a node once for all of its
            ranks. 0: each rank is sent its keys directly.
    """

    piece_bounds: np.ndarray
    ring_size: int
    edges: np.ndarray
    owners: np.ndarray
    ulysses: int = 1
    node_size: int = 0
    _steps: dict[int, RankSteps] = field(default_factory=dict, repr=False)

    @property
    def num_tokens(self) -> int:
        """S, the tokens of the whole pack."""
        return int(self.piece_bounds[-1])

    @property
    def longest_document(self) -> int:
        """Tokens of the longest document. Padding counts by its pieces, so padding may have higher positions."""
        return int(np.diff(self.piece_bounds).max())

    @property
    def cp_size(self) -> int:
        """Number of context-parallel ranks: ring_size * ulysses."""
        return self.ring_size * self.ulysses

    def shared_by(self, ulysses: int) -> CPPlan:
        """The same ring with so many context-parallel ranks for each ring rank; cp_rank = ring_rank * ulysses + ulysses_rank."""
        return replace(self, ulysses=ulysses)

    def by_node(self, node_size: int) -> CPPlan:
        """The same owners on nodes of so many ring ranks. 0, 1 and ring_size give the plan that sends each rank its keys directly.

        Raises:
            ValueError: nodes of that size do not fill the ring.
        """
        if node_size < 0 or (node_size and self.ring_size % node_size):
            raise ValueError(f"nodes of {node_size} ring ranks do not fill a ring of {self.ring_size}; use a divisor, or 0 for one node")
        node_size = 0 if node_size in (1, self.ring_size) else node_size
        return self if node_size == self.node_size else replace(self, node_size=node_size, _steps={})

    def steps(self, ring_rank: int) -> RankSteps:
        """What one ring rank computes, sends and receives; made once, and carried along when a data worker made it."""
        if ring_rank not in self._steps:
            self._steps[ring_rank] = rank_steps(
                self.piece_bounds, self.owners, self.edges, self.ring_size, ring_rank, self.node_size
            )
        return self._steps[ring_rank]


def make_cp_plan(
    cu_seqlens: np.ndarray, ring_size: int, chunk: int | None = None, *, padding: int = 0, node_size: int = 0
) -> CPPlan:
    """Deals the chunks of a pack to the ranks of a ring, so that attention work is even and few keys travel.

    One document that fills the pack: 2 * ring_size chunks in zigzag (rank r takes chunks r and 2 * ring_size - 1 - r), which is even
    and needs every key somewhere else. Otherwise: smaller chunks, in contiguous shares, so that most documents stay on one rank and cost no
    communication, and in zigzag, which suits a long document among others; in both, chunks are swapped between ranks
    until the work is even, and the one that moves fewer keys is taken. On several nodes there are two more to take from: chunks are
    first dealt to nodes in the same two ways, and then to the ranks of each node, so that fewer keys cross borders.

    Args:
        cu_seqlens: int[D + 1], document bounds of the pack (PackedBatch.cu_seqlens); starts at 0, ends at S, never decreases.
        ring_size: number of ring ranks.
        chunk: most tokens of a chunk where chunks are swapped; None chooses.
        padding: tokens at the end of the pack that are padding. They count as no document in the choice between the two, and
            attention cuts them into short pieces.
        node_size: neighbouring ring ranks that share a node; 0: all of them (CPPlan.by_node).

    Raises:
        ValueError: the bounds are no bounds, nodes do not fill the ring, or S does not divide into whole zigzags of 2 * ring_size chunks.
    """
    bounds = np.asarray(cu_seqlens, dtype=np.int64)
    if bounds.ndim != 1 or len(bounds) < 2 or bounds[0] != 0 or (np.diff(bounds) < 0).any():
        raise ValueError(f"cu_seqlens must start at 0 and never decrease, found {bounds.tolist()[:8]}")
    num_tokens = int(bounds[-1])
    if padding:
        content = num_tokens - padding
        bounds = np.concatenate([bounds[bounds <= content], np.arange(content + PADDING_PIECE, num_tokens, PADDING_PIECE), [num_tokens]])
    if ring_size == 1:
        return CPPlan(bounds, 1, np.array([0, num_tokens]), np.zeros(1, dtype=np.int64))
    if num_tokens == 0 or num_tokens % (2 * ring_size):
        raise ValueError(
            f"a ring of {ring_size} needs a pack of whole zigzags of {2 * ring_size} chunks, found {num_tokens} tokens; "
            f"use a seq_length that is a multiple of {2 * ring_size}"
        )
    half = num_tokens // (2 * ring_size)
    if len(np.unique(np.minimum(bounds, num_tokens - padding))) <= 2:
        one = CPPlan(bounds, ring_size, np.arange(2 * ring_size + 1) * half, _zigzag(ring_size)).by_node(node_size)
        if _unevenness(one) <= TOLERANCE:  # a long padding leaves the owner of the last chunk idle
            return one
    size = chunk or _chunk_size(2 * half)
    edges = _edges(num_tokens, ring_size, size)
    plans = [
        CPPlan(bounds, ring_size, edges, even_out(*_costs(bounds, edges), owners, ring_size)).by_node(node_size)
        for owners in _shares(ring_size, half, size)
    ]
    if plans[0].node_size:
        plans += _dealt_to_nodes(bounds, ring_size, node_size, size)
    return min(plans, key=lambda made: (max(TOLERANCE, _unevenness(made)), _price(made)))


def _dealt_to_nodes(bounds: np.ndarray, ring_size: int, node_size: int, size: int) -> list[CPPlan]:
    """Plans that deal stretches of node_size chunks to nodes, evened out, and then the chunks of each node to its ranks."""
    num_tokens, num_nodes = int(bounds[-1]), ring_size // node_size
    half, stretch = num_tokens // (2 * num_nodes), size * node_size
    coarse = _edges(num_tokens, num_nodes, stretch)
    pieces = np.arange(node_size) * (np.diff(coarse) // node_size)[:, None]
    edges = np.append((coarse[:-1, None] + pieces).reshape(-1), num_tokens)
    work, reach, sizes = _costs(bounds, edges)
    plans = []
    for share in _shares(num_nodes, half, stretch):
        nodes = np.repeat(even_out(*_costs(bounds, coarse), share, num_nodes, _OF_TWO), node_size)
        owners = np.empty_like(nodes)
        for node in range(num_nodes):
            mine = np.flatnonzero(nodes == node)
            first = np.searchsorted(mine, reach[mine])
            dealt = _zigzag_of_each_size(sizes[mine], node_size)
            owners[mine] = node * node_size + even_out(work[mine], first, sizes[mine], dealt, node_size, _OF_TWO)
        plans.append(CPPlan(bounds, ring_size, edges, owners).by_node(node_size))
    return plans


def _edges(num_tokens: int, num_ranks: int, size: int) -> np.ndarray:
    """Bounds of chunks of so many tokens in each of 2 * num_ranks equal parts; the last chunk of a part may be smaller."""
    half = num_tokens // (2 * num_ranks)
    return np.append((np.arange(2 * num_ranks)[:, None] * half + np.arange(0, half, size)).reshape(-1), num_tokens)


def _shares(num_ranks: int, half: int, size: int) -> list[np.ndarray]:
    """Two ways to deal these chunks: in contiguous shares, and in zigzag."""
    chunks = len(range(0, half, size))
    return [np.repeat(share, chunks) for share in (np.repeat(np.arange(num_ranks), 2), _zigzag(num_ranks))]


def _zigzag(num_ranks: int) -> np.ndarray:
    return np.concatenate([np.arange(num_ranks), np.arange(num_ranks)[::-1]])


def _zigzag_of_each_size(sizes: np.ndarray, num_ranks: int) -> np.ndarray:
    """Owners of some chunks, an even number per rank of each size: a zigzag over the chunks of one size."""
    owners = np.empty(len(sizes), dtype=np.int64)
    for size in np.unique(sizes):
        of_size = np.flatnonzero(sizes == size)
        owners[of_size] = np.repeat(_zigzag(num_ranks), len(of_size) // (2 * num_ranks))
    return owners


def _costs(bounds: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Work, reach and sizes of chunks, as even_out takes them."""
    reach = np.searchsorted(edges, bounds[np.searchsorted(bounds, edges[:-1], side="right") - 1], side="right") - 1
    return chunk_work(bounds, edges), reach, np.diff(edges)


def _chunk_size(share: int) -> int:
    """Tokens per chunk for ranks of so many tokens; the last one of each half of a share may be smaller."""
    size = max(min(CHUNK, share // FEWEST_CHUNKS), -(-share // MOST_CHUNKS))
    return _SMALLEST if size < _SMALLEST <= share // 4 else max(1, size)


def _unevenness(cp_plan: CPPlan) -> float:
    """Work of the busiest ring rank over the mean."""
    work = rank_work(cp_plan)
    return float(work.max() / work.mean())


def _price(cp_plan: CPPlan) -> float:
    plan = cp_plan.piece_bounds, cp_plan.owners, cp_plan.edges, cp_plan.ring_size
    travel, reads = key_traffic(*plan)
    return travel + _READING * reads + (_CROSSING * border_traffic(*plan, cp_plan.node_size) if cp_plan.node_size else 0)


def chunk_work(bounds: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Query-key pairs of each chunk under causal attention inside pieces: int64[chunks].

    Token number p of its piece (from 1) sees p keys; sums over token ranges follow from p's sum formula.
    """
    cuts = np.unique(np.concatenate([bounds, edges]))
    starts, stops = cuts[:-1], cuts[1:]
    piece = bounds[np.searchsorted(bounds, starts, side="right") - 1]
    first, last = starts - piece + 1, stops - piece
    chunks = np.searchsorted(edges, starts, side="right") - 1
    return np.bincount(chunks, weights=(first + last) * (stops - starts) / 2, minlength=len(edges) - 1).astype(np.int64)


def rank_work(cp_plan: CPPlan) -> np.ndarray:
    """Query-key pairs of each ring rank: int64[ring_size]."""
    work = chunk_work(cp_plan.piece_bounds, cp_plan.edges)
    return np.bincount(cp_plan.owners, weights=work, minlength=cp_plan.ring_size).astype(np.int64)


def index(cp_plan: CPPlan, cp_rank: int) -> np.ndarray:
    """Pack positions owned by one context-parallel rank, ascending: int64[S / cp]. The same for tokens, labels, positions and rows."""
    ring_rank, ulysses_rank = divmod(cp_rank, cp_plan.ulysses)
    chunks = np.flatnonzero(cp_plan.owners == ring_rank)
    positions = joined_ranges(cp_plan.edges[chunks], np.diff(cp_plan.edges)[chunks])
    share = len(positions) // cp_plan.ulysses
    return positions[ulysses_rank * share : (ulysses_rank + 1) * share]
