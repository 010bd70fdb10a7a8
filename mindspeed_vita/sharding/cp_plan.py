"""The context-parallel plan of one pack: which rank owns which chunk of tokens, and the documents attention stays inside.

Planning is plain numpy, so that data workers can do it; ring_steps.py says what follows for one rank, parallel/ carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mindspeed_vita.sharding.balance import TOLERANCE, even_out
from mindspeed_vita.sharding.ring_steps import RankSteps, rank_steps

CHUNK = 2048
"""Tokens per chunk of a pack with several documents, if a rank then has CHUNKS_PER_RANK of them."""
CHUNKS_PER_RANK = 16
"""Fewer leave too little to swap."""
_SMALLEST = 64
PADDING_PIECE = 512
"""Tokens of a document of padding: attention inside one long document would be work for nothing."""


@dataclass(frozen=True, eq=False)
class CPPlan:
    """Chunk owners and documents of one pack of S tokens.

    Attributes:
        cu_seqlens: int64[D + 1], document bounds from 0 to S; the last documents may be pieces of padding.
        cp_size: number of context-parallel ranks.
        chunk: tokens per chunk; S = chunk * len(owners).
        owners: int64[S / chunk], the place on the ring of each chunk; every place owns the same number.
        ulysses: ranks that share a place on the ring: each holds a stretch of its tokens, and during attention all of them for some heads.
    """

    cu_seqlens: np.ndarray
    cp_size: int
    chunk: int
    owners: np.ndarray
    ulysses: int = 1
    _steps: dict[int, RankSteps] = field(default_factory=dict, repr=False)

    @property
    def num_tokens(self) -> int:
        """S, the tokens of the whole pack."""
        return int(self.cu_seqlens[-1])

    @property
    def longest_document(self) -> int:
        """Tokens of the longest document: one more than the highest position."""
        return int(np.diff(self.cu_seqlens).max())

    @property
    def ring_size(self) -> int:
        """Places on the ring."""
        return self.cp_size // self.ulysses

    def shared_by(self, ulysses: int) -> CPPlan:
        """The same ring with so many ranks at each place, numbered ring place * ulysses + rank at the place."""
        return replace(self, cp_size=self.ring_size * ulysses, ulysses=ulysses)

    def steps(self, ring_rank: int) -> RankSteps:
        """What one place on the ring computes, sends and receives; made once, and carried along when a data worker made it."""
        if ring_rank not in self._steps:
            self._steps[ring_rank] = rank_steps(self.cu_seqlens, self.owners, self.chunk, self.ring_size, ring_rank)
        return self._steps[ring_rank]


def plan(cu_seqlens: np.ndarray, cp_size: int, chunk: int | None = None, *, padding: int = 0) -> CPPlan:
    """Deals the chunks of a pack to context-parallel ranks, so that attention work is even and few keys travel.

    One document that fills the pack: 2 * cp chunks in zigzag (rank r takes chunks r and 2 * cp - 1 - r), which is even and needs every
    key somewhere else. Otherwise: smaller chunks, first in contiguous shares, so that most documents stay on one rank and cost no
    communication; then chunks are swapped between ranks until the work is even.

    Args:
        cu_seqlens: int[D + 1], document bounds; starts at 0, ends at S, never decreases.
        cp_size: number of context-parallel ranks.
        chunk: tokens per chunk; None chooses.
        padding: tokens at the end of the pack that are padding. They count as no document in the choice between the two, and
            attention cuts them into short pieces.

    Raises:
        ValueError: the bounds are no bounds, or S does not divide into whole zigzags of 2 * cp_size chunks.
    """
    bounds = np.asarray(cu_seqlens, dtype=np.int64)
    if bounds.ndim != 1 or len(bounds) < 2 or bounds[0] != 0 or (np.diff(bounds) < 0).any():
        raise ValueError(f"cu_seqlens must start at 0 and never decrease, found {bounds.tolist()[:8]}")
    num_tokens = int(bounds[-1])
    if padding:
        content = num_tokens - padding
        bounds = np.concatenate([bounds[bounds <= content], np.arange(content + PADDING_PIECE, num_tokens, PADDING_PIECE), [num_tokens]])
    if cp_size == 1:
        return CPPlan(bounds, 1, num_tokens, np.zeros(1, dtype=np.int64))
    if num_tokens == 0 or num_tokens % (2 * cp_size):
        raise ValueError(
            f"cp={cp_size} needs a pack of whole zigzags of {2 * cp_size} chunks, found {num_tokens} tokens; "
            f"use a seq_length that is a multiple of {2 * cp_size}"
        )
    if len(np.unique(np.minimum(bounds, num_tokens - padding))) <= 2:
        one = _zigzag(bounds, cp_size, chunk or num_tokens // (2 * cp_size))
        work = rank_work(one)
        if work.max() <= TOLERANCE * work.mean():  # a long padding leaves the owner of the last chunk idle
            return one
    chunk = chunk or _chunk_size(num_tokens // cp_size)
    if num_tokens % (chunk * cp_size):
        raise ValueError(f"cp={cp_size} chunks of {chunk} tokens do not divide a pack of {num_tokens} tokens; use a divisor")
    owners = np.repeat(np.arange(cp_size), num_tokens // (chunk * cp_size))
    starts = np.arange(0, num_tokens, chunk)
    reach = bounds[np.searchsorted(bounds, starts, side="right") - 1] // chunk
    return CPPlan(bounds, cp_size, chunk, even_out(chunk_work(bounds, chunk), reach, owners, cp_size))


def _zigzag(bounds: np.ndarray, cp_size: int, chunk: int) -> CPPlan:
    zigzag = 2 * cp_size * chunk
    if bounds[-1] % zigzag:
        raise ValueError(
            f"cp={cp_size} needs whole zigzags of {2 * cp_size} chunks of {chunk} tokens, found {bounds[-1]} tokens; use a divisor"
        )
    order = np.concatenate([np.arange(cp_size), np.arange(cp_size)[::-1]])
    return CPPlan(bounds, cp_size, chunk, np.tile(order, int(bounds[-1]) // zigzag))


def _chunk_size(share: int) -> int:
    """Tokens per chunk for ranks of `share` tokens: the largest divisor with enough chunks, but not a crumb."""
    divisors = np.array([size for size in range(1, min(share, CHUNK) + 1) if share % size == 0])
    fitting = divisors[divisors <= share // CHUNKS_PER_RANK]
    if len(fitting) and fitting[-1] >= _SMALLEST:
        return int(fitting[-1])
    coarser = divisors[divisors >= _SMALLEST]
    if len(coarser) and share >= 4 * coarser[0]:
        return int(coarser[0])
    return int(fitting[-1]) if len(fitting) else 1


def chunk_work(bounds: np.ndarray, chunk: int) -> np.ndarray:
    """Query-key pairs of each chunk under causal attention inside documents: int64[S / chunk].

    A token at place p of its document (from 1) sees p keys; sums over token ranges follow from p's sum formula.
    """
    num_tokens = int(bounds[-1])
    cuts = np.unique(np.concatenate([bounds, np.arange(0, num_tokens + 1, chunk)]))
    starts, stops = cuts[:-1], cuts[1:]
    document = bounds[np.searchsorted(bounds, starts, side="right") - 1]
    first, last = starts - document + 1, stops - document
    return np.bincount(starts // chunk, weights=(first + last) * (stops - starts) / 2, minlength=num_tokens // chunk).astype(np.int64)


def rank_work(cp_plan: CPPlan) -> np.ndarray:
    """Query-key pairs of each place on the ring: int64[ring_size]."""
    work = chunk_work(cp_plan.cu_seqlens, cp_plan.chunk)
    return np.bincount(cp_plan.owners, weights=work, minlength=cp_plan.ring_size).astype(np.int64)


def index(cp_plan: CPPlan, cp_rank: int) -> np.ndarray:
    """Pack positions owned by one context-parallel rank, ascending: int64[S / cp]. The same for tokens, labels, positions and rows."""
    ring_rank, place = divmod(cp_rank, cp_plan.ulysses)
    chunks = np.flatnonzero(cp_plan.owners == ring_rank)
    positions = (chunks[:, None] * cp_plan.chunk + np.arange(cp_plan.chunk)).reshape(-1)
    share = len(positions) // cp_plan.ulysses
    return positions[place * share : (place + 1) * share]
