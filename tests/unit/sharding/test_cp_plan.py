"""Every token has one owner, and all work follows the plan."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_vita.sharding import balance, index, make_cp_plan, tile_owner, tile_routes
from mindspeed_vita.sharding.cp_plan import MOST_CHUNKS, rank_work


@given(cp_size=st.integers(1, 8), chunks=st.integers(1, 3), chunk=st.integers(1, 5))
def test_each_token_has_one_owner_and_shares_are_equal(cp_size: int, chunks: int, chunk: int) -> None:
    num_tokens = 2 * cp_size * chunk * chunks
    cp_plan = make_cp_plan(np.array([0, num_tokens]), cp_size, chunk)
    shares = [index(cp_plan, rank) for rank in range(cp_size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(num_tokens))
    assert {len(share) for share in shares} == {num_tokens // cp_size}
    assert all((np.diff(share) > 0).all() for share in shares)


def test_zigzag_evens_out_causal_work() -> None:
    cp_plan = make_cp_plan(np.array([0, 64]), 4)
    work = [int((index(cp_plan, rank) + 1).sum()) for rank in range(4)]
    assert max(work) == min(work)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_length_is_cut_into_few_chunks_and_evened_out(data: st.DataObject) -> None:
    """Lengths whose only divisors are small or huge, too: 2 * cp times a prime."""
    cp_size = data.draw(st.integers(2, 8))
    num_tokens = 2 * cp_size * data.draw(st.sampled_from([1151, 2048, 2309, 8191]) | st.integers(512, 40_000))
    bounds = np.array(sorted({0, num_tokens, *data.draw(st.lists(st.integers(1, num_tokens), max_size=12))}))
    cp_plan = make_cp_plan(bounds, cp_size)
    assert len(cp_plan.owners) <= MOST_CHUNKS * cp_size
    shares = [index(cp_plan, rank) for rank in range(cp_size)]
    assert {len(share) for share in shares} == {num_tokens // cp_size}
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.arange(num_tokens))
    work = rank_work(cp_plan)
    assert work.max() / work.mean() < 1.1


def _packs_of_a_million() -> dict[str, tuple[list[int], int]]:
    rng = np.random.default_rng(0)
    short = np.cumsum(rng.integers(20, 180, 5000))
    return {
        "5,000 documents and a film": ([0, *short, 2**20], 8),
        "two documents": ([0, 2**19, 2**20], 8),
        "two uneven documents": ([0, 2**20 // 3, 2**20], 8),
        "a short document and a film": ([0, 3000, 2**20], 8),
        "5,000 documents": ([0, *np.unique(rng.integers(1, 2**20, 4999)), 2**20], 8),
        "four long documents": ([0, 200_000, 500_000, 600_000, 2**20], 32),
        "ranks of 2 * prime tokens": ([0, 4348, 4604], 2),
    }


@pytest.mark.parametrize("name", _packs_of_a_million())
def test_planning_takes_few_swaps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation takes about 40 us, so 3,000 of them take about 0.1 s of the worker that loads the pack."""
    evaluated = []
    best_swap = balance._best_swap
    monkeypatch.setattr(balance, "_best_swap", lambda *arguments: evaluated.append(1) or best_swap(*arguments))
    bounds, cp_size = _packs_of_a_million()[name]
    cp_plan = make_cp_plan(np.array(bounds), cp_size)
    assert len(evaluated) <= 3000
    work = rank_work(cp_plan)
    assert work.max() / work.mean() <= 1.03


@pytest.mark.parametrize("cut", [3000, 2**20 - 3000])
def test_a_long_document_beside_a_short_one_is_dealt_in_zigzag(cut: int) -> None:
    cp_plan = make_cp_plan(np.array([0, cut, 2**20]), 8)
    runs = cp_plan.owners[np.flatnonzero(np.diff(cp_plan.owners, prepend=-1))]
    assert runs.tolist() == [*range(8), *range(6, -1, -1)]


@pytest.mark.parametrize("cu_seqlens", [[1, 4], [0], [0, 4, 2]])
def test_bad_bounds_are_refused(cu_seqlens: list[int]) -> None:
    with pytest.raises(ValueError, match="start at 0"):
        make_cp_plan(np.array(cu_seqlens), 1)


def test_a_length_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="a ring of 2 needs a pack of whole zigzags"):
        make_cp_plan(np.array([0, 10]), 2)


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
    cp_plan = make_cp_plan(np.array([0, num_tokens]), cp_size)
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
        result[share[routes[receiver].targets]] = np.concatenate(arrived)
    expected = np.full(num_tokens, -1)
    for tile, start in enumerate(first):
        expected[start : start + rows] = np.arange(tile * rows, (tile + 1) * rows)
    np.testing.assert_array_equal(result, expected)
