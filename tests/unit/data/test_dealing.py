"""Packs dealt by cost: as many to each rank, even sums, all of them, the same everywhere."""

import numpy as np
import pytest

from mindspeed_vita.data.dealing import deal


@pytest.mark.parametrize(("count", "ranks"), [(8, 8), (64, 8), (528, 8), (12, 4), (6, 1)])
def test_every_pack_once_and_as_many_to_each_rank(count, ranks):
    costs = np.random.default_rng(count).lognormal(0, 1, count)
    dealt = deal(costs, ranks)
    assert sorted(place for places in dealt for place in places) == list(range(count))
    assert {len(places) for places in dealt} == {count // ranks} and dealt == deal(costs.copy(), ranks)
    assert all(places == sorted(places) for places in dealt)


def test_sums_are_even_where_single_packs_are_not():
    costs = np.random.default_rng(0).lognormal(0, 0.3, 528)
    sums = np.array([costs[places].sum() for places in deal(costs, 8)])
    in_turn = np.array([costs[rank::8].sum() for rank in range(8)])
    assert in_turn.max() / in_turn.mean() > 1.02
    assert sums.max() / sums.mean() < 1.0005


def test_packs_of_equal_cost_go_in_turn():
    assert deal(np.ones(8), 4) == [[0, 4], [1, 5], [2, 6], [3, 7]]
