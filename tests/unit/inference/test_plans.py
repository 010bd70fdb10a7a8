"""Plans of prefill chunks against brute force: every token has one owner, and every query meets each key before it once."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_vita.inference.plans import PrefillPlan, held_by, plan_prefill
from mindspeed_vita.inference.steps import BlockRef, PrefillChunk
from mindspeed_vita.sharding import deal_blocks

SIZE = 4
CPU = torch.device("cpu")


@st.composite
def chunks(draw: st.DrawFn) -> tuple[int, list[PrefillChunk]]:
    """Ranks, and one chunk of each of some sequences: some have cached tokens before it."""
    cp = draw(st.integers(1, 4))
    used, found = [0] * cp, []
    for sequence in range(draw(st.integers(1, 3))):
        start = SIZE * draw(st.integers(0, 6))
        stop = start + draw(st.integers(1, 30))
        ranks: list[int] = []
        for first, last in ((0, start), (start, stop)):
            ranks += deal_blocks(len(ranks), -(-last // SIZE) - first // SIZE, cp).tolist()
        table = []
        for rank in ranks:
            table.append(BlockRef(rank, used[rank]))
            used[rank] += 1
        found.append(PrefillChunk(sequence, start, stop, tuple(table)))
    return cp, found


def _owned(plan: PrefillPlan) -> list[tuple[int, int]]:
    """Sequence and position of each real token of a rank."""
    starts = np.cumsum([0, *(chunk.stop - chunk.start for chunk in plan.chunks)])
    document = np.searchsorted(starts, plan.places[: plan.num_real], side="right") - 1
    return [(plan.chunks[number].sequence, int(position)) for number, position in zip(document, plan.positions)]


@settings(max_examples=60)
@given(chunks())
def test_every_token_has_one_owner_and_its_key_goes_to_its_block(case: tuple[int, list[PrefillChunk]]) -> None:
    cp, found = case
    by_sequence = {chunk.sequence: chunk for chunk in found}
    seen = []
    for rank in range(cp):
        plan = plan_prefill(found, rank=rank, size=cp, block_size=SIZE, device=CPU)
        owned = _owned(plan)
        assert len(plan.positions) == plan.num_real + 1  # one token of padding
        for (sequence, position), slot in zip(owned, plan.slots.tolist()):
            ref = by_sequence[sequence].table[position // SIZE]
            assert ref.rank == rank and slot == ref.block * SIZE + position % SIZE
        for chunk, (end, place) in zip(plan.chunks, plan.last):
            assert end != rank or owned[place] == (chunk.sequence, chunk.stop - 1)
        seen += owned
    assert sorted(seen) == sorted((chunk.sequence, token) for chunk in found for token in range(chunk.start, chunk.stop))


@settings(max_examples=60)
@given(chunks())
def test_cached_keys_meet_every_query_of_their_sequence_once(case: tuple[int, list[PrefillChunk]]) -> None:
    """Where queries travel, over all ranks' own keys; where keys travel, over all ranks' segments of one rank's queries."""
    cp, found = case
    plans = [plan_prefill(found, rank=rank, size=cp, block_size=SIZE, device=CPU) for rank in range(cp)]
    owned = [_owned(plan) for plan in plans]
    pairs = [(chunk, range(chunk.start, chunk.stop)) for chunk in found]
    wanted = sorted((chunk.sequence, query, key) for chunk, queries in pairs for query in queries for key in range(chunk.start))
    cached = [plan.cached for plan in plans]
    if not wanted:
        assert cached == [None] * cp
        return
    before = plans[0].chunks
    keys = [[(chunk.sequence, key) for chunk in before for key in range(chunk.start) if chunk.table[key // SIZE].rank == rank]
            for rank in range(cp)]  # fmt: skip
    visits, travels = [], []
    for rank in range(cp):
        mine = cached[rank]
        assert mine is not None and mine.held_keys == tuple(map(len, keys))
        most = max(mine.per_rank)
        queries = [owned[place // most][place % most] for place in mine.order.tolist()]
        start = 0
        for q0, q1, k0, k1 in mine.sequences.segments.tolist() if mine.sequences else ():
            assert q0 == start
            visits += [(queries[q][0], queries[q][1], keys[rank][k][1]) for q in range(q0, q1) for k in range(k0, k1)]
            assert all(keys[rank][k][0] == queries[q][0] for q in range(q0, q1) for k in range(k0, k1))
            start = q1
        flat = [query for part, count in zip(owned, mine.per_rank) for query in part[:count]]
        assert [flat[place] for place in mine.back.tolist()] == queries
        for other, segments in enumerate(mine.segments):
            for q0, q1, k0, k1 in segments.tolist():
                travels += [(*owned[rank][q], keys[other][k][1]) for q in range(q0, q1) for k in range(k0, k1)]
                assert all(keys[other][k][0] == owned[rank][q][0] for q in range(q0, q1) for k in range(k0, k1))
    assert sorted(visits) == wanted == sorted(travels)


def test_only_the_last_block_of_a_sequence_is_filled_in_part() -> None:
    table = (BlockRef(0, 5), BlockRef(1, 2), BlockRef(0, 1))
    assert held_by(0, [table], [10], SIZE).lengths.tolist() == [6] and held_by(1, [table], [10], SIZE).lengths.tolist() == [4]
    held = held_by(1, [table, table], [4, 7], SIZE)
    assert held.places.tolist() == [1] and held.lengths.tolist() == [3] and held.tables[0].tolist() == [2]
