"""What a step copies between host and chip, counted on simulated NPUs: one more copy makes these tests fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_vita.checks.parity.pool import LayoutPool
from mindspeed_vita.config import recipe_to_dict
from tests.npu.runs import INSIDE
from tests.tiny_data import TinyData

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
MICRO_BATCHES = 2
INSIDE_A_STEP = 1
"""Tensors made of a number, by megatron or torch, once a step."""
SYNCS = 3
"""Numbers that a step waits for: megatron's count of tokens, the step's sums, the gradient norm."""


@pytest.mark.parametrize(("cp", "ulysses"), [(1, 1), (2, 1), (2, 2)], ids=["cp1", "ring2", "ulysses2"])
def test_a_micro_batch_is_one_copy_and_its_pixels(npus: LayoutPool, tiny: TinyData, tmp_path: Path, cp: int, ulysses: int) -> None:
    content = recipe_to_dict(tiny.recipe(tmp_path, train={"steps": 2, "global_batch": MICRO_BATCHES}))
    content["parallel"]["ulysses"] = ulysses
    for found in npus.run("tests.npu.runs:copies", cp=cp, content=content):
        inside = [copy for copy in found if copy.operator == INSIDE]
        to_device, to_host = ([copy for copy in found if copy.to_device == way and copy not in inside] for way in (True, False))
        pixels = [copy for copy in to_device if len(copy.shape) == 4]
        assert len(to_device) - len(pixels) == MICRO_BATCHES, to_device
        assert len(pixels) <= MICRO_BATCHES  # a rank may have none
        assert not [copy for copy in to_device if copy.waits], to_device
        assert len(inside) <= INSIDE_A_STEP, inside
        assert len(to_host) == SYNCS, to_host


def test_one_more_tensor_made_from_a_number_shows(npus: LayoutPool, tiny: TinyData, tmp_path: Path) -> None:
    counts = []
    for extra in (False, True):
        content = recipe_to_dict(tiny.recipe(tmp_path / str(extra), train={"steps": 1, "global_batch": MICRO_BATCHES}))
        (found,) = npus.run("tests.npu.runs:copies", content=content, extra=extra)
        counts.append(sum(copy.to_device for copy in found))
    assert counts[1] == counts[0] + MICRO_BATCHES
