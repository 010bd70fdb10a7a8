"""Every token has one owner, and all work follows the plan."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_vita.sharding import index, plan, tile_owner, tile_routes


@given(cp_size=st.integers(1, 8), chunks=st.integers(1, 3), chunk=st.integers(1, 5))
def test_each_token_has_one_owner_and_shares_are_equal(cp_size: int, chunks: int, chunk: int) -> None:
    num_tokens = 2 * cp_size * chunk * chunks
    cp_plan = plan(np.array([0, num_tokens]), cp_size, chunk)
    shares = [index(cp_plan, rank) for rank in range(cp_size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(num_tokens))
    assert {len(share) for share in shares} == {num_tokens // cp_size}
    assert all((np.diff(share) > 0).all() for share in shares)


def test_zigzag_evens_out_causal_work() -> None:
    cp_plan = plan(np.array([0, 64]), 4)
    work = [int((index(cp_plan, rank) + 1).sum()) for rank in range(4)]
    assert max(work) == min(work)


@pytest.mark.parametrize("cu_seqlens", [[1, 4], [0], [0, 4, 2]])
def test_bad_bounds_are_refused(cu_seqlens: list[int]) -> None:
    with pytest.raises(ValueError, match="start at 0"):
        plan(np.array(cu_seqlens), 1)


def test_a_length_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="cp=2 needs a pack of whole zigzags"):
        plan(np.array([0, 10]), 2)


@given(num_tiles=st.integers(0, 40), group_size=st.integers(1, 9))
def test_tiles_are_shared_out_once_and_evenly(num_tiles: int, group_size: int) -> None:
    ranges = tile_owner(num_tiles, group_size)
    assert [tile for owned in ranges for tile in owned] == list(range(num_tiles))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_row_reaches_the_one_rank_that_holds_its_token(data: st.DataObject) -> None:
    """The routes of all ranks, played through, put row r of tile n at token first[n] + r, wherever the tile's tokens lie."""
    tp_size, cp_size, rows = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    num_tiles = data.draw(st.integers(0, 6))
    gaps = data.draw(st.lists(st.integers(0, 5), min_size=num_tiles, max_size=num_tiles))
    first, place = [], 0
    for gap in gaps:
        first.append(place + gap)
        place += gap + rows
    granule = 2 * cp_size * tp_size
    num_tokens = max(granule, -(-place // granule) * granule)
    cp_plan = plan(np.array([0, num_tokens]), cp_size)
    group_size = tp_size * cp_size
    routes = [tile_routes(cp_plan, np.array(first, dtype=np.int64), rows, tp_size, rank) for rank in range(group_size)]
    owners = tile_owner(num_tiles, group_size)

    result = np.full(num_tokens, -1)
    for receiver in range(group_size):
        arrived = []
        for sender in range(group_size):
            assert routes[sender].send_counts[receiver] == routes[receiver].recv_counts[sender]
            start = sum(routes[sender].send_counts[:receiver])
            picked = routes[sender].send_rows[start : start + routes[sender].send_counts[receiver]]
            arrived.append(picked + owners[sender].start * rows)
        share = index(cp_plan, receiver // tp_size).reshape(tp_size, -1)[receiver % tp_size]
        result[share[routes[receiver].places]] = np.concatenate(arrived)
    expected = np.full(num_tokens, -1)
    for tile, start in enumerate(first):
        expected[start : start + rows] = np.arange(tile * rows, (tile + 1) * rows)
    np.testing.assert_array_equal(result, expected)
