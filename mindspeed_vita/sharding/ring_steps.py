"""One rank's part of ring attention, worked out from chunk owners and pieces. numpy only.

A piece is what attention stays inside (CPPlan.piece_bounds): a document, or a part of the padding.
A run is a maximal stretch of chunks of one rank. Pieces lie contiguously, so for a query run and an earlier key run at most
one piece reaches from one into the other: the head of the query run sees the whole tail of the key run, without a mask. The tail of
a key run is the same for every query run that needs it, and the runs of one source lie in order, so the keys that a
query run needs from one source are one contiguous slice of what that source sends.

Ring ranks are numbered node by node, and a ring over several nodes goes in rounds. A node rank is a rank's number inside its
node. In round d each rank holds keys of the rank with the same node rank in the node that lies d nodes back: the keys that any rank of its
own node needs. They crossed the border between the nodes once. From there they go around inside the node. With one node there is one round,
in which each rank holds its own keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class RingStep:
    """What happens at one distance inside a node.

    Attributes:
        send: int64[], rows of the held keys that go to node rank + distance (at distance 0: stay here).
        num_received: keys that arrive from node rank - distance.
        segments: int64[n, 4], local query start and stop, start and stop among the received keys; each is mask-free.
    """

    send: np.ndarray
    num_received: int
    segments: np.ndarray


@dataclass(frozen=True)
class Round:
    """What one rank does while it holds the keys of one rank, its own or one of another node.

    Attributes:
        send: int64[], local tokens whose keys cross the border to the node that lies as many nodes ahead as the round's number.
        num_held: keys that are held. Those of round 0 are the rank's own; all others arrive across the border.
        ring: one RingStep per distance 0 .. node_size - 1.
    """

    send: np.ndarray
    num_held: int
    ring: tuple[RingStep, ...]


@dataclass(frozen=True)
class RankSteps:
    """All of one rank's attention.

    Attributes:
        diagonal: int64[], bounds of the stretches of local tokens with causal attention inside: runs cut at the bounds of pieces.
        rounds: one Round per node, in the order in which their keys are used.
    """

    diagonal: np.ndarray
    rounds: tuple[Round, ...]

    @cached_property
    def ring(self) -> tuple[RingStep, ...]:
        """The steps of all rounds, one after the other: one per rank of the ring."""
        return tuple(step for held in self.rounds for step in held.ring)

    @cached_property
    def diagonal_segments(self) -> np.ndarray:
        """Each of those stretches with itself, int64[n, 4]."""
        starts, stops = self.diagonal[:-1], self.diagonal[1:]
        return np.stack([starts, stops, starts, stops], axis=1)


@dataclass(frozen=True)
class _Runs:
    """Runs of all ranks in pack order; arrays of one entry a run."""

    start: np.ndarray
    stop: np.ndarray
    owner: np.ndarray
    local: np.ndarray
    """Number of its first token among its owner's tokens."""
    piece: np.ndarray
    """Start of the piece that holds the run's first token."""
    head: np.ndarray
    """Where that piece, or the run, ends: queries start .. head look before the run."""
    tail: np.ndarray
    """Keys tail .. stop belong to a piece that goes on after the run; stop where none does."""


def rank_steps(bounds: np.ndarray, owners: np.ndarray, edges: np.ndarray, ring_size: int, rank: int, node_size: int = 0) -> RankSteps:
    """Works out one rank's steps.

    Args:
        bounds: int64[P + 1], bounds of the pieces (CPPlan.piece_bounds).
        owners: int64[chunks], rank of each chunk.
        edges: int64[chunks + 1], bounds of the chunks.
        ring_size: number of ranks on the ring.
        rank: whose steps.
        node_size: ranks of a node, a divisor of ring_size; 0: all ranks are in one.
    """
    runs = _find_runs(bounds, owners, edges, ring_size)
    needed = [_needed(runs, other) for other in range(ring_size)]
    size = node_size or ring_size
    return RankSteps(_diagonal(runs, bounds, rank), tuple(_round(runs, needed, rank, number, size) for number in range(ring_size // size)))


def key_traffic(bounds: np.ndarray, owners: np.ndarray, edges: np.ndarray, ring_size: int) -> tuple[int, int]:
    """Key rows that travel between ranks, and key rows that mask-free segments read, both over all ranks. Arguments as in rank_steps."""
    runs = _find_runs(bounds, owners, edges, ring_size)
    lengths = runs.stop - runs.tail
    travel = sum(int(lengths[_needed(runs, rank) & (runs.owner != rank)].sum()) for rank in range(ring_size))
    before = np.concatenate([[0], np.cumsum(lengths)])
    queries = np.flatnonzero(runs.piece < runs.start)
    reach = np.searchsorted(runs.stop, runs.piece[queries], side="right")
    return travel, int((before[queries] - before[reach]).sum())


def border_traffic(bounds: np.ndarray, owners: np.ndarray, edges: np.ndarray, ring_size: int, node_size: int) -> int:
    """Key rows that cross borders of nodes, once for each node that needs them, over all nodes. Arguments as in rank_steps."""
    runs = _find_runs(bounds, owners, edges, ring_size)
    lengths, crossing = runs.stop - runs.tail, 0
    for node in range(ring_size // node_size):
        needed = np.any([_needed(runs, rank) for rank in range(node * node_size, (node + 1) * node_size)], axis=0)
        crossing += int(lengths[needed & (runs.owner // node_size != node)].sum())
    return crossing


def _find_runs(bounds: np.ndarray, owners: np.ndarray, edges: np.ndarray, ring_size: int) -> _Runs:
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    start = edges[first]
    stop = np.append(start[1:], edges[-1])
    owner = owners[first]
    local = np.empty_like(start)
    for rank in range(ring_size):
        mine = owner == rank
        lengths = (stop - start)[mine]
        local[mine] = np.cumsum(lengths) - lengths
    holder = np.searchsorted(bounds, start, side="right") - 1
    last = np.searchsorted(bounds, stop - 1, side="right") - 1
    goes_on = bounds[last + 1] > stop
    tail = np.where(goes_on, np.maximum(bounds[last], start), stop)
    return _Runs(start, stop, owner, local, bounds[holder], np.minimum(bounds[holder + 1], stop), tail)


def _needed(runs: _Runs, rank: int) -> np.ndarray:
    """bool[runs]: the runs whose tails this rank's queries look at."""
    queries = np.flatnonzero((runs.owner == rank) & (runs.piece < runs.start))
    # the first run that the head's piece reaches into; from there on every run up to the query's own
    reach = np.searchsorted(runs.stop, runs.piece[queries], side="right")
    edges = np.zeros(len(runs.start) + 1, dtype=np.int64)
    np.add.at(edges, reach, 1)
    np.add.at(edges, queries, -1)
    return np.cumsum(edges)[:-1] > 0


def _round(runs: _Runs, needed: list[np.ndarray], rank: int, number: int, node_size: int) -> Round:
    num_nodes = len(needed) // node_size
    node, node_rank = divmod(rank, node_size)

    def ranks_of(wanted: int) -> list[int]:
        """The ranks of a node; nodes are counted around the ring."""
        first = wanted % num_nodes * node_size
        return list(range(first, first + node_size))

    here, sources = ranks_of(node), ranks_of(node - number)
    lengths = runs.stop - runs.tail
    if number == 0:
        crossing = np.zeros(len(lengths), dtype=bool)
        row, num_held = runs.local + runs.tail - runs.start, int((runs.stop - runs.start)[runs.owner == rank].sum())
    else:
        crossing = np.any([needed[other] for other in ranks_of(node + number)], axis=0) & (runs.owner == rank)
        held = np.any([needed[other] for other in here], axis=0) & (runs.owner == sources[node_rank])
        row = np.cumsum(np.where(held, lengths, 0)) - lengths  # among the held keys; where none is held nothing is looked up
        num_held = int(lengths[held].sum())

    def step(distance: int) -> RingStep:
        receiver, source = here[(node_rank + distance) % node_size], sources[(node_rank - distance) % node_size]
        outgoing = needed[receiver] & (runs.owner == sources[node_rank])
        incoming = np.flatnonzero(needed[rank] & (runs.owner == source))
        return RingStep(joined_ranges(row[outgoing], lengths[outgoing]), int(lengths[incoming].sum()), _segments(runs, rank, incoming))

    return Round(_tokens(runs, np.flatnonzero(crossing)), num_held, tuple(step(distance) for distance in range(node_size)))


def _segments(runs: _Runs, rank: int, incoming: np.ndarray) -> np.ndarray:
    """RingStep.segments where the tails of some runs arrive, one after the other."""
    offsets = np.concatenate([[0], np.cumsum((runs.stop - runs.tail)[incoming])])
    queries = np.flatnonzero((runs.owner == rank) & (runs.piece < runs.start))
    reach = np.searchsorted(runs.stop, runs.piece[queries], side="right")
    key_start, key_stop = offsets[np.searchsorted(incoming, reach)], offsets[np.searchsorted(incoming, queries)]
    local = runs.local[queries]
    segments = np.stack([local, local + (runs.head - runs.start)[queries], key_start, key_stop], axis=1)
    return segments[key_stop > key_start]


def _tokens(runs: _Runs, chosen: np.ndarray) -> np.ndarray:
    """Local tokens of the tails of some runs of one owner, in order."""
    return joined_ranges((runs.local + runs.tail - runs.start)[chosen], (runs.stop - runs.tail)[chosen])


def joined_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers of some ranges, one range after the other."""
    return np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


def _diagonal(runs: _Runs, bounds: np.ndarray, rank: int) -> np.ndarray:
    mine = runs.owner == rank
    cuts = [np.zeros(1, dtype=np.int64)]
    for start, stop, local in zip(runs.start[mine], runs.stop[mine], runs.local[mine]):
        low, high = np.searchsorted(bounds, [start, stop], side="right")
        cuts.append(np.append(bounds[low:high][bounds[low:high] < stop], stop) - start + local)
    return np.unique(np.concatenate(cuts))
