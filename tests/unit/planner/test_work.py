"""The work of traces against the count by hand, on all layouts of the proof."""

from __future__ import annotations

import pytest

from mindspeed_vita.planner.hand_count import counted_work, work_of
from mindspeed_vita.planner.proof import CASES, CONTENT, Case, proof_recipe
from tests.unit.planner.traces import small, small_with_a_product_twice


@pytest.mark.parametrize("case", CASES, ids=Case.describe)
def test_work_equals_a_count_by_hand(case: Case, elsewhere):
    recipe = proof_recipe(case, "small")
    for rank in sorted({0, case.world - 1}):
        assert work_of(elsewhere(small, case, rank)) == counted_work(recipe, case.world, rank, CONTENT), rank


def test_all_parts_and_phases_are_among_what_is_counted():
    found = {key for case in CASES for key in counted_work(proof_recipe(case, "small"), case.world, 0, CONTENT)}
    assert found == {
        *((part, phase) for part in ("layers", "attention", "tower") for phase in ("forward", "recompute", "backward")),
        ("head", "forward"),
        ("head", "backward"),
    }


def test_a_product_that_is_computed_twice_shows(elsewhere):
    case = Case(tp=2)
    recipe, traced = proof_recipe(case, "small"), elsewhere(small_with_a_product_twice, case)
    found, counted = work_of(traced), counted_work(recipe, case.world, 0, CONTENT)
    language, packs = recipe.model.language, recipe.train.global_batch
    product = packs * language.num_layers * 2 * recipe.data.seq_length * language.hidden_size * language.ffn_hidden_size  # 2 * ffn / tp 2
    assert found.pop(("layers", "forward")) == counted.pop(("layers", "forward")) + product
    assert found == counted
