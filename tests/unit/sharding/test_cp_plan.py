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


@given(num_tiles=st.integers(0, 40), cp_size=st.integers(1, 5), tp_size=st.integers(1, 5))
def test_tiles_of_tensor_neighbours_are_those_of_their_context_rank(num_tiles: int, cp_size: int, tp_size: int) -> None:
    fine, coarse = tile_owner(num_tiles, cp_size * tp_size), tile_owner(num_tiles, cp_size)
    for cp_rank, owned in enumerate(coarse):
        assert [tile for part in fine[cp_rank * tp_size :][:tp_size] for tile in part] == list(owned)


@st.composite
def packs_with_tiles(draw: st.DrawFn) -> tuple[int, int, int, list[int], int]:
    """(tp, cp, rows a tile, first tokens of the tiles, tokens)."""
    tp_size, cp_size, rows = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    first, place = [], 0
    for gap in draw(st.lists(st.integers(0, 5), max_size=6)):
        first.append(place + gap)
        place += gap + rows
    granule = 2 * cp_size * tp_size
    return tp_size, cp_size, rows, first, max(granule, -(-place // granule) * granule)


@settings(max_examples=100, deadline=None)
@given(pack=packs_with_tiles(), tensor=st.booleans())
def test_every_row_reaches_the_one_rank_that_holds_its_token(pack: tuple[int, int, int, list[int], int], tensor: bool) -> None:
    """The routes of all ranks, played through, put row r of tile n at token first[n] + r, wherever the tile's tokens lie."""
    tp_size, cp_size, rows, first, num_tokens = pack
    cp_plan = plan(np.array([0, num_tokens]), cp_size)
    world = range(tp_size * cp_size)
    routes = [tile_routes(cp_plan, np.array(first, dtype=np.int64), rows, tp_size, rank, tensor=tensor) for rank in world]
    result = np.full(num_tokens, -1)
    for receiver in world:
        # ranks of the exchange's group, and the receiver's place among them
        group = [rank for rank in world if not tensor or rank % tp_size == receiver % tp_size]
        owners, place = tile_owner(len(first), len(group)), group.index(receiver)
        arrived = []
        for sender, owned in zip(group, owners):
            route = routes[sender]
            assert route.send_counts[place] == routes[receiver].recv_counts[group.index(sender)]
            start = sum(route.send_counts[:place])
            arrived.append(route.send_rows[start : start + route.send_counts[place]] + owned.start * rows)
        share = index(cp_plan, receiver // tp_size).reshape(tp_size, -1)[receiver % tp_size]
        result[share[routes[receiver].places]] = np.concatenate(arrived)
    expected = np.full(num_tokens, -1)
    for tile, start in enumerate(first):
        expected[start : start + rows] = np.arange(tile * rows, (tile + 1) * rows)
    np.testing.assert_array_equal(result, expected)
