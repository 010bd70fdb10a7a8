"""Layers dealt to pipeline stages: the busiest stage is as light as any other way of dealing could make it."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.parallel.stages import layers_of, stage_layers, tower_and_head
from mindspeed_vita.sharding.stages import balanced_layers


@given(st.integers(1, 9), st.integers(1, 4), st.floats(0, 6), st.floats(0, 6))
def test_no_other_split_has_a_lighter_busiest_stage(num_layers: int, stages: int, first: float, last: float) -> None:
    if stages > num_layers:
        return

    def busiest(layers: tuple[int, ...]) -> float:
        work = [float(count) for count in layers]
        work[0] += first
        work[-1] += last
        return max(work)

    found = balanced_layers(num_layers, stages, first=first, last=last)
    assert sum(found) == num_layers and len(found) == stages and min(found) >= 1
    cuts = combinations(range(1, num_layers), stages - 1)
    every = [tuple(b - a for a, b in zip((0, *cut), (*cut, num_layers))) for cut in cuts]
    assert busiest(found) == pytest.approx(min(map(busiest, every)))


def test_stages_with_tower_and_head_get_fewer_layers() -> None:
    content = {"stage": 2, "model": {"preset": "14b"}, "parallel": {"tp": 8, "pp": 4, "layer_split": "balanced"}}
    recipe = recipe_from_dict(content)
    first, last = tower_and_head(recipe)
    layers = stage_layers(recipe)
    assert sum(layers) == 48 and layers[0] < layers[1] and layers[3] <= layers[2]
    work = [layers[0] + first, *layers[1:3], layers[3] + last]
    assert max(work) / (sum(work) / 4) < (12 + max(first, last)) / (sum(work) / 4)
    frozen = recipe_from_dict({**content, "train": {"modules": ["projector", "language"]}})
    assert tower_and_head(frozen)[0] == pytest.approx(first / 3)


def test_even_is_the_default_and_stages_follow_each_other() -> None:
    recipe = recipe_from_dict({"model": {"preset": "14b"}, "parallel": {"tp": 8, "pp": 4}})
    assert stage_layers(recipe) == (12, 12, 12, 12)
    given_ = recipe_from_dict({"model": {"preset": "14b"}, "parallel": {"tp": 8, "pp": 4, "stage_layers": "9,13,14,12"}})
    assert [layers_of(given_, rank) for rank in range(4)] == [range(9), range(9, 22), range(22, 36), range(36, 48)]
