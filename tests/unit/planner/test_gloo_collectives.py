"""The collectives of traces against those that real processes ask gloo for, by kind and group."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

from mindspeed_vita import sharding
from mindspeed_vita.planner.proof import CASES, CONTENT, Case, proof_recipe
from mindspeed_vita.planner.trace.result import Trace
from scripts.bench import borders
from tests.pools import Pools
from tests.unit.planner.traces import small, small_without_the_sum_of_losses

BY_NODE = Case(cp=4, cp_per_node=2, ring_gradients="bf16")
SEVERAL_RANKS = [*(case for case in CASES if case.world > 1), BY_NODE]


@cache
def counted(pools: Pools, case: Case) -> list:
    """What each rank counted, and the ranks of its groups."""
    function = "tests.unit.planner.gloo_runs:counted_step"
    return pools("installed").run(function, case.tp, case.pp, case.cp, case.dp, case=case)


def by_ranks(traced: Trace, groups: dict[str, tuple[int, ...]]) -> dict:
    """The trace's collectives, the host's as well, by kind and the ranks of the group that it names."""
    calls: Counter = Counter()
    sizes: Counter = Counter()
    for sent in (*traced.sent, *traced.sent_by_host):
        key = sent.name, groups[sent.group]
        assert sent.group_size == len(groups[sent.group])
        calls[key] += sent.calls
        sizes[key] += sent.bytes
    return {key: (calls[key], sizes[key]) for key in calls}


@pytest.mark.parametrize("case", SEVERAL_RANKS, ids=Case.describe)
def test_calls_and_bytes_are_those_of_real_processes(case: Case, elsewhere, pools: Pools):
    found = counted(pools, case)
    for rank in (0, case.world - 1):
        real, groups = found[rank]
        assert by_ranks(elsewhere(small, case, rank), groups) == real, rank
        assert any(len(ranks) > 1 for _, ranks in real)


def test_a_collective_that_is_left_out_shows(elsewhere, pools: Pools):
    case = Case(dp=2)
    real, groups = counted(pools, case)[0]
    found = by_ranks(elsewhere(small_without_the_sum_of_losses, case), groups)
    assert {key for key in {*real, *found} if real.get(key) != found.get(key)} == {("all_reduce", groups["dp_cp"])}
    key = "all_reduce", groups["dp_cp"]
    assert real[key][0] == found.get(key, (0, 0))[0] + 1


def test_bytes_across_borders_are_those_that_the_table_counts(pools: Pools):
    """scripts/bench/borders.py, in every layer and for every pack of the step."""
    recipe = proof_recipe(BY_NODE, "small")
    language = recipe.model.language
    bounds = np.linspace(0, recipe.data.seq_length, CONTENT.documents + 1).astype(np.int64)
    counted_there = borders.by_node(sharding.make_cp_plan(bounds, BY_NODE.cp, node_size=BY_NODE.cp_per_node))
    number = 2 * language.num_kv_heads * language.head_dim * 2  # bytes of a token's key and value in bf16, as are the gradients
    times = language.num_layers * recipe.train.global_batch
    sent = [calls["send", groups["border"]][1] for calls, groups in counted(pools, BY_NODE)]
    found = [sum(sent[node * 2 : node * 2 + 2]) for node in range(2)]
    assert found == ((counted_there.keys + counted_there.gradients) * number * times).tolist()
    assert all(found)
