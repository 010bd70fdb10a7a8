"""The packing plan: every sample once, no pack over capacity, deterministic, full."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_vita.data.packing import plan_grouped_packs, plan_packs

CASES = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 64), min_size=1, max_size=120),
        "sources": st.integers(1, 4),
        "mode": st.sampled_from(["same_source", "cross_source"]),
        "seed": st.integers(0, 2**32 - 1),
        "epoch": st.integers(0, 5),
        "lookahead": st.integers(1, 40),
        "open_packs": st.integers(0, 8),
    }
)


def plan(case):
    lengths = np.array(case["lengths"])
    sources = np.random.default_rng(0).integers(0, case["sources"], len(lengths))
    keys = ("mode", "seed", "epoch", "lookahead", "open_packs")
    return plan_packs(lengths, sources, capacity=64, **{key: case[key] for key in keys}), lengths, sources


@given(CASES)
@settings(max_examples=200, deadline=None)
def test_every_sample_once_no_pack_over_capacity_none_empty(case):
    packs, lengths, sources = plan(case)
    assert sorted(packs.draws.tolist()) == list(range(len(lengths)))
    assert packs.pack_cu[0] == 0 and packs.pack_cu[-1] == len(lengths)
    for number in range(len(packs)):
        members = packs.pack(number)
        assert len(members) and lengths[members].sum() <= 64
        if case["mode"] == "same_source":
            assert len(set(sources[members].tolist())) == 1


@given(CASES)
@settings(max_examples=30, deadline=None)
def test_the_same_inputs_give_the_same_plan(case):
    first, second = plan(case)[0], plan(case)[0]
    assert np.array_equal(first.draws, second.draws) and np.array_equal(first.pack_cu, second.pack_cu)


@given(CASES, st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_groups_stay_side_by_side_and_in_order(case, size):
    lengths = np.maximum(np.array(case["lengths"]) // size, 1)
    groups = np.arange(len(lengths)) // size * 3
    keep = np.random.default_rng(1).random(len(lengths)) < 0.8  # rows that the index left out: some groups are incomplete
    keep[0] = True
    lengths, groups = lengths[keep], groups[keep]
    sources = groups % case["sources"]
    keys = ("mode", "seed", "epoch", "lookahead", "open_packs")
    packs = plan_grouped_packs(lengths, sources, groups, capacity=64, **{key: case[key] for key in keys})
    assert sorted(packs.draws.tolist()) == list(range(len(lengths)))
    seen = []
    for number in range(len(packs)):
        members = packs.pack(number)
        assert len(members) and lengths[members].sum() <= 64
        steps = np.flatnonzero(np.diff(groups[members], prepend=-1))
        for first, last in zip(steps, [*steps[1:], len(members)]):
            seen.append(int(groups[members[first]]))
            assert members[first:last].tolist() == np.flatnonzero(groups == seen[-1]).tolist()
        assert case["mode"] == "cross_source" or len(set(sources[members].tolist())) == 1
    assert sorted(seen) == sorted(set(groups.tolist()))


def test_epochs_and_seeds_differ():
    lengths, sources = np.random.default_rng(0).integers(1, 60, 500), np.zeros(500, dtype=np.int64)
    draws = {
        tuple(plan_packs(lengths, sources, capacity=64, mode="cross_source", seed=seed, epoch=epoch).draws)
        for seed in range(2)
        for epoch in range(3)
    }
    assert len(draws) == 6


def test_a_small_plan_stays_what_it_is():
    """Frozen: a change here changes what a resumed run reads, so it must raise the format number in dataset.py."""
    lengths = np.array([30, 10, 20, 64, 5, 40, 25, 33])
    packs = plan_packs(lengths, np.array([0, 0, 0, 0, 1, 1, 1, 1]), capacity=64, mode="same_source", seed=1, epoch=0)
    assert [packs.pack(number).tolist() for number in range(len(packs))] == [[2, 1, 0], [5], [3], [4, 7, 6]]


def test_packs_of_a_hundred_thousand_samples_are_full():
    rng = np.random.default_rng(0)
    lengths = np.minimum(np.exp(rng.normal(6.5, 1.1, 100_000)).astype(np.int64) + 20, 16_384)
    sources = rng.integers(0, 20, len(lengths))
    for mode, least in (("cross_source", 0.998), ("same_source", 0.99)):
        packs = plan_packs(lengths, sources, capacity=16_384, mode=mode, seed=0, epoch=0)
        assert lengths.sum() / (len(packs) * 16_384) > least


def test_samples_of_a_pack_are_not_sorted_by_length():
    lengths = np.random.default_rng(0).integers(1, 12, 2000)
    packs = plan_packs(lengths, np.zeros(2000, dtype=np.int64), capacity=64, mode="cross_source", seed=0, epoch=0)
    first, last = (np.mean([lengths[packs.pack(number)[place]] for number in range(len(packs))]) for place in (0, -1))
    assert abs(first - last) < 0.75


def test_nothing_to_pack_and_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        plan_packs(np.array([], dtype=int), np.array([], dtype=int), capacity=8, mode="same_source", seed=0, epoch=0)
    with pytest.raises(ValueError, match="data.packing='both' is unknown; expected one of same_source, cross_source"):
        plan_packs(np.array([1]), np.array([0]), capacity=8, mode="both", seed=0, epoch=0)
