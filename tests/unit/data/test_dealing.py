"""Packs dealt by cost: as many to each rank, even sums, all of them, the same everywhere."""

import numpy as np
import pytest

from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.data.dealing import StepOrder, deal, even_steps, pack_costs, relative_work
from tests.tiny_checkpoint import TINY, random_weights


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


def test_the_work_of_a_model_is_that_of_its_matrices():
    """A row goes once through each matrix; scores and sums of values come on top."""
    matrices = {name: weight for name, weight in random_weights(TINY).items() if weight.dim() > 1}

    def count(part):
        return sum(weight.numel() for name, weight in matrices.items() if name.startswith(part) and "position" not in name)

    token = count("language.decoder.layers.")
    patches, width, vision = TINY.vision.grid**2, TINY.vision.hidden_size, TINY.vision
    scores = 2 * vision.num_layers * patches * width
    tower = count("vision.") - count("vision.class_token")
    work = relative_work(TINY)
    assert work.tile * token == pytest.approx(patches * (tower + scores) + TINY.tokens_per_tile * count("projector."))
    heads = TINY.language.num_layers * TINY.language.num_heads * TINY.language.head_dim
    assert work.attention * token == pytest.approx(heads)


def of_preset(name):
    return relative_work(recipe_from_dict({"model": {"preset": name}}).model)


def test_the_published_14b_has_the_work_that_was_counted_by_hand():
    """13.21e9 weights in the decoder's layers, 48 layers of width 5,120, 728 GFLOP a tile."""
    work = of_preset("14b")
    assert work.attention == pytest.approx(491_520 / (2 * 13.21e9), rel=1e-3)
    assert work.tile == pytest.approx(728e9 / (2 * 13.21e9), rel=2e-3)


def test_costs_follow_the_model():
    """Attention weighs more in a narrow decoder, so another pack is the most expensive one."""

    class Packs:
        class settings:
            seq_length, resets = 1000, True

        def cost_of(self, number):
            return ((1000, 0, 1e6), (1000, 2, 2e5))[number]

    assert np.argmax(pack_costs(Packs(), [0, 1], of_preset("14b"))) == 1
    assert np.argmax(pack_costs(Packs(), [0, 1], of_preset("tiny"))) == 0


def test_even_steps_hold_packs_of_like_work_and_every_pack_once():
    costs = np.random.default_rng(1).lognormal(0, 0.5, 64 * 8)
    order = StepOrder(lambda numbers: costs[list(numbers)], global_batch=8, window=32, seed=5)
    steps = [order.packs(first) for first in range(0, len(costs), 8)]
    for window in (steps[:32], steps[32:]):
        first = min(min(step) for step in window)
        assert sorted(pack for step in window for pack in step) == list(range(first, first + 256)), "packs stay in their window"
    spread = np.array([costs[step].max() / costs[step].min() for step in steps])
    assert np.median(spread) < 1.06 < np.median([step.max() / step.min() for step in costs.reshape(-1, 8)])
    again = StepOrder(lambda numbers: costs[list(numbers)], global_batch=8, window=32, seed=5)
    assert again.packs(40 * 8) == steps[40], "a step follows from its number, whatever was asked for before"
    means = np.array([costs[step].mean() for step in steps[:32]])
    assert (np.diff(means) < 0).any() and (np.diff(means) > 0).any(), "training does not go from cheap to dear"
    assert even_steps(costs, 8, (6, 0)).tolist() != even_steps(costs, 8, (5, 0)).tolist()


@pytest.mark.parametrize("window", [0, 1])
def test_without_a_window_steps_keep_the_order_of_the_plan(window):
    order = StepOrder(lambda numbers: np.empty(0), global_batch=4, window=window, seed=0)
    assert list(order.packs(8)) == [8, 9, 10, 11]
