"""What a trace refuses, before it makes anything."""

from __future__ import annotations

import pytest

from mindspeed_vita.planner.proof import Case, proof_recipe
from mindspeed_vita.planner.trace.packs import PackContent
from mindspeed_vita.planner.trace.step import trace


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"world": 3, "rank": 0}, "does not divide the number of processes, 3;"),
        ({"world": 2, "rank": 2}, "rank 2 of 2 ranks; expected 0 to 1"),
        ({"world": 2, "rank": 0, "micro_batches": 0}, "0 packs per rank; a step needs at least 1"),
        ({"world": 2, "rank": 0, "content": PackContent(vision=0.9, supervised=0.2)}, "from 0 to 1 that add up to at most 1"),
        ({"world": 2, "rank": 0, "content": PackContent(documents=0)}, "a pack has 0 documents; expected at least 1"),
    ],
)
def test_one_message_says_what_does_not_fit(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        trace(proof_recipe(Case(tp=2), "small"), **arguments)
