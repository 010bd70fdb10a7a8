"""The block pool against a plain model of it: every block in one state, shared ones named, the oldest cached one evicted first."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from mindspeed_vita.inference.block_pool import BlockCounts, BlockPool
from mindspeed_vita.inference.steps import BlockRef

BLOCKS, CP = 4, 2


def fill(pool: BlockPool, rank: int, name: bytes) -> BlockRef:
    ref = pool.allocate(rank)
    pool.give_name(ref, name)
    return ref


def test_a_released_block_is_found_by_name_and_shared():
    pool = BlockPool(2, 1)
    ref = fill(pool, 0, b"a")
    pool.release([ref])
    assert pool.counts() == [BlockCounts(used=0, cached=1, free=1)]
    assert pool.find([b"a", b"b"]) == [ref]
    pool.share(ref)
    pool.share(ref)
    assert pool.users(ref) == 2 and pool.counts() == [BlockCounts(used=1, cached=0, free=1)]
    pool.release([ref])
    assert pool.users(ref) == 1
    pool.release([ref])
    assert pool.counts() == [BlockCounts(used=0, cached=1, free=1)]


def test_the_cached_block_released_first_goes_first_and_is_not_found_any_more():
    pool = BlockPool(3, 1)
    refs = [fill(pool, 0, name) for name in (b"a", b"b", b"c")]
    for place in (1, 0, 2):
        pool.release([refs[place]])
    pool.share(refs[1])  # used again, and released again: now the youngest
    pool.release([refs[1]])
    assert [pool.allocate(0) for _ in range(3)] == [refs[0], refs[2], refs[1]]
    assert not pool.find([b"a"]) and not pool.find([b"b"]) and not pool.find([b"c"])


def test_of_one_sequence_the_last_block_goes_first():
    pool = BlockPool(3, 1)
    table = [fill(pool, 0, name) for name in (b"a", b"b", b"c")]
    pool.release(table)
    pool.allocate(0)
    assert pool.find([b"a", b"b", b"c"]) == table[:2]


def test_free_blocks_go_before_cached_ones():
    pool = BlockPool(2, 1)
    pool.release([fill(pool, 0, b"a")])
    pool.allocate(0)
    assert pool.find([b"a"])


def test_a_run_of_names_ends_at_the_first_one_that_is_missing():
    pool = BlockPool(4, 2)
    first, third = fill(pool, 0, b"1"), fill(pool, 1, b"3")
    assert pool.find([b"1", b"2", b"3"]) == [first]
    assert pool.find([b"3"]) == [third]


def test_the_second_block_of_a_name_goes_without():
    pool = BlockPool(2, 1)
    first, second = fill(pool, 0, b"a"), fill(pool, 0, b"a")
    assert pool.find([b"a"]) == [first]
    pool.release([second])
    assert pool.counts() == [BlockCounts(used=1, cached=0, free=1)]


def test_a_block_that_may_still_be_written_is_not_shared():
    pool = BlockPool(2, 1)
    with pytest.raises(AssertionError, match="no name"):
        pool.share(pool.allocate(0))


@pytest.mark.parametrize("size", [(0, 1), (1, 0)])
def test_a_pool_of_nothing_is_refused(size: tuple[int, int]):
    with pytest.raises(ValueError, match="give it more memory"):
        BlockPool(*size)


class PoolAgainstModel(RuleBasedStateMachine):
    """Users hold references. The model knows who holds what, which contents exist, and in which order they were released."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, CP)
        self.users: list[BlockRef] = []
        self.content: dict[BlockRef, bytes] = {}
        self.released: list[BlockRef] = []

    @rule(target=held, rank=st.integers(0, CP - 1))
    def allocate(self, rank: int):
        empty = BLOCKS - len({ref for ref in (*self.users, *self.released) if ref.rank == rank})
        idle = [ref for ref in self.released if ref.rank == rank]
        assert self.pool.available(rank) == empty + len(idle)
        if not self.pool.available(rank):
            return None
        ref = self.pool.allocate(rank)
        assert ref.rank == rank and ref not in self.users
        if not empty:
            assert ref == idle[0]
            self.released.remove(ref)
            del self.content[ref]
        assert ref not in self.content
        self.users.append(ref)
        return ref

    @rule(ref=held, name=st.sampled_from([b"a", b"b", b"c"]))
    def give_name(self, ref: BlockRef | None, name: bytes):
        if ref in self.users and ref not in self.content:
            self.pool.give_name(ref, name)
            if name not in self.content.values():
                self.content[ref] = name

    @rule(target=held, name=st.sampled_from([b"a", b"b", b"c"]))
    def share(self, name: bytes):
        expected = [ref for ref, content in self.content.items() if content == name]
        assert self.pool.find([name]) == expected
        if not expected:
            return None
        self.pool.share(expected[0])
        if expected[0] in self.released:
            self.released.remove(expected[0])
        self.users.append(expected[0])
        return expected[0]

    @rule(ref=consumes(held))
    def release(self, ref: BlockRef | None):
        if ref in self.users:
            self.pool.release([ref])
            self.users.remove(ref)
            if ref not in self.users and ref in self.content:
                self.released.append(ref)

    @invariant()
    def every_block_is_in_one_state(self):
        for rank, counts in enumerate(self.pool.counts()):
            used = {ref for ref in self.users if ref.rank == rank}
            cached = [ref for ref in self.released if ref.rank == rank]
            assert counts == BlockCounts(len(used), len(cached), BLOCKS - len(used) - len(cached))
        assert all(self.pool.users(ref) == self.users.count(ref) for ref in self.users)


PoolAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_pool_against_model = PoolAgainstModel.TestCase
