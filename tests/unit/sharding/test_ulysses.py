"""Ranks that make up one ring rank hold stretches of its tokens; the ring itself is that of fewer ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_vita.config import recipe_from_dict, validate
from mindspeed_vita.sharding import index, make_cp_plan


@given(ring=st.integers(1, 4), ulysses=st.integers(1, 4), data=st.data())
def test_shares_are_equal_stretches_of_the_rings(ring: int, ulysses: int, data: st.DataObject) -> None:
    num_tokens = 2 * ring * ulysses * data.draw(st.integers(1, 40))
    cuts = data.draw(st.lists(st.integers(0, num_tokens), max_size=4))
    alone = make_cp_plan(np.array([0, *sorted(cuts), num_tokens]), ring)
    shared = alone.shared_by(ulysses)
    assert (shared.cp_size, shared.ring_size, shared.ulysses) == (ring * ulysses, ring, ulysses)
    for place in range(ring):
        parts = [index(shared, place * ulysses + rank) for rank in range(ulysses)]
        assert {len(part) for part in parts} == {num_tokens // shared.cp_size}
        assert (np.concatenate(parts) == index(alone, place)).all()
        assert shared.steps(place) is alone.steps(place), "what a loader's worker worked out is not worked out again"


@pytest.mark.parametrize(
    "heads, kv_heads, tp, cp, ulysses, message",
    [
        (4, 2, 1, 3, 2, "parallel.cp=3"),
        (4, 1, 1, 4, 2, "model.language.num_kv_heads / parallel.tp=1"),
        (6, 2, 2, 2, 2, "model.language.num_heads / parallel.tp=3"),
        (4, 2, 1, 2, 0, "parallel.ulysses=0"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_reason(heads, kv_heads, tp, cp, ulysses, message) -> None:
    content = {
        "model": {"preset": "tiny", "language": {"num_heads": heads, "num_kv_heads": kv_heads, "hidden_size": 24 * heads}},
        "parallel": {"tp": tp, "cp": cp, "ulysses": ulysses},
        "data": {"seq_length": 48},
        "train": {"global_batch": 1},
    }
    with pytest.raises(ValueError, match=message):
        validate(recipe_from_dict(content), tp * cp)
