"""Dealing cache blocks: even over ranks at the end of every chunk, however a sequence is cut, and zigzag inside a whole chunk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_vita.sharding import deal_blocks


@settings(max_examples=300, deadline=None)
@given(cp=st.integers(1, 9), chunks=st.lists(st.integers(0, 80), max_size=12))
def test_no_rank_holds_more_than_its_share_rounded_up_after_any_chunk(cp: int, chunks: list[int]):
    held, before = np.zeros(cp, dtype=int), 0
    for count in chunks:
        dealt = deal_blocks(before, count, cp)
        assert len(dealt) == count
        held += np.bincount(dealt, minlength=cp)
        before += count
        assert held.max() - held.min() <= 1
        assert held.max() == -(-before // cp)


@pytest.mark.parametrize("cp", [1, 2, 4, 8])
@pytest.mark.parametrize("before", [0, 3, 16])
def test_a_whole_chunk_is_dealt_as_trainings_zigzag(cp: int, before: int):
    piece = 3
    dealt = deal_blocks(before, 2 * cp * piece, cp)
    for rank in range(cp):
        first, second = rank * piece, (2 * cp - 1 - rank) * piece
        mine = [*range(first, first + piece), *range(second, second + piece)]
        assert np.flatnonzero(dealt == rank).tolist() == mine


def test_the_blocks_that_remain_go_on_where_the_chunk_before_ended():
    assert deal_blocks(0, 3, 4).tolist() == [0, 1, 2]
    assert deal_blocks(3, 4, 4).tolist() == [3, 3, 2, 1]
    assert deal_blocks(7, 9, 4).tolist() == [0, 1, 2, 3, 3, 2, 1, 0, 0]


@pytest.mark.parametrize("wrong", [(-1, 1, 2), (0, -1, 2), (0, 1, 0)])
def test_what_cannot_be_dealt_is_refused(wrong: tuple[int, int, int]):
    with pytest.raises(ValueError, match="cannot deal"):
        deal_blocks(*wrong)
