"""From a step of plain integers to one rank's work: which tokens it computes, where their keys go, which cached keys are looked at.

numpy, but for what is moved to the device once per step. Shape legend: T tokens of this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from mindspeed_vita.inference.steps import BlockRef, DecodeRow, PrefillChunk
from mindspeed_vita.ops.attention import PagedSequences
from mindspeed_vita.sharding import CPPlan, index


@dataclass(frozen=True, eq=False)
class Held:
    """One rank's cached keys of some sequences.

    Attributes:
        places: which of the sequences have keys on the rank, ascending.
        tables: int64[] for each of those, block numbers in the order of the tokens.
        lengths: int64[], keys of each of those.
    """

    places: np.ndarray
    tables: tuple[np.ndarray, ...]
    lengths: np.ndarray


def held_by(rank: int, tables: Sequence[tuple[BlockRef, ...]], stops: Sequence[int], block_size: int) -> Held:
    """What a rank holds of tokens [0, stop) of some sequences. Only a sequence's last block may be filled in part."""
    places, found, lengths = [], [], []
    for place, (table, stop) in enumerate(zip(tables, stops)):
        blocks = [(number, ref.block) for number, ref in enumerate(table[: -(-stop // block_size)]) if ref.rank == rank]
        if blocks:
            places.append(place)
            found.append(np.array([block for _, block in blocks], dtype=np.int64))
            whole = (len(blocks) - 1) * block_size
            lengths.append(whole + min(block_size, stop - blocks[-1][0] * block_size))
    return Held(np.array(places, dtype=np.int64), tuple(found), np.array(lengths, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Cached:
    """The cached tokens before the chunks of a step, and the queries that look at them. Chunks with cached tokens come first in a plan.

    Attributes:
        per_rank: for each rank, its queries in those chunks; on every rank they are its first tokens.
        held_keys: for each rank, its cached keys of those chunks.
        sequences: this rank's cached keys, and the queries of all ranks that look at them; None where it has no such keys.
        order: int64[] on the device, those queries, each as rank * max(per_rank) + its place on its rank.
        back: int64[] on the device, the same queries, counted over all ranks' queries one rank after the other.
        segments: for each rank int64[n, 4], mask-free: this rank's queries, and the keys that the other rank holds, sequence after
            sequence.
    """

    per_rank: tuple[int, ...]
    held_keys: tuple[int, ...]
    sequences: Optional[PagedSequences]
    order: torch.Tensor
    back: torch.Tensor
    segments: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class PrefillPlan:
    """One rank's part of a step's prefill chunks.

    Attributes:
        chunks: those with cached tokens first.
        ring: chunks as documents, and the owners of their blocks. Behind the chunks each rank has one document of padding, of one
            token, so that no rank is without work.
        places: int64[T], each local token's place among the chunks laid one after the other; the padding comes last.
        num_real: local tokens that are no padding.
        slots: int64[num_real] on the device, where their keys go.
        positions: int64[T], places in their sequences.
        last: for each chunk the rank of its last token, and its place among that rank's tokens.
        cached: what lies before the chunks; None where no chunk has cached tokens.
    """

    chunks: tuple[PrefillChunk, ...]
    ring: CPPlan
    places: np.ndarray
    num_real: int
    slots: torch.Tensor
    positions: np.ndarray
    last: tuple[tuple[int, int], ...]
    cached: Optional[Cached]


def plan_prefill(chunks: Sequence[PrefillChunk], *, rank: int, size: int, block_size: int, device: torch.device) -> PrefillPlan:
    """Plans the chunks of a step for one context-parallel rank.

    Args:
        chunks: of different sequences.
        rank, size: the rank, and how many there are.
        block_size: tokens of a block.
        device: where the cache is.
    """
    ordered = tuple(sorted(chunks, key=lambda chunk: not chunk.start))
    edges, owners, numbers, starts = [0], [], [], [0]
    for chunk in ordered:
        for block in range(chunk.start // block_size, -(-chunk.stop // block_size)):
            first, stop = max(chunk.start, block * block_size), min(chunk.stop, (block + 1) * block_size)
            edges.append(edges[-1] + stop - first)
            owners.append(chunk.table[block].rank)
            numbers.append(chunk.table[block].block)
        starts.append(edges[-1])
    num_tokens, padding = starts[-1], range(starts[-1] + 1, starts[-1] + 1 + size)
    bounds, pieces = (np.array([*ends, *padding], dtype=np.int64) for ends in (starts, edges))
    ring = CPPlan(bounds, size, pieces, np.array([*owners, *range(size)], dtype=np.int64))
    places = [index(ring, other) for other in range(size)]
    own = places[rank][:-1]
    document = np.searchsorted(bounds, own, side="right") - 1
    positions = own - bounds[document] + np.array([chunk.start for chunk in ordered], dtype=np.int64)[document]
    blocks = np.array(numbers, dtype=np.int64)[np.searchsorted(pieces, own, side="right") - 1]
    ends = [chunk.table[(chunk.stop - 1) // block_size].rank for chunk in ordered]
    num_before = sum(chunk.start > 0 for chunk in ordered)
    assert num_tokens == len(own) or size > 1
    return PrefillPlan(
        chunks=ordered,
        ring=ring,
        places=places[rank],
        num_real=len(own),
        slots=torch.from_numpy(blocks * block_size + positions % block_size).to(device),
        positions=np.append(positions, 0),
        last=tuple((end, int(np.searchsorted(places[end], stop - 1))) for end, stop in zip(ends, starts[1:])),
        cached=_plan_cached(ordered[:num_before], bounds, places, rank, block_size, device) if num_before else None,
    )


def _plan_cached(
    chunks: Sequence[PrefillChunk], bounds: np.ndarray, places: Sequence[np.ndarray], rank: int, block_size: int, device: torch.device
) -> Cached:
    tables, starts = [chunk.table for chunk in chunks], [chunk.start for chunk in chunks]
    held = [held_by(other, tables, starts, block_size) for other in range(len(places))]
    # where the queries of each chunk begin on each rank: [ranks, chunks + 1]
    first = np.stack([np.searchsorted(part, bounds[: len(chunks) + 1]) for part in places])
    per_rank, before = first[:, -1], np.concatenate([[0], np.cumsum(first[:, -1])])
    own = held[rank]
    order, back, ends = [], [], []
    for chunk in own.places.tolist():
        for other in range(len(places)):
            queries = np.arange(first[other, chunk], first[other, chunk + 1])
            order.append(other * int(per_rank.max()) + queries)
            back.append(before[other] + queries)
        ends.append(sum(map(len, order)))
    segments = []
    for keys in held:
        key_ends = np.cumsum(keys.lengths)
        found = np.stack([first[rank][keys.places], first[rank][keys.places + 1], key_ends - keys.lengths, key_ends], axis=1)
        segments.append(found[found[:, 1] > found[:, 0]])
    none = np.zeros(0, dtype=np.int64)
    return Cached(
        per_rank=tuple(per_rank.tolist()),
        held_keys=tuple(int(keys.lengths.sum()) for keys in held),
        sequences=_paged(ends, own, device),
        order=torch.from_numpy(np.concatenate([none, *order])).to(device),
        back=torch.from_numpy(np.concatenate([none, *back])).to(device),
        segments=tuple(segments),
    )


def _paged(query_ends: Sequence[int], held: Held, device: torch.device) -> Optional[PagedSequences]:
    if not len(held.places):
        return None
    return PagedSequences(np.array(query_ends, dtype=np.int64), held.tables, held.lengths, device)


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """One rank's part of a step's decode rows. Every rank computes all rows; a rank looks at the keys that it holds.

    Attributes:
        rows: one token of one sequence each.
        written: int64[] on the device, the rows whose keys go to this rank's cache.
        slots: int64[] on the device, where those go.
        sequences: this rank's keys of the sequences, the new tokens' included; None where it has none.
        queries: int64[] on the device, the rows that `sequences` covers.
    """

    rows: tuple[DecodeRow, ...]
    written: torch.Tensor
    slots: torch.Tensor
    sequences: Optional[PagedSequences]
    queries: torch.Tensor


def plan_decode(rows: Sequence[DecodeRow], *, rank: int, block_size: int, device: torch.device) -> DecodePlan:
    """Plans the decode rows of a step for one context-parallel rank; arguments as in plan_prefill."""
    blocks = [row.table[row.position // block_size] for row in rows]
    written = [place for place, block in enumerate(blocks) if block.rank == rank]
    slots = [blocks[place].block * block_size + rows[place].position % block_size for place in written]
    held = held_by(rank, [row.table for row in rows], [row.position + 1 for row in rows], block_size)
    return DecodePlan(
        rows=tuple(rows),
        written=torch.tensor(written, dtype=torch.int64, device=device),
        slots=torch.tensor(slots, dtype=torch.int64, device=device),
        sequences=_paged(range(1, len(held.places) + 1), held, device),
        queries=torch.from_numpy(held.places).to(device),
    )
