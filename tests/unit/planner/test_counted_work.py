"""The operations that a run counts (engine/work.py) against a trace of the same step."""

from __future__ import annotations

import pytest

from mindspeed_vita.config import recipe_from_dict, recipe_to_dict
from mindspeed_vita.engine.work import pack_work
from mindspeed_vita.planner.proof import CONTENT, Case, proof_recipe
from mindspeed_vita.planner.trace.packs import make_pack
from mindspeed_vita.planner.trace.rank import fake_rank
from mindspeed_vita.planner.trace.step import trace


def both(modules: list[str]) -> dict[str, int]:
    """What the count and the trace of one step say, and what the kernels compute again: attention's scores, the head's logits."""
    content = recipe_to_dict(proof_recipe(Case(), "small"))
    content["train"]["modules"] = modules
    recipe = recipe_from_dict(content)
    traced = trace(recipe, 1, 0, content=CONTENT, micro_batches=1)
    with fake_rank(recipe, 1, 0) as layout:
        found = pack_work(recipe, make_pack(recipe, layout, CONTENT))
    parts = traced.flops(lambda place: f"{place.part} {place.phase}")
    return {
        "total": found.total,
        "attention": found.attention,
        "tower": found.tower,
        "traced": sum(traced.flops().values()),
        "traced attention": sum(traced.attention_flops().values()),
        "traced tower": sum(value for name, value in parts.items() if name.startswith("tower")),
        "logits": parts["head forward"],
    }


@pytest.mark.parametrize("modules", [["vision", "projector", "language"], ["projector"], ["projector", "language"], ["vision"]])
def test_counted_operations_are_the_traces_but_for_what_is_computed_twice(modules: list[str], elsewhere):
    found = elsewhere(both, modules)
    # of attention's seven products six are counted; in the tower only where it trains
    attention = found["traced attention"]
    scores = found["attention"] // 6
    tower_scores = attention - found["attention"] - scores
    if "vision" in modules:
        tower_scores //= 7
        assert attention == found["attention"] + scores + 7 * tower_scores
        assert found["traced tower"] == found["tower"] + tower_scores
    else:
        assert found["traced tower"] == found["tower"]
        tower_scores = 0
    assert found["traced"] == found["total"] + scores + tower_scores + found["logits"]
